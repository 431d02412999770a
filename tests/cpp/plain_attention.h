// SPDX-License-Identifier: Apache-2.0
// One problem of attention in numbers of 16 bits on the host, its arrays exactly as large as promised, and
// two who compute it: plain loops in float32, with weights rounded as any tensor core wants them, and the
// device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_backend.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "tests/cpp/on_device.h"

namespace plain_attention {

using earnest::narrow;
using earnest::widen;
using earnest::attention::Params;
using earnest::attention::Type;
using earnest::attention::Unit;

inline std::vector<int32_t> bounds_of(const std::vector<int>& lengths) {
  std::vector<int32_t> result{0};
  for (int length : lengths) result.push_back(result.back() + length);
  return result;
}

template <typename T>
T number_of(double x) {
  T result;
  narrow(static_cast<float>(x), &result);
  return result;
}

template <typename T>
struct Case {
  Params p;
  std::vector<int32_t> cu_q, cu_k, used;
  std::vector<T> q, k, v, out;
  std::vector<double> lse;

  Case(const std::vector<int>& queries, const std::vector<int>& keys, int64_t heads, int64_t kv_heads,
       int64_t dim, bool causal, unsigned seed = 1)
      : cu_q(bounds_of(queries)), cu_k(bounds_of(keys)) {
    p.type = std::is_same_v<T, earnest::Float16> ? Type::kFloat16 : Type::kBFloat16;
    p.sequences = static_cast<int64_t>(queries.size());
    p.tokens_q = cu_q.back(), p.tokens_k = cu_k.back();
    p.heads = heads, p.kv_heads = kv_heads, p.dim = dim, p.causal = causal;
    p.scale = 1 / std::sqrt(static_cast<double>(dim));
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (auto* x : {&q, &k, &v}) {
      x->resize(static_cast<size_t>(x == &q ? p.tokens_q * heads * dim : p.tokens_k * kv_heads * dim));
      for (T& number : *x) number = number_of<T>(normal(random));
    }
    soil();
  }

  void soil() {  // every element must be written
    out.assign(q.size(), T{0xffff});
    lse.assign(q.size() / static_cast<size_t>(p.dim), std::numeric_limits<double>::quiet_NaN());
  }
  Params on_host() {
    Params of_host = p;
    of_host.cu_seqlens_q = cu_q.empty() ? nullptr : cu_q.data();
    of_host.cu_seqlens_k = cu_k.empty() ? nullptr : cu_k.data();
    of_host.seqused_k = used.empty() ? nullptr : used.data();
    of_host.q = q.data(), of_host.k = k.data(), of_host.v = v.data();
    return of_host;
  }
  T* query(int64_t token, int64_t head) { return &q[static_cast<size_t>((token * p.heads + head) * p.dim)]; }
  T* result(int64_t token, int64_t head) {
    return &out[static_cast<size_t>((token * p.heads + head) * p.dim)];
  }
  T* key(int64_t token, int64_t head) { return &k[static_cast<size_t>((token * p.kv_heads + head) * p.dim)]; }
  T* value(int64_t token, int64_t head) {
    return &v[static_cast<size_t>((token * p.kv_heads + head) * p.dim)];
  }
};

// In float32; out in float32 too, rounded by the caller's measure of it.
template <typename T>
void run_plain(Case<T>* c) {
  const Params p = c->on_host();
  const auto scale = static_cast<float>(p.scale);
  std::vector<float> weights;
  for (int64_t pair = 0; pair < p.sequences * p.heads; ++pair) {
    const int64_t head = pair % p.heads, kv_head = head / (p.heads / p.kv_heads);
    const Unit unit = earnest::attention::unit_of(p, pair / p.heads, kv_head);
    for (int64_t i = 0; i < unit.queries; ++i) {
      const int64_t sees = p.causal ? std::max<int64_t>(0, i + 1 + unit.keys - unit.queries) : unit.keys;
      const T* query = c->query(unit.query_begin + i, head);
      weights.assign(static_cast<size_t>(sees), 0);
      float largest = -INFINITY, total = 0;
      for (int64_t j = 0; j < sees; ++j) {
        const T* key = c->key(unit.key_begin + j, kv_head);
        float sum = 0;
        for (int64_t d = 0; d < p.dim; ++d) sum += widen(query[d]) * widen(key[d]);
        weights[static_cast<size_t>(j)] = sum * scale;
        largest = std::max(largest, sum * scale);
      }
      for (float& weight : weights) total += weight = std::exp(weight - largest);
      c->lse[static_cast<size_t>((unit.query_begin + i) * p.heads + head)] =
          sees == 0 ? -INFINITY : largest + std::log(total);
      T* result = c->result(unit.query_begin + i, head);
      for (int64_t d = 0; d < p.dim; ++d) {
        float sum = 0;
        for (int64_t j = 0; j < sees; ++j)
          sum += widen(number_of<T>(weights[static_cast<size_t>(j)])) *
                 widen(c->value(unit.key_begin + j, kv_head)[d]);
        result[d] = number_of<T>(sees == 0 ? 0 : sum / total);
      }
    }
  }
}

// Results replace those of the case; what was recorded of its bounds.
template <typename T>
earnest::Status run_on_device(Case<T>* c, earnest::FaultWord* fault = nullptr) {
  Lent lent(earnest::Device::kCuda);
  c->soil();
  const auto bounds = [&](const std::vector<int32_t>& x) {
    return x.empty() ? nullptr : lent.in(x.data(), x.size());
  };
  Params p = c->p;
  p.device = earnest::Device::kCuda;
  p.cu_seqlens_q = bounds(c->cu_q), p.cu_seqlens_k = bounds(c->cu_k), p.seqused_k = bounds(c->used);
  p.q = lent.in(c->q.data(), c->q.size()), p.k = lent.in(c->k.data(), c->k.size());
  p.v = lent.in(c->v.data(), c->v.size());
  p.fault = lent.fault();
  p.workspace = lent.scratch(earnest::attention::workspace_size(p));
  const earnest::Status status =
      forward(p, {lent.out(c->out.data(), c->out.size()), lent.out(c->lse.data(), c->lse.size())});
  const earnest::FaultWord word = lent.finish();
  if (fault != nullptr) {
    *fault = word;
  } else {
    CHECK(word == earnest::kNoFault);
  }
  return status;
}

}  // namespace plain_attention
