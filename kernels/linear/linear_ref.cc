// SPDX-License-Identifier: Apache-2.0
// The definition, by plain loops: every sum in double, one rounding at the end.
#include "kernels/common/bfloat16.h"
#include "kernels/linear/linear.h"

namespace earnest::linear {
namespace {

void store(double value, double* out) { *out = value; }
void store(double value, float* out) { *out = static_cast<float>(value); }
void store(double value, BFloat16* out) { narrow(static_cast<float>(value), out); }

template <typename T>
void product(const Product& p, const Pack& pack) {
  const auto *left = static_cast<const T*>(p.left), *right = static_cast<const T*>(pack.source),
             *bias = static_cast<const T*>(p.bias);
  auto* output = static_cast<T*>(p.output);
  for (int64_t m = 0; m < p.rows; ++m) {
    for (int64_t n = 0; n < p.columns; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < p.depth; ++k) {
        const T factor = pack.transposed ? right[k * p.columns + n] : right[n * p.depth + k];
        sum += static_cast<double>(widen(left[m * p.depth + k])) * static_cast<double>(widen(factor));
      }
      store(sum + (bias == nullptr ? 0.0 : static_cast<double>(widen(bias[n]))), &output[m * p.columns + n]);
    }
  }
}

template <typename T>
void gradient(const WeightGradient& g) {
  const auto *grad_output = static_cast<const T*>(g.grad_output), *input = static_cast<const T*>(g.input);
  for (int64_t n = 0; n < g.outputs; ++n) {
    for (int64_t k = 0; k < g.inputs && g.grad_weight != nullptr; ++k) {
      double sum = 0;
      for (int64_t m = 0; m < g.rows; ++m) {
        sum += static_cast<double>(widen(grad_output[m * g.outputs + n])) *
               static_cast<double>(widen(input[m * g.inputs + k]));
      }
      store(sum, static_cast<T*>(g.grad_weight) + n * g.inputs + k);
    }
    if (g.grad_bias == nullptr) continue;
    double sum = 0;
    for (int64_t m = 0; m < g.rows; ++m) sum += static_cast<double>(widen(grad_output[m * g.outputs + n]));
    store(sum, static_cast<T*>(g.grad_bias) + n);
  }
}

}  // namespace

Status run_reference(const Product& p, const Pack& pack) {
  if (p.type == Type::kFloat64) product<double>(p, pack);
  if (p.type == Type::kFloat32) product<float>(p, pack);
  if (p.type == Type::kBFloat16) product<BFloat16>(p, pack);
  return {};
}

Status run_reference(const WeightGradient& g) {
  if (g.type == Type::kFloat64) gradient<double>(g);
  if (g.type == Type::kFloat32) gradient<float>(g);
  if (g.type == Type::kBFloat16) gradient<BFloat16>(g);
  return {};
}

}  // namespace earnest::linear
