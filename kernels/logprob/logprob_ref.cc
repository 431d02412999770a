// SPDX-License-Identifier: Apache-2.0
// The oracle: the formulas of logprob.h, one row at a time, in double whatever the type.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/logprob/logprob.h"

namespace earnest::logprob {
namespace {

template <typename Stored>
void logits_of_row(const Problem& p, int64_t row, std::vector<double>* z) {
  const auto* hidden = static_cast<const Stored*>(p.hidden) + row * p.depth;
  for (int64_t v = 0; v < p.vocabulary; ++v) {
    const auto* weight = static_cast<const Stored*>(p.weight) + v * p.depth;
    double dot = 0;
    for (int64_t k = 0; k < p.depth; ++k) dot += static_cast<double>(widen(hidden[k])) * widen(weight[k]);
    (*z)[static_cast<size_t>(v)] = dot / p.temperature;
  }
}

template <typename Stored, typename Row>
void forward(const Forward& f) {
  const Problem& p = f.problem;
  std::vector<double> z(static_cast<size_t>(p.vocabulary));
  for (int64_t n = 0; n < p.rows; ++n) {
    logits_of_row<Stored>(p, n, &z);
    double max = -std::numeric_limits<double>::infinity(), sum = 0, product = 0;
    for (double value : z) max = std::max(max, value);
    for (double value : z) {
      const double e = std::exp(value - max);
      sum += e;
      if (e != 0) product += e * (value - max);
    }
    const double log_sum = std::log(sum);
    static_cast<Row*>(f.lse)[n] = static_cast<Row>(max + log_sum);
    static_cast<Row*>(f.logp)[n] = static_cast<Row>(z[static_cast<size_t>(p.targets[n])] - max - log_sum);
    static_cast<Row*>(f.entropy)[n] = static_cast<Row>(log_sum - product / sum);
  }
}

template <typename Stored, typename Row>
void backward(const Backward& b) {
  const Problem& p = b.problem;
  const auto depth = static_cast<size_t>(p.depth), vocabulary = static_cast<size_t>(p.vocabulary);
  const auto at = [](const void* values, int64_t n) {
    return values == nullptr ? 0.0 : static_cast<double>(static_cast<const Row*>(values)[n]);
  };
  std::vector<double> z(vocabulary), grad_row(depth), grad_weight(b.grad_weight ? vocabulary * depth : 0);
  for (int64_t n = 0; n < p.rows; ++n) {
    logits_of_row<Stored>(p, n, &z);
    std::fill(grad_row.begin(), grad_row.end(), 0.0);
    for (size_t v = 0; v < vocabulary; ++v) {
      const double log_p = z[v] - at(b.lse, n), probability = std::exp(log_p);
      const double slope =
          at(b.grad_logp, n) - at(b.grad_lse, n) + at(b.grad_entropy, n) * (log_p + at(b.entropy, n));
      double dz = probability == 0 ? 0 : -probability * slope;
      if (static_cast<int64_t>(v) == p.targets[n]) dz += at(b.grad_logp, n);
      dz /= p.temperature;
      const auto* weight = static_cast<const Stored*>(p.weight) + v * depth;
      const auto* hidden = static_cast<const Stored*>(p.hidden) + static_cast<size_t>(n) * depth;
      for (size_t k = 0; k < depth; ++k) {
        grad_row[k] += dz * widen(weight[k]);
        if (b.grad_weight) grad_weight[v * depth + k] += dz * widen(hidden[k]);
      }
    }
    if (!b.grad_hidden) continue;
    auto* out = static_cast<Stored*>(b.grad_hidden) + static_cast<size_t>(n) * depth;
    for (size_t k = 0; k < depth; ++k) narrow(static_cast<Row>(grad_row[k]), &out[k]);
  }
  auto* out = static_cast<Stored*>(b.grad_weight);
  for (size_t i = 0; i < grad_weight.size(); ++i) narrow(static_cast<Row>(grad_weight[i]), &out[i]);
}

}  // namespace

Status run_reference(const Forward& f) {
  if (Status status = check(f.problem); !status.ok()) return status;
  switch (f.problem.type) {
    case Type::kFloat32:
      forward<float, float>(f);
      break;
    case Type::kFloat64:
      forward<double, double>(f);
      break;
    case Type::kBFloat16:
      forward<BFloat16, float>(f);
      break;
  }
  return {};
}

Status run_reference(const Backward& b) {
  if (Status status = check(b.problem); !status.ok()) return status;
  switch (b.problem.type) {
    case Type::kFloat32:
      backward<float, float>(b);
      break;
    case Type::kFloat64:
      backward<double, double>(b);
      break;
    case Type::kBFloat16:
      backward<BFloat16, float>(b);
      break;
  }
  return {};
}

}  // namespace earnest::logprob
