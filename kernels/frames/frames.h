// SPDX-License-Identifier: Apache-2.0
// What an audio encoder does to its frames between its matrix products, in one pass over memory each: layer
// norm and exact GELU with their gradients, ReLU, the average of neighbours; the sum that closes every
// residual branch; and before all that, features turned into rows. A row's result depends on that row alone,
// bit for bit; where values stand alone, on the value.
//
// Stored types: float, double, BFloat16; arithmetic in float for the first and last, in double for double.
// Device::kCuda runs the forward passes of float and BFloat16: all arrays lie on the device, and a call puts
// work on the stream, waits for nothing and allocates nothing. Its sums go in another order than the CPU's.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/common/bfloat16.h"
#include "kernels/common/device.h"
#include "kernels/common/status.h"

namespace earnest::frames {

template <typename Stored>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <typename Stored>
using Arithmetic = typename ArithmeticOf<Stored>::type;

//   mean_i = mean_j x_ij     inverse_i = 1 / sqrt(mean_j (x_ij - mean_i)^2 + eps)
//   y_ij = (x_ij - mean_i) inverse_i weight_j + bias_j                                    (arXiv 1607.06450)
// Backward, with n = (x - mean) inverse and h = grad_y weight:
//   grad_x = inverse (h - mean_j h - n mean_j(h n))
//   grad_weight_j = sum_i grad_y_ij n_ij        grad_bias_j = sum_i grad_y_ij
template <typename Stored>
struct LayerNorm {
  int64_t rows = 0, width = 0;
  double eps = 0;                             // above 0
  const Stored* x = nullptr;                  // [rows, width]
  const Stored* weight = nullptr;             // [width]
  const Stored* bias = nullptr;               // [width]
  Stored* y = nullptr;                        // [rows, width], out
  Arithmetic<Stored>* mean = nullptr;         // [rows], out of the forward pass, into the backward pass
  Arithmetic<Stored>* inverse = nullptr;      // [rows], the same
  const Stored* grad_y = nullptr;             // backward: [rows, width]
  Stored* grad_x = nullptr;                   // backward: [rows, width], out
  Arithmetic<Stored>* grad_weight = nullptr;  // backward: [width], out
  Arithmetic<Stored>* grad_bias = nullptr;    // backward: [width], out
  void* stream = nullptr;                     // of Device::kCuda: a cudaStream_t
};

//   y = x Phi(x), Phi the distribution function of the normal distribution                (arXiv 1606.08415)
// Backward: grad_x = grad_y (Phi(x) + x phi(x)), phi its density
template <typename Stored>
struct Gelu {
  int64_t count = 0;
  const Stored* x = nullptr;
  Stored* y = nullptr;             // may be x
  const Stored* grad_y = nullptr;  // backward
  Stored* grad_x = nullptr;        // backward, out
  void* stream = nullptr;          // of Device::kCuda: a cudaStream_t
};

//   y = max(x, 0); NaN stays NaN
template <typename Stored>
struct Relu {
  int64_t count = 0;
  const Stored* x = nullptr;
  Stored* y = nullptr;     // may be x
  void* stream = nullptr;  // of Device::kCuda: a cudaStream_t
};

//   sum = x + y
template <typename Stored>
struct Add {
  int64_t count = 0;
  const Stored* x = nullptr;
  const Stored* y = nullptr;
  Stored* sum = nullptr;   // may be x or y
  void* stream = nullptr;  // of Device::kCuda: a cudaStream_t
};

//   y_i = (x_2i + x_{2i + 1}) / 2, the sum rounded to the stored type before it is halved
template <typename Stored>
struct AveragePool {
  int64_t rows = 0, width = 0;
  const Stored* x = nullptr;  // [2 rows, width]
  Stored* y = nullptr;        // [rows, width]
  void* stream = nullptr;     // of Device::kCuda: a cudaStream_t
};

//   y_ij = x_ji, rounded to the stored type
// Log-mel features have a row for each band, an encoder one for each frame. Of float and BFloat16 alone.
template <typename Stored>
struct Transpose {
  int64_t rows = 0, width = 0;
  const float* x = nullptr;  // [width, rows]
  Stored* y = nullptr;       // [rows, width]
  void* stream = nullptr;    // of Device::kCuda: a cudaStream_t
};

template <typename Stored>
Status run(const LayerNorm<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status run_backward(const LayerNorm<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status run(const Gelu<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status run_backward(const Gelu<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status run(const Relu<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status run(const Add<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status run(const AveragePool<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status run(const Transpose<Stored>& job, Device device = Device::kCpu);

// The same by plain loops in double, rounded once: the oracle.
template <typename Stored>
void reference(const LayerNorm<Stored>& job);
template <typename Stored>
void reference_backward(const LayerNorm<Stored>& job);
template <typename Stored>
void reference(const Gelu<Stored>& job);
template <typename Stored>
void reference_backward(const Gelu<Stored>& job);

// The back end that would run, "cpu/avx512" or "cuda"; an error if there is none.
Status which(Device device, std::string* name);

}  // namespace earnest::frames
