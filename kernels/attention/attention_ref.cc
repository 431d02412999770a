// SPDX-License-Identifier: Apache-2.0
// The oracle: the definition in plain float64 loops, rounded to the element type once at the end.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention_backend.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"

namespace earnest::attention {
namespace {

double read(Type type, const void* array, int64_t i) {
  if (type == Type::kFloat64) return static_cast<const double*>(array)[i];
  if (type == Type::kFloat32) return static_cast<const float*>(array)[i];
  if (type == Type::kFloat16) return widen(static_cast<const Float16*>(array)[i]);
  return widen(static_cast<const BFloat16*>(array)[i]);
}

void write(Type type, void* array, int64_t i, double x) {
  if (type == Type::kFloat64) {
    static_cast<double*>(array)[i] = x;
  } else if (type == Type::kFloat32) {
    static_cast<float*>(array)[i] = static_cast<float>(x);
  } else if (type == Type::kFloat16) {
    narrow(static_cast<float>(x), &static_cast<Float16*>(array)[i]);
  } else {
    narrow(static_cast<float>(x), &static_cast<BFloat16*>(array)[i]);
  }
}

int64_t row_in_q(const Params& p, const Unit& unit, int64_t row) {
  const int64_t group = p.heads / p.kv_heads;
  return (unit.query_begin + row / group) * p.heads + unit.kv_head * group + row % group;
}

int64_t visible_keys(const Params& p, const Unit& unit, int64_t row) {
  if (!p.causal) return unit.keys;
  return std::max<int64_t>(0, row / (p.heads / p.kv_heads) + 1 + unit.keys - unit.queries);
}

// Probabilities of one stacked row over the keys it sees; returns its log-sum-exp.
double probabilities(const Params& p, const Unit& unit, int64_t row, std::vector<double>* weights) {
  const int64_t q = row_in_q(p, unit, row) * p.dim;
  weights->assign(static_cast<size_t>(visible_keys(p, unit, row)), 0.0);
  double highest = -std::numeric_limits<double>::infinity(), total = 0;
  for (size_t j = 0; j < weights->size(); ++j) {
    const int64_t k = ((unit.key_begin + static_cast<int64_t>(j)) * p.kv_heads + unit.kv_head) * p.dim;
    for (int64_t d = 0; d < p.dim; ++d) (*weights)[j] += read(p.type, p.q, q + d) * read(p.type, p.k, k + d);
    (*weights)[j] *= p.scale;
    highest = std::max(highest, (*weights)[j]);
  }
  for (double& weight : *weights) total += weight = std::exp(weight - highest);
  for (double& weight : *weights) weight /= total;
  return weights->empty() ? -std::numeric_limits<double>::infinity() : highest + std::log(total);
}

}  // namespace

Status reference_forward(const Params& p, const Output& output) {
  if (Status status = check(p, output); !status.ok()) return status;
  std::vector<double> weights;
  for (int64_t pair = 0; pair < p.sequences * p.kv_heads; ++pair) {
    const Unit unit = unit_of(p, pair / p.kv_heads, pair % p.kv_heads);
    for (int64_t row = 0; row < unit.row_end; ++row) {
      const double lse = probabilities(p, unit, row, &weights);
      const int64_t at = row_in_q(p, unit, row);
      if (output.lse != nullptr) output.lse[at] = lse;
      for (int64_t d = 0; d < p.dim; ++d) {
        double sum = 0;
        for (size_t j = 0; j < weights.size(); ++j) {
          const int64_t v =
              ((unit.key_begin + static_cast<int64_t>(j)) * p.kv_heads + unit.kv_head) * p.dim + d;
          sum += weights[j] * read(p.type, p.v, v);
        }
        write(p.type, output.out, at * p.dim + d, sum);
      }
    }
  }
  return {};
}

Status reference_backward(const Params& p, const Gradients& g) {
  if (Status status = check(p, g); !status.ok()) return status;
  std::vector<double> weights, grad_k(static_cast<size_t>(p.tokens_k * p.kv_heads * p.dim)), grad_v(grad_k);
  for (int64_t pair = 0; pair < p.sequences * p.kv_heads; ++pair) {
    const Unit unit = unit_of(p, pair / p.kv_heads, pair % p.kv_heads);
    for (int64_t row = 0; row < unit.row_end; ++row) {
      probabilities(p, unit, row, &weights);
      const int64_t at = row_in_q(p, unit, row) * p.dim;
      std::vector<double> grad_q(static_cast<size_t>(p.dim)), grad_weights(weights.size());
      double delta = g.grad_lse == nullptr ? 0.0 : -g.grad_lse[row_in_q(p, unit, row)];
      for (size_t j = 0; j < weights.size(); ++j) {
        const int64_t k = ((unit.key_begin + static_cast<int64_t>(j)) * p.kv_heads + unit.kv_head) * p.dim;
        for (int64_t d = 0; d < p.dim; ++d) {
          const double grad_out = read(p.type, g.grad_out, at + d);
          grad_weights[j] += grad_out * read(p.type, p.v, k + d);
          grad_v[static_cast<size_t>(k + d)] += weights[j] * grad_out;
        }
        delta += weights[j] * grad_weights[j];
      }
      for (size_t j = 0; j < weights.size(); ++j) {
        const int64_t k = ((unit.key_begin + static_cast<int64_t>(j)) * p.kv_heads + unit.kv_head) * p.dim;
        const double grad_score = weights[j] * (grad_weights[j] - delta) * p.scale;
        for (int64_t d = 0; d < p.dim; ++d) {
          grad_q[static_cast<size_t>(d)] += grad_score * read(p.type, p.k, k + d);
          grad_k[static_cast<size_t>(k + d)] += grad_score * read(p.type, p.q, at + d);
        }
      }
      for (int64_t d = 0; d < p.dim; ++d) write(p.type, g.grad_q, at + d, grad_q[static_cast<size_t>(d)]);
    }
  }
  for (size_t i = 0; i < grad_k.size(); ++i) {
    write(p.type, g.grad_k, static_cast<int64_t>(i), grad_k[i]);
    write(p.type, g.grad_v, static_cast<int64_t>(i), grad_v[i]);
  }
  return {};
}

}  // namespace earnest::attention
