// SPDX-License-Identifier: Apache-2.0
// Bias, rotary positions and the write to pages on the CPU, in plain loops, for programs that are tried
// without a GPU. One token after the other: two may have the same slot.
#include <algorithm>

#include "kernels/attention/paged_checks.h"
#include "kernels/attention/rotary_turn.h"
#include "kernels/attention/rotary_write_backend.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/float8.h"

namespace earnest::attention::rotary_write {
namespace {

constexpr int64_t kMostDim = 128;

// A head of the token with its bias, turned.
template <typename Number>
void load(const Number* row, const Number* bias, int64_t dim, const Turn* turns, float* x) {
  for (int64_t j = 0; j < dim; ++j) x[j] = widen(row[j]) + (bias == nullptr ? 0.0f : widen(bias[j]));
  if (turns == nullptr) return;
  for (int64_t j = 0; j < dim / 2; ++j) {
    const float a = x[j], b = x[j + dim / 2];
    x[j] = a * turns[j].cosine - b * turns[j].sine;
    x[j + dim / 2] = b * turns[j].cosine + a * turns[j].sine;
  }
}

template <typename Stored>
void store(const float* x, int64_t dim, float scale, Stored* to) {
  for (int64_t j = 0; j < dim; ++j) narrow(sizeof(Stored) == 1 ? x[j] / scale : x[j], &to[j]);
}

template <typename Number, typename Stored>
void write_token(const Params& p, int64_t token, const float* rates) {
  Turn turns[kMostDim / 2];
  float x[kMostDim];
  for (int64_t j = 0; j < p.dim / 2; ++j)
    turns[j] = turn_by(static_cast<float>(p.positions[token]) * rates[j]);
  const auto* row = static_cast<const Number*>(p.qkv) + token * (p.heads + 2 * p.kv_heads) * p.dim;
  const auto load_head = [&](int64_t head, bool turned) {
    const auto* bias = static_cast<const Number*>(p.bias);
    load(row + head * p.dim, bias == nullptr ? nullptr : bias + head * p.dim, p.dim, turned ? turns : nullptr,
         x);
  };
  for (int64_t head = 0; head < p.heads; ++head) {
    load_head(head, true);
    store(x, p.dim, 1, static_cast<Number*>(p.q) + (token * p.heads + head) * p.dim);
  }
  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  for (int64_t head = 0; head < p.kv_heads; ++head) {
    const int64_t place =
        ((slot / p.page_size * p.kv_heads + head) * p.page_size + slot % p.page_size) * p.dim;
    const bool scaled = p.cache == paged::Cache::kFloat8;
    load_head(p.heads + head, true);
    store(x, p.dim, scaled ? p.k_scale[head] : 1, static_cast<Stored*>(p.k) + place);
    load_head(p.heads + p.kv_heads + head, false);
    store(x, p.dim, scaled ? p.v_scale[head] : 1, static_cast<Stored*>(p.v) + place);
  }
}

template <typename Number, typename Stored>
void run(const Params& p) {
  float rates[kMostDim / 2];
  rates_of(p.dim, p.theta, rates);
  for (int64_t token = 0; token < p.tokens; ++token) write_token<Number, Stored>(p, token, rates);
}

template <typename Number>
void run(const Params& p) {
  p.cache == paged::Cache::kFloat8 ? run<Number, Float8>(p) : run<Number, Number>(p);
}

}  // namespace

Status check_entries(const Params& p) {
  const auto found = [](int64_t index, int argument) {
    return word_of({FaultOp::kRotaryWrite, index, argument});
  };
  FaultWord first = kNoFault;
  for (int64_t token = 0; token < p.tokens; ++token) {
    const int64_t position = p.positions[token], slot = p.slots[token];
    const bool good_position = position >= 0 && position <= kLastPosition;
    const bool good_slot = slot >= -1 && slot < p.pages * p.page_size;
    if (!good_position) first = std::min(first, found(token, faults::kPosition));
    if (!good_slot) first = std::min(first, found(token, faults::kSlot));
  }
  for (int64_t head = 0; p.tokens > 0 && p.cache == paged::Cache::kFloat8 && head < p.kv_heads; ++head) {
    if (!paged::is_scale(p.k_scale[head]) || !paged::is_scale(p.v_scale[head]))
      first = std::min(first, found(head, faults::kScale));
  }
  return fault(p, first);
}

Status run_cpu(const Params& p) {
  if (Status status = check_entries(p); !status.ok()) return status;
  p.type == Type::kFloat16 ? run<Float16>(p) : run<BFloat16>(p);
  return {};
}

}  // namespace earnest::attention::rotary_write
