// SPDX-License-Identifier: Apache-2.0
// Attention over pages and the write to them (kernels/attention) for Python. A cache of e4m3 comes as its
// bytes.
#include <optional>
#include <tuple>

#include "csrc/bindings/place.h"
#include "csrc/bindings/stored.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/attention/rotary_write.h"

namespace earnest::bindings {
namespace {

namespace paged = attention::paged;
namespace rotary_write = attention::rotary_write;
using attention::Type;
using Numbers = nb::ndarray<nb::ro, nb::c_contig>;
using Written = nb::ndarray<nb::c_contig>;
using Bounds = std::optional<AnyInput<int32_t, 1>>;
using Scales = std::optional<AnyInput<float, 1>>;
using HostScales = std::optional<Input<float, 1>>;

constexpr const char* kAttention = "paged_attention";
constexpr const char* kWrite = "rotary_write";

void expect(const char* op, bool holds, const char* argument, const std::string& expected,
            const std::string& got) {
  if (!holds) raise_if_error(invalid_argument(op, argument, expected, got));
}

template <typename Array>
int64_t size(const Array& x, size_t axis) {
  return static_cast<int64_t>(x.shape(axis));
}

Type type_of(const char* op, const char* argument, const Numbers& x) {
  const auto dtype = x.dtype();
  const bool is_float = dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float);
  const bool is_bfloat = dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat);
  expect(op, dtype.bits == 16 && (is_float || is_bfloat), argument, "bfloat16 or float16", "another dtype");
  return is_float ? Type::kFloat16 : Type::kBFloat16;
}

// The pools, their sizes and scales, of either family's parameters.
template <typename Params, typename Pool>
void set_pools(const char* op, const Place& place, const Numbers& like, const Pool& k, const Pool& v,
               const Scales& k_scale, const Scales& v_scale, Params* p) {
  expect(op, k.ndim() == 4, "k", "[pages, kv_heads, page_size, dim]", shape_of(k));
  expect(op, shape_of(v) == shape_of(k) && v.dtype() == k.dtype(), "v", "the shape and dtype of k",
         shape_of(v));
  const bool bytes = k.dtype() == nb::dtype<uint8_t>();
  expect(op, bytes || k.dtype() == like.dtype(), "k", "the dtype of queries, or float8_e4m3fn",
         "another dtype");
  p->cache = bytes ? paged::Cache::kFloat8 : paged::Cache::kAsQueries;
  p->pages = size(k, 0), p->kv_heads = size(k, 1), p->page_size = size(k, 2), p->dim = size(k, 3);
  p->k = place.data("k", k), p->v = place.data("v", v);
  for (const auto& [name, scale, to] :
       {std::tuple{"k_scale", &k_scale, &p->k_scale}, std::tuple{"v_scale", &v_scale, &p->v_scale}}) {
    if (!*scale) continue;
    check_shape(op, name, **scale, {k.shape(1)});
    *to = place.data(name, *scale);
  }
}

void attend(const Numbers& q, const Numbers& k, const Numbers& v, const Written& out,
            const AnyInput<int32_t, 2>& page_table, const AnyInput<int32_t, 1>& lengths,
            const Bounds& cu_seqlens_q, const Scales& k_scale, const Scales& v_scale, int64_t queries,
            double scale, int64_t piece_keys, int stages, uintptr_t stream,
            const std::optional<nb::callable>& allocate, const FaultArray& fault) {
  const Place place(kAttention, q, {stream, allocate, fault});
  paged::Params p;
  expect(kAttention, q.ndim() == 3, "q", "[tokens, heads, dim]", shape_of(q));
  p.device = place.device(), p.stream = place.stream(), p.fault = place.fault();
  p.type = type_of(kAttention, "q", q);
  set_pools(kAttention, place, q, k, v, k_scale, v_scale, &p);
  expect(kAttention, size(q, 2) == p.dim, "k", "the head size of q " + shape_of(q), shape_of(k));
  expect(kAttention, out.dtype() == q.dtype(), "out", "the dtype of q", "another dtype");
  check_shape(kAttention, "out", out, {q.shape(0), q.shape(1), q.shape(2)});
  p.tokens = size(q, 0), p.heads = size(q, 1), p.most_queries = queries, p.scale = scale;
  p.piece_keys = piece_keys, p.stages = stages;
  p.sequences = size(lengths, 0), p.table_pages = size(page_table, 1);
  check_shape(kAttention, "page_table", page_table, {lengths.shape(0), page_table.shape(1)});
  if (cu_seqlens_q) check_shape(kAttention, "cu_seqlens_q", *cu_seqlens_q, {lengths.shape(0) + 1});
  p.q = place.data("q", q);
  p.page_table = place.data("page_table", page_table), p.lengths = place.data("lengths", lengths);
  p.cu_seqlens_q = place.data("cu_seqlens_q", cu_seqlens_q);
  const paged::Output output{place.data("out", out), nullptr};
  Workspace workspace(place, paged::workspace_size(p));
  without_gil([&] { return paged::run(p, output, workspace.data()); });
}

template <typename Params>
void set_scales(const char* op, const HostScales& k_scale, const HostScales& v_scale, Params* p) {
  if (!k_scale || !v_scale) return;
  check_shape(op, "v_scale", *v_scale, {k_scale->shape(0)});
  p->cache = paged::Cache::kFloat8, p->kv_heads = size(*k_scale, 0);
  p->k_scale = data_of(op, "k_scale", k_scale), p->v_scale = data_of(op, "v_scale", v_scale);
}

// Of arrays in CPU memory: what a run says of their entries.
void check_attention(const Input<int32_t, 2>& page_table, const Input<int32_t, 1>& lengths,
                     const std::optional<Input<int32_t, 1>>& cu_seqlens_q, const HostScales& k_scale,
                     const HostScales& v_scale, int64_t tokens, int64_t queries, int64_t pages,
                     int64_t page_size) {
  paged::Params p;
  check_shape(kAttention, "page_table", page_table, {lengths.shape(0), page_table.shape(1)});
  if (cu_seqlens_q) check_shape(kAttention, "cu_seqlens_q", *cu_seqlens_q, {lengths.shape(0) + 1});
  p.sequences = size(lengths, 0), p.table_pages = size(page_table, 1);
  p.tokens = tokens, p.most_queries = queries, p.pages = pages, p.page_size = page_size;
  p.page_table = data_of(kAttention, "page_table", page_table);
  p.lengths = data_of(kAttention, "lengths", lengths);
  p.cu_seqlens_q = data_of(kAttention, "cu_seqlens_q", cu_seqlens_q);
  set_scales(kAttention, k_scale, v_scale, &p);
  raise_if_error(paged::check_entries(p));
}

void write(const Numbers& qkv, const std::optional<Numbers>& bias, const AnyInput<int64_t, 1>& positions,
           const AnyInput<int64_t, 1>& slots, const Written& q, const Written& k, const Written& v,
           const Scales& k_scale, const Scales& v_scale, double theta, uintptr_t stream,
           const std::optional<nb::callable>& allocate, const FaultArray& fault) {
  const Place place(kWrite, qkv, {stream, allocate, fault});
  rotary_write::Params p;
  expect(kWrite, qkv.ndim() == 2, "qkv", "[tokens, (heads + 2 kv_heads) dim]", shape_of(qkv));
  p.device = place.device(), p.stream = place.stream(), p.fault = place.fault();
  p.type = type_of(kWrite, "qkv", qkv);
  set_pools(kWrite, place, qkv, k, v, k_scale, v_scale, &p);
  p.tokens = size(qkv, 0), p.theta = theta;
  expect(kWrite, q.ndim() == 3 && size(q, 0) == p.tokens && size(q, 2) == p.dim && q.dtype() == qkv.dtype(),
         "q", "[tokens, heads, dim] of the dtype of qkv", shape_of(q));
  p.heads = size(q, 1);
  const size_t tokens = qkv.shape(0), width = (q.shape(1) + 2 * k.shape(1)) * k.shape(3);
  check_shape(kWrite, "qkv", qkv, {tokens, width});
  check_shape(kWrite, "positions", positions, {tokens});
  check_shape(kWrite, "slots", slots, {tokens});
  if (bias) {
    expect(kWrite, bias->dtype() == qkv.dtype(), "bias", "the dtype of qkv", "another dtype");
    check_shape(kWrite, "bias", *bias, {width});
  }
  p.qkv = place.data("qkv", qkv), p.bias = place.data("bias", bias);
  p.positions = place.data("positions", positions), p.slots = place.data("slots", slots);
  p.q = place.data("q", q);
  without_gil([&] { return rotary_write::run(p); });
}

void check_write(const Input<int64_t, 1>& positions, const Input<int64_t, 1>& slots,
                 const HostScales& k_scale, const HostScales& v_scale, int64_t pages, int64_t page_size) {
  rotary_write::Params p;
  check_shape(kWrite, "slots", slots, {positions.shape(0)});
  p.tokens = size(positions, 0), p.pages = pages, p.page_size = page_size;
  p.positions = data_of(kWrite, "positions", positions), p.slots = data_of(kWrite, "slots", slots);
  set_scales(kWrite, k_scale, v_scale, &p);
  raise_if_error(rotary_write::check_entries(p));
}

template <typename Which>
std::string named(const char* op, const std::string& device, const Which& which) {
  expect(op, device == "cpu" || device == "cuda", "device", "cpu or cuda", device);
  std::string name;
  raise_if_error(which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
  return name;
}

}  // namespace

void bind_paged(nb::module_& module) {
  using namespace nb::literals;
  module.def("paged_attention", &attend, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
             "out"_a.noconvert(), "page_table"_a.noconvert(), "lengths"_a.noconvert(),
             "cu_seqlens_q"_a.none().noconvert(), "k_scale"_a.none().noconvert(),
             "v_scale"_a.none().noconvert(), "queries"_a, "scale"_a, "piece_keys"_a = paged::kPieceKeys,
             "stages"_a = 0, "stream"_a = 0, "allocate"_a = nb::none(), "fault"_a.noconvert() = nb::none());
  module.def("paged_attention_check", &check_attention, "page_table"_a.noconvert(), "lengths"_a.noconvert(),
             "cu_seqlens_q"_a.none().noconvert(), "k_scale"_a.none().noconvert(),
             "v_scale"_a.none().noconvert(), "tokens"_a, "queries"_a, "pages"_a, "page_size"_a);
  module.def("rotary_write", &write, "qkv"_a.noconvert(), "bias"_a.none().noconvert(),
             "positions"_a.noconvert(), "slots"_a.noconvert(), "q"_a.noconvert(), "k"_a.noconvert(),
             "v"_a.noconvert(), "k_scale"_a.none().noconvert(), "v_scale"_a.none().noconvert(), "theta"_a,
             "stream"_a = 0, "allocate"_a = nb::none(), "fault"_a.noconvert() = nb::none());
  module.def("rotary_write_check", &check_write, "positions"_a.noconvert(), "slots"_a.noconvert(),
             "k_scale"_a.none().noconvert(), "v_scale"_a.none().noconvert(), "pages"_a, "page_size"_a);
  module.def(
      "paged_attention_which",
      [](const std::string& device) { return named(kAttention, device, paged::which); }, "device"_a);
  module.def(
      "rotary_write_which",
      [](const std::string& device) { return named(kWrite, device, rotary_write::which); }, "device"_a);
}

}  // namespace earnest::bindings
