// SPDX-License-Identifier: Apache-2.0
// Attention over pages on the CPU, for programs that are tried without a GPU: the keys and values of one
// sequence after the other are laid side by side, in float32, and attention.h's kernels take them. Hence a
// row's bits depend on its query and the keys that it sees, here too.
#include <algorithm>
#include <memory>
#include <new>

#include "kernels/attention/paged_backend.h"
#include "kernels/attention/paged_checks.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/float8.h"
#include "kernels/common/thread_pool.h"

namespace earnest::attention::paged {
namespace {

struct Sequence {
  int64_t begin, queries, keys;
};

Sequence sequence_at(const Params& p, int64_t n) {
  const int64_t begin = p.cu_seqlens_q == nullptr ? n * p.most_queries : p.cu_seqlens_q[n];
  const int64_t end = p.cu_seqlens_q == nullptr ? begin + p.most_queries : p.cu_seqlens_q[n + 1];
  return {begin, end - begin, p.lengths[n]};
}

// The first fault of a sequence's own entries, as the kernels number them.
FaultWord look_at(const Params& p, int64_t n) {
  const auto found = [&](int argument) { return word_of({FaultOp::kPagedAttention, n, argument}); };
  const Sequence s = sequence_at(p, n);
  if (s.begin < 0 || s.queries < 0 || s.begin + s.queries > p.tokens || s.queries > p.most_queries)
    return found(faults::kBounds);
  if (s.queries == 0) return kNoFault;
  if (s.keys < 0 || s.keys > p.table_pages * p.page_size) return found(faults::kLength);
  for (int64_t i = 0; i * p.page_size < s.keys; ++i) {
    const int32_t page = p.page_table[n * p.table_pages + i];
    if (page < 0 || page >= p.pages) return found(faults::kPage);
  }
  return kNoFault;
}

template <typename Number>
void widen_row(const Number* from, int64_t count, float scale, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]) * scale;
}

// to [keys, kv_heads, dim]: keys or values of sequence n.
template <typename Stored>
void gather(const Params& p, int64_t n, int64_t keys, const void* pool, const float* scales, float* to) {
  parallel_for(keys, [&](int64_t key) {
    const int64_t page = p.page_table[n * p.table_pages + key / p.page_size];
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      const int64_t row = (page * p.kv_heads + head) * p.page_size + key % p.page_size;
      widen_row(static_cast<const Stored*>(pool) + row * p.dim, p.dim,
                p.cache == Cache::kFloat8 ? scales[head] : 1.0f, to + (key * p.kv_heads + head) * p.dim);
    }
  });
}

template <typename Number, typename Stored>
Status run(const Params& p, const Output& output) {
  int64_t most_keys = 0;
  for (int64_t n = 0; n < p.sequences; ++n) {
    if (const Sequence s = sequence_at(p, n); s.queries > 0) most_keys = std::max(most_keys, s.keys);
  }
  const int64_t of_query = p.heads * p.dim, most_rows = p.most_queries * of_query;
  const int64_t most_of_keys = most_keys * p.kv_heads * p.dim;
  const size_t floats = static_cast<size_t>(2 * most_rows + 2 * most_of_keys);
  const std::unique_ptr<float[]> room(new (std::nothrow) float[floats]);
  const std::unique_ptr<double[]> lse(
      new (std::nothrow) double[static_cast<size_t>(p.most_queries * p.heads)]);
  if (!room || !lse) return {StatusCode::kOutOfMemory, "[paged_attention] keys: out of memory"};
  float *queries = room.get(), *out = queries + most_rows, *keys = out + most_rows,
        *values = keys + most_of_keys;
  for (int64_t n = 0; n < p.sequences; ++n) {
    const Sequence s = sequence_at(p, n);
    if (s.queries == 0) continue;
    widen_row(static_cast<const Number*>(p.q) + s.begin * of_query, s.queries * of_query, 1, queries);
    gather<Stored>(p, n, s.keys, p.k, p.k_scale, keys);
    gather<Stored>(p, n, s.keys, p.v, p.v_scale, values);
    attention::Params one;
    one.sequences = 1, one.tokens_q = s.queries, one.tokens_k = s.keys;
    one.heads = p.heads, one.kv_heads = p.kv_heads, one.dim = p.dim;
    one.causal = true, one.scale = p.scale;
    one.q = queries, one.k = keys, one.v = values;
    if (Status status = attention::forward(one, {out, lse.get()}); !status.ok()) return status;
    auto* to = static_cast<Number*>(output.out) + s.begin * of_query;
    for (int64_t i = 0; i < s.queries * of_query; ++i) narrow(out[i], &to[i]);
    if (output.lse == nullptr) continue;
    for (int64_t i = 0; i < s.queries * p.heads; ++i)
      output.lse[s.begin * p.heads + i] = static_cast<float>(lse[static_cast<size_t>(i)]);
  }
  return {};
}

template <typename Number>
Status run(const Params& p, const Output& output) {
  return p.cache == Cache::kFloat8 ? run<Number, Float8>(p, output) : run<Number, Number>(p, output);
}

}  // namespace

Status check_entries(const Params& p) {
  FaultWord first = kNoFault;
  bool any = false;
  for (int64_t n = 0; n < p.sequences; ++n) {
    first = std::min(first, look_at(p, n));
    any = any || sequence_at(p, n).queries > 0;
  }
  for (int64_t head = 0; any && p.cache == Cache::kFloat8 && head < p.kv_heads; ++head) {
    if (!is_scale(p.k_scale[head]) || !is_scale(p.v_scale[head]))
      first = std::min(first, word_of({FaultOp::kPagedAttention, head, faults::kScale}));
  }
  return fault(p, first);
}

Status run_cpu(const Params& p, const Output& output) {
  if (Status status = check_entries(p); !status.ok()) return status;
  return p.type == Type::kFloat16 ? run<Float16>(p, output) : run<BFloat16>(p, output);
}

Status which_cpu(std::string* name) { return attention::which(Device::kCpu, Type::kFloat32, 64, name); }

}  // namespace earnest::attention::paged
