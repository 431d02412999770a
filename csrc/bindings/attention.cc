// SPDX-License-Identifier: Apache-2.0
// kernels/attention for Python: arrays in, status out. What lengths and pointers must be is checked by the
// kernels.
#include "kernels/attention/attention.h"

#include <optional>
#include <utility>

#include "csrc/bindings/place.h"

namespace earnest::bindings {
namespace {

using attention::Gradients;
using attention::Params;
using attention::Type;
using Lengths = std::optional<AnyInput<int32_t, 1>>;
using Read = nb::ndarray<nb::ro, nb::c_contig>;       // [..., heads, dim]
using Lse = nb::ndarray<const double, nb::c_contig>;  // [..., heads]
using WriteLse = nb::ndarray<double, nb::c_contig>;
using Write = nb::ndarray<nb::c_contig>;

std::string shape_of(const Read& x) {
  std::string text = "[";
  for (size_t i = 0; i < x.ndim(); ++i) text += (i ? ", " : "") + std::to_string(x.shape(i));
  return text + "]";
}

void expect(bool holds, const char* argument, const std::string& expected, const std::string& got) {
  if (!holds) raise_if_error(invalid_argument("attention", argument, expected, got));
}

Type type_of(const Read& q) {
  if (q.dtype() == nb::dtype<float>()) return Type::kFloat32;
  if (q.dtype() == nb::dtype<double>()) return Type::kFloat64;
  const auto dtype = q.dtype();
  if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && dtype.bits == 16)
    return Type::kFloat16;
  expect(dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && dtype.bits == 16, "q",
         "float32, float64 or bfloat16", "another dtype");
  return Type::kBFloat16;
}

attention::CudaPath path_of(const std::string& name) {
  expect(name == "best" || name == "sm80" || name == "sm90a", "path", "best, sm80 or sm90a", name);
  return name == "sm80"    ? attention::CudaPath::kSm80
         : name == "sm90a" ? attention::CudaPath::kSm90a
                           : attention::CudaPath::kBest;
}

attention::Schedule schedule_of(const std::string& name) {
  using attention::Schedule;
  for (const auto& [known, schedule] :
       {std::pair{"best", Schedule::kBest}, std::pair{"series", Schedule::kSeries},
        std::pair{"turns", Schedule::kTurns}, std::pair{"ahead", Schedule::kAhead},
        std::pair{"both", Schedule::kBoth}, std::pair{"wide", Schedule::kWide}}) {
    if (name == known) return schedule;
  }
  expect(false, "schedule", "best, series, turns, ahead, both or wide", name);
  return Schedule::kBest;
}

int64_t rows_of(const Read& x, size_t trailing) {
  int64_t rows = 1;
  for (size_t i = 0; i + trailing < x.ndim(); ++i) rows *= static_cast<int64_t>(x.shape(i));
  return rows;
}

void expect_like(const char* argument, const Read& x, const Read& like) {
  bool same = x.ndim() == like.ndim() && x.dtype() == like.dtype();
  for (size_t i = 0; same && i < x.ndim(); ++i) same = x.shape(i) == like.shape(i);
  expect(same, argument, "shape " + shape_of(like) + " and the same dtype", shape_of(x));
}

Params params_of(const Place& place, const Read& q, const Read& k, const Read& v, const Lengths& cu_seqlens_q,
                 const Lengths& cu_seqlens_k, const Lengths& seqused_k, int64_t sequences, bool causal,
                 double scale) {
  expect(q.ndim() >= 2 && k.ndim() == q.ndim(), "q, k", "shapes [..., heads, dim] of as many axes",
         shape_of(q) + " and " + shape_of(k));
  expect(k.dtype() == q.dtype() && k.shape(k.ndim() - 1) == q.shape(q.ndim() - 1), "k",
         "the head size and dtype of q " + shape_of(q), shape_of(k));
  expect_like("v", v, k);
  Params p;
  p.type = type_of(q);
  p.sequences = sequences;
  p.tokens_q = rows_of(q, 2);
  p.tokens_k = rows_of(k, 2);
  p.heads = static_cast<int64_t>(q.shape(q.ndim() - 2));
  p.kv_heads = static_cast<int64_t>(k.shape(k.ndim() - 2));
  p.dim = static_cast<int64_t>(q.shape(q.ndim() - 1));
  const auto lengths = [&](const char* argument, const Lengths& x, int64_t size) -> const int32_t* {
    if (!x) return nullptr;
    expect(static_cast<int64_t>(x->shape(0)) == size, argument, std::to_string(size) + " entries",
           std::to_string(x->shape(0)));
    return place.data(argument, x);
  };
  p.cu_seqlens_q = lengths("cu_seqlens_q", cu_seqlens_q, sequences + 1);
  p.cu_seqlens_k = lengths("cu_seqlens_k", cu_seqlens_k, sequences + 1);
  p.seqused_k = lengths("seqused_k", seqused_k, sequences);
  p.causal = causal;
  p.scale = scale;
  p.q = place.data("q", q);
  p.k = place.data("k", k);
  p.v = place.data("v", v);
  p.device = place.device();
  p.stream = place.stream();
  p.fault = place.fault();
  return p;
}

void expect_lse(size_t size, const Params& p) {
  const int64_t rows = p.tokens_q * p.heads;
  expect(static_cast<int64_t>(size) == rows, "lse", std::to_string(rows) + " numbers", std::to_string(size));
}

void forward(const Read& q, const Read& k, const Read& v, const Write& out,
             const std::optional<WriteLse>& lse, const Lengths& cu_seqlens_q, const Lengths& cu_seqlens_k,
             const Lengths& seqused_k, int64_t sequences, bool causal, double scale, uintptr_t stream,
             const std::optional<nb::callable>& allocate, const FaultArray& fault, int tile_rows,
             const std::string& path, const std::string& schedule, int64_t most_keys) {
  const Place place("attention", q, {stream, allocate, fault});
  Params p = params_of(place, q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k, sequences, causal, scale);
  expect_like("out", Read(out), q);
  if (lse) expect_lse(lse->size(), p);
  const attention::Output output{place.data("out", out), place.data("lse", lse)};
  p.tile_rows = tile_rows;
  p.path = path_of(path);
  p.schedule = schedule_of(schedule);
  p.most_keys = most_keys;
  Workspace workspace(place, attention::workspace_size(p));
  p.workspace = workspace.data();
  Status status;
  {
    nb::gil_scoped_release release;
    status = attention::forward(p, output);
  }
  raise_if_error(status);
}

void backward(const Read& q, const Read& k, const Read& v, const Read& out, const Lse& lse,
              const Read& grad_out, const std::optional<Lse>& grad_lse, const Write& grad_q,
              const Write& grad_k, const Write& grad_v, const Lengths& cu_seqlens_q,
              const Lengths& cu_seqlens_k, const Lengths& seqused_k, int64_t sequences, bool causal,
              double scale, uintptr_t stream, const std::optional<nb::callable>& allocate,
              const FaultArray& fault, int tile_rows, const std::string& path) {
  const Place place("attention", q, {stream, allocate, fault});
  Params p = params_of(place, q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k, sequences, causal, scale);
  expect_like("out", out, q);
  expect_like("grad_out", grad_out, q);
  expect_like("grad_q", Read(grad_q), q);
  expect_like("grad_k", Read(grad_k), k);
  expect_like("grad_v", Read(grad_v), k);
  expect_lse(lse.size(), p);
  if (grad_lse) expect_lse(grad_lse->size(), p);
  const Gradients gradients{place.data("out", out),           place.data("lse", lse),
                            place.data("grad_out", grad_out), place.data("grad_lse", grad_lse),
                            place.data("grad_q", grad_q),     place.data("grad_k", grad_k),
                            place.data("grad_v", grad_v)};
  p.tile_rows = tile_rows;
  p.path = path_of(path);
  Workspace workspace(place, attention::backward_workspace_size(p));
  p.workspace = workspace.data();
  Status status;
  {
    nb::gil_scoped_release release;
    status = attention::backward(p, gradients);
  }
  raise_if_error(status);
}

std::string which(const std::string& device, const std::string& dtype, int64_t dim) {
  expect(device == "cpu" || device == "cuda", "device", "cpu or cuda", device);
  expect(dtype == "float32" || dtype == "float64" || dtype == "bfloat16" || dtype == "float16", "dtype",
         "float32, float64, bfloat16 or float16", dtype);
  std::string name;
  raise_if_error(attention::which(device == "cuda" ? Device::kCuda : Device::kCpu,
                                  dtype == "float32"   ? Type::kFloat32
                                  : dtype == "float64" ? Type::kFloat64
                                  : dtype == "float16" ? Type::kFloat16
                                                       : Type::kBFloat16,
                                  dim, &name));
  return name;
}

}  // namespace

void bind_attention(nb::module_& module) {
  module.def("attention_forward", &forward, nb::arg("q").noconvert(), nb::arg("k").noconvert(),
             nb::arg("v").noconvert(), nb::arg("out").noconvert(), nb::arg("lse").none().noconvert(),
             nb::arg("cu_seqlens_q").none().noconvert(), nb::arg("cu_seqlens_k").none().noconvert(),
             nb::arg("seqused_k").none().noconvert(), nb::arg("sequences"), nb::arg("causal"),
             nb::arg("scale"), nb::arg("stream") = 0, nb::arg("allocate") = nb::none(),
             nb::arg("fault").noconvert() = nb::none(), nb::arg("tile_rows") = 0, nb::arg("path") = "best",
             nb::arg("schedule") = "best", nb::arg("most_keys") = 0);
  module.def("attention_backward", &backward, nb::arg("q").noconvert(), nb::arg("k").noconvert(),
             nb::arg("v").noconvert(), nb::arg("out").noconvert(), nb::arg("lse").noconvert(),
             nb::arg("grad_out").noconvert(), nb::arg("grad_lse").none().noconvert(),
             nb::arg("grad_q").noconvert(), nb::arg("grad_k").noconvert(), nb::arg("grad_v").noconvert(),
             nb::arg("cu_seqlens_q").none().noconvert(), nb::arg("cu_seqlens_k").none().noconvert(),
             nb::arg("seqused_k").none().noconvert(), nb::arg("sequences"), nb::arg("causal"),
             nb::arg("scale"), nb::arg("stream") = 0, nb::arg("allocate") = nb::none(),
             nb::arg("fault").noconvert() = nb::none(), nb::arg("tile_rows") = 0, nb::arg("path") = "best");
  module.def("attention_which", &which, nb::arg("device"), nb::arg("dtype"), nb::arg("dim"));
}

}  // namespace earnest::bindings
