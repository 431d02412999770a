// SPDX-License-Identifier: Apache-2.0
// The formulas of rowwise.h by plain loops: everything in double, one rounding at the end.
#include <cmath>

#include "kernels/rowwise/rowwise.h"

namespace earnest::rowwise {
namespace {

double read(double value) { return value; }
double read(float value) { return value; }
double read(BFloat16 value) { return widen(value); }
void write(double value, double* out) { *out = value; }
void write(double value, float* out) { *out = static_cast<float>(value); }
void write(double value, BFloat16* out) { narrow(static_cast<float>(value), out); }

template <typename Stored>
double inverse_of(const RmsNorm<Stored>& job, const Stored* x) {
  double squares = 0;
  for (int64_t j = 0; j < job.width; ++j) squares += read(x[j]) * read(x[j]);
  return 1 / std::sqrt(squares / static_cast<double>(job.width) + job.eps);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

template <typename Stored>
void reference_rms_norm(const RmsNorm<Stored>& job) {
  for (int64_t i = 0; i < job.rows; ++i) {
    const Stored* x = job.x + i * job.width;
    const double inverse = inverse_of(job, x);
    write(inverse, job.inverse + i);
    for (int64_t j = 0; j < job.width; ++j)
      write(read(x[j]) * inverse * read(job.weight[j]), job.y + i * job.width + j);
  }
}

template <typename Stored>
void reference_rms_norm_backward(const RmsNorm<Stored>& job) {
  for (int64_t i = 0; i < job.rows; ++i) {
    const int64_t row = i * job.width;
    const double inverse = inverse_of(job, job.x + row);
    double along = 0;
    for (int64_t j = 0; j < job.width; ++j)
      along += read(job.grad_y[row + j]) * read(job.weight[j]) * read(job.x[row + j]) * inverse;
    for (int64_t j = 0; j < job.width; ++j) {
      const double h = read(job.grad_y[row + j]) * read(job.weight[j]), n = read(job.x[row + j]) * inverse;
      write(inverse * (h - n * along / static_cast<double>(job.width)), job.grad_x + row + j);
    }
  }
  for (int64_t j = 0; j < job.width; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < job.rows; ++i) {
      const int64_t row = i * job.width;
      sum += read(job.grad_y[row + j]) * read(job.x[row + j]) * inverse_of(job, job.x + row);
    }
    write(sum, job.grad_weight + j);
  }
}

template <typename Fused, typename Apart>
void reference_rotary(const Rotary<Fused, Apart>& job) {
  const int64_t heads = job.heads + 2 * job.kv_heads, half = job.dim / 2;
  for (int64_t i = 0; i < job.rows; ++i) {
    for (int64_t head = 0; head < heads; ++head) {
      const Fused* x = job.qkv + (i * heads + head) * job.dim;
      const bool is_q = head < job.heads, is_k = !is_q && head < job.heads + job.kv_heads;
      Apart* out = is_q   ? job.q + (i * job.heads + head) * job.dim
                   : is_k ? job.k + (i * job.kv_heads + head - job.heads) * job.dim
                          : job.v + (i * job.kv_heads + head - job.heads - job.kv_heads) * job.dim;
      for (int64_t j = 0; j < half; ++j) {
        const double c = is_q || is_k ? read(job.cosine[i * half + j]) : 1.0;
        const double s = is_q || is_k ? read(job.sine[i * half + j]) : 0.0;
        const double a = read(x[j]), b = read(x[j + half]);
        write(a * c - b * s, out + j);
        write(b * c + a * s, out + j + half);
      }
    }
  }
}

template <typename Stored>
void reference_swiglu(const SwiGlu<Stored>& job) {
  for (int64_t i = 0; i < job.rows; ++i) {
    const Stored *gate = job.gate_up + 2 * i * job.width, *up = gate + job.width;
    for (int64_t j = 0; j < job.width; ++j)
      write(read(gate[j]) * sigmoid(read(gate[j])) * read(up[j]), job.out + i * job.width + j);
  }
}

template <typename Stored>
void reference_swiglu_backward(const SwiGlu<Stored>& job) {
  for (int64_t i = 0; i < job.rows; ++i) {
    const Stored *gate = job.gate_up + 2 * i * job.width, *up = gate + job.width;
    Stored *grad_gate = job.grad_gate_up + 2 * i * job.width, *grad_up = grad_gate + job.width;
    for (int64_t j = 0; j < job.width; ++j) {
      const double grad = read(job.grad_out[i * job.width + j]), g = read(gate[j]), s = sigmoid(g);
      write(grad * read(up[j]) * s * (1 + g * (1 - s)), grad_gate + j);
      write(grad * g * s, grad_up + j);
    }
  }
}

#define EARNEST_ROWWISE_INSTANCES(Stored)                            \
  template void reference_rms_norm(const RmsNorm<Stored>&);          \
  template void reference_rms_norm_backward(const RmsNorm<Stored>&); \
  template void reference_swiglu(const SwiGlu<Stored>&);             \
  template void reference_swiglu_backward(const SwiGlu<Stored>&);    \
  template void reference_rotary(const Rotary<Stored, Stored>&);
EARNEST_ROWWISE_INSTANCES(float)
EARNEST_ROWWISE_INSTANCES(double)
EARNEST_ROWWISE_INSTANCES(BFloat16)
template void reference_rotary(const Rotary<BFloat16, float>&);

}  // namespace earnest::rowwise
