// SPDX-License-Identifier: Apache-2.0
// The formulas of frames.h as they stand there, in double.
#include <cmath>

#include "kernels/frames/frames.h"

namespace earnest::frames {
namespace {

template <typename Stored>
void round_to(double value, Stored* out) {
  narrow(static_cast<Arithmetic<Stored>>(value), out);
}

struct Moments {
  double mean, inverse;
};

template <typename Stored>
Moments moments(const LayerNorm<Stored>& job, int64_t row) {
  const Stored* x = job.x + row * job.width;
  double sum = 0, squares = 0;
  for (int64_t j = 0; j < job.width; ++j) sum += widen(x[j]);
  const double mean = sum / static_cast<double>(job.width);
  for (int64_t j = 0; j < job.width; ++j) squares += std::pow(widen(x[j]) - mean, 2);
  return {mean, 1 / std::sqrt(squares / static_cast<double>(job.width) + job.eps)};
}

double below(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0)); }

}  // namespace

template <typename Stored>
void reference(const LayerNorm<Stored>& job) {
  for (int64_t i = 0; i < job.rows; ++i) {
    const auto [mean, inverse] = moments(job, i);
    job.mean[i] = static_cast<Arithmetic<Stored>>(mean);
    job.inverse[i] = static_cast<Arithmetic<Stored>>(inverse);
    for (int64_t j = 0; j < job.width; ++j) {
      const double normed = (widen(job.x[i * job.width + j]) - mean) * inverse;
      round_to(normed * widen(job.weight[j]) + widen(job.bias[j]), job.y + i * job.width + j);
    }
  }
}

template <typename Stored>
void reference_backward(const LayerNorm<Stored>& job) {
  using T = Arithmetic<Stored>;
  const double width = static_cast<double>(job.width);
  for (int64_t j = 0; j < job.width; ++j) {
    double weight = 0, bias = 0;
    for (int64_t i = 0; i < job.rows; ++i) {
      const auto [mean, inverse] = moments(job, i);
      const double grad = widen(job.grad_y[i * job.width + j]);
      weight += grad * (widen(job.x[i * job.width + j]) - mean) * inverse;
      bias += grad;
    }
    job.grad_weight[j] = static_cast<T>(weight);
    job.grad_bias[j] = static_cast<T>(bias);
  }
  for (int64_t i = 0; i < job.rows; ++i) {
    const auto [mean, inverse] = moments(job, i);
    double sum = 0, along = 0;
    for (int64_t j = 0; j < job.width; ++j) {
      const int64_t at = i * job.width + j;
      const double h = static_cast<double>(widen(job.grad_y[at])) * widen(job.weight[j]);
      sum += h;
      along += h * (widen(job.x[at]) - mean) * inverse;
    }
    for (int64_t j = 0; j < job.width; ++j) {
      const int64_t at = i * job.width + j;
      const double h = static_cast<double>(widen(job.grad_y[at])) * widen(job.weight[j]);
      const double normed = (widen(job.x[at]) - mean) * inverse;
      round_to(inverse * (h - sum / width - normed * along / width), job.grad_x + at);
    }
  }
}

template <typename Stored>
void reference(const Gelu<Stored>& job) {
  for (int64_t i = 0; i < job.count; ++i) {
    const double x = widen(job.x[i]);
    round_to(x * below(x), job.y + i);
  }
}

template <typename Stored>
void reference_backward(const Gelu<Stored>& job) {
  for (int64_t i = 0; i < job.count; ++i) {
    const double x = widen(job.x[i]);
    round_to(widen(job.grad_y[i]) * (below(x) + x * density(x)), job.grad_x + i);
  }
}

#define EARNEST_FRAMES_INSTANCES(Stored)                      \
  template void reference(const LayerNorm<Stored>&);          \
  template void reference_backward(const LayerNorm<Stored>&); \
  template void reference(const Gelu<Stored>&);               \
  template void reference_backward(const Gelu<Stored>&);
EARNEST_FRAMES_INSTANCES(float)
EARNEST_FRAMES_INSTANCES(double)
EARNEST_FRAMES_INSTANCES(BFloat16)

}  // namespace earnest::frames
