// SPDX-License-Identifier: Apache-2.0
// The backward pass of a problem of plain_attention.h: by its definition in float64, by plain loops in
// float32 that round weights and the gradients of scores as any tensor core wants them, and by the device.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/cpp/plain_attention.h"

namespace plain_attention {

template <typename T>
struct GradientCase : Case<T> {
  std::vector<T> grad_out, grad_q, grad_k, grad_v;
  std::vector<double> grad_lse;  // empty: none comes that way

  GradientCase(const std::vector<int>& queries, const std::vector<int>& keys, int64_t heads, int64_t kv_heads,
               int64_t dim, bool causal, bool with_lse = false, unsigned seed = 1)
      : Case<T>(queries, keys, heads, kv_heads, dim, causal, seed), grad_out(this->q.size()) {
    std::mt19937 random(seed + 100);
    std::normal_distribution<double> normal;
    for (T& number : grad_out) number = number_of<T>(normal(random));
    if (with_lse) grad_lse.resize(this->lse.size());
    for (double& number : grad_lse) number = normal(random);
    soil_gradients();
  }

  void soil_gradients() {  // every element must be written
    grad_q.assign(this->q.size(), T{0xffff});
    grad_k.assign(this->k.size(), T{0xffff}), grad_v = grad_k;
  }
  // Of the gradients like q, and those like k and v.
  const T* row(const std::vector<T>& x, int64_t token, int64_t head) const {
    return &x[static_cast<size_t>((token * this->p.heads + head) * this->p.dim)];
  }
  const T* key_row(const std::vector<T>& x, int64_t token, int64_t head) const {
    return &x[static_cast<size_t>((token * this->p.kv_heads + head) * this->p.dim)];
  }
};

struct ExactGradients {
  std::vector<double> q, k, v;
};

template <typename T>
ExactGradients exact_gradients(GradientCase<T>* c) {
  const auto widened = [](const std::vector<T>& x) {
    std::vector<double> wide;
    for (const T& number : x) wide.push_back(widen(number));
    return wide;
  };
  const std::vector<double> q = widened(c->q), k = widened(c->k), v = widened(c->v),
                            grad_out = widened(c->grad_out), lse(c->lse.size());
  ExactGradients exact{std::vector<double>(q.size()), std::vector<double>(k.size()),
                       std::vector<double>(k.size())};
  Params p = c->on_host();
  p.type = Type::kFloat64;
  p.q = q.data(), p.k = k.data(), p.v = v.data();
  const double* grad_lse = c->grad_lse.empty() ? nullptr : c->grad_lse.data();
  CHECK(reference_backward(p, {q.data(), lse.data(), grad_out.data(), grad_lse, exact.q.data(),
                               exact.k.data(), exact.v.data()})
            .ok());
  return exact;
}

// In float32. The sum over out runs the other way than those over values: whoever makes it beforehand is not
// off as they are, so that a difference which ought to be 0 is not.
template <typename T>
void run_plain_backward(GradientCase<T>* c) {
  run_plain<T>(c);
  const Params p = c->on_host();
  const auto scale = static_cast<float>(p.scale);
  const auto dim = static_cast<size_t>(p.dim);
  std::vector<float> weights, sums_k(c->k.size()), sums_v(c->k.size());
  const auto rounded = [](float x) { return widen(number_of<T>(x)); };
  for (int64_t pair = 0; pair < p.sequences * p.heads; ++pair) {
    const int64_t head = pair % p.heads, kv_head = head / (p.heads / p.kv_heads);
    const Unit unit = earnest::attention::unit_of(p, pair / p.heads, kv_head);
    for (int64_t i = 0; i < unit.queries; ++i) {
      const int64_t sees = p.causal ? std::max<int64_t>(0, i + 1 + unit.keys - unit.queries) : unit.keys;
      const int64_t token = unit.query_begin + i;
      const T *query = c->query(token, head), *out = c->result(token, head),
              *grad = c->row(c->grad_out, token, head);
      float delta = 0, largest = -INFINITY, total = 0;
      for (size_t d = dim; d-- > 0;) delta += widen(grad[d]) * widen(out[d]);
      if (!c->grad_lse.empty())
        delta -= static_cast<float>(c->grad_lse[static_cast<size_t>(token * p.heads + head)]);
      weights.assign(static_cast<size_t>(sees), 0);
      for (int64_t j = 0; j < sees; ++j) {
        const T* key = c->key(unit.key_begin + j, kv_head);
        float sum = 0;
        for (size_t d = 0; d < dim; ++d) sum += widen(query[d]) * widen(key[d]);
        weights[static_cast<size_t>(j)] = sum * scale;
        largest = std::max(largest, sum * scale);
      }
      for (float& weight : weights) total += weight = std::exp(weight - largest);
      std::vector<float> sums_q(dim);
      for (int64_t j = 0; j < sees; ++j) {
        const T *key = c->key(unit.key_begin + j, kv_head), *value = c->value(unit.key_begin + j, kv_head);
        const float weight = weights[static_cast<size_t>(j)] / total;
        float grad_weight = 0;
        for (size_t d = 0; d < dim; ++d) grad_weight += widen(grad[d]) * widen(value[d]);
        const float grad_score = rounded(weight * (grad_weight - delta));
        const auto at = static_cast<size_t>(key - c->k.data());
        for (size_t d = 0; d < dim; ++d) {
          sums_q[d] += grad_score * widen(key[d]);
          sums_k[at + d] += grad_score * widen(query[d]);
          sums_v[at + d] += rounded(weight) * widen(grad[d]);
        }
      }
      for (size_t d = 0; d < dim; ++d)
        c->grad_q[static_cast<size_t>(query - c->q.data()) + d] = number_of<T>(sums_q[d] * scale);
    }
  }
  for (size_t i = 0; i < sums_k.size(); ++i) {
    c->grad_k[i] = number_of<T>(sums_k[i] * scale);
    c->grad_v[i] = number_of<T>(sums_v[i]);
  }
}

// Both passes. Gradients replace those of the case; what was recorded of its bounds by the second.
template <typename T>
earnest::Status run_backward_on_device(GradientCase<T>* c, earnest::FaultWord* fault = nullptr) {
  earnest::FaultWord ignored;
  if (earnest::Status status = run_on_device<T>(c, fault == nullptr ? nullptr : &ignored); !status.ok())
    return status;
  Lent lent(earnest::Device::kCuda);
  c->soil_gradients();
  const auto in = [&](const auto& x) { return x.empty() ? nullptr : lent.in(x.data(), x.size()); };
  const auto out = [&](auto& x) { return lent.out(x.data(), x.size()); };
  Params p = c->p;
  p.device = earnest::Device::kCuda;
  p.cu_seqlens_q = in(c->cu_q), p.cu_seqlens_k = in(c->cu_k), p.seqused_k = in(c->used);
  p.q = in(c->q), p.k = in(c->k), p.v = in(c->v);
  p.fault = lent.fault();
  p.workspace = lent.scratch(earnest::attention::backward_workspace_size(p));
  const earnest::Status status = backward(p, {in(c->out), in(c->lse), in(c->grad_out), in(c->grad_lse),
                                              out(c->grad_q), out(c->grad_k), out(c->grad_v)});
  const earnest::FaultWord word = lent.finish();
  if (fault != nullptr) {
    *fault = word;
  } else {
    CHECK(word == earnest::kNoFault);
  }
  return status;
}

}  // namespace plain_attention
