// SPDX-License-Identifier: Apache-2.0
// What a decoder does to each token between its matrix products, in one pass over memory each: RMS norm,
// rotary positions, SwiGLU; forward and backward. A row's result depends on that row alone, bit for bit.
//
// Stored types: float, double, BFloat16; arithmetic in float for the first and last, in double for double.
// Device::kCuda runs the forward passes of float and BFloat16: all arrays lie on the device, and a call puts
// work on the stream, waits for nothing and allocates nothing. Its sums go in another order than the CPU's.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/common/bfloat16.h"
#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::rowwise {

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

//   inverse_i = 1 / sqrt(mean_j x_ij^2 + eps)      y_ij = x_ij inverse_i weight_j        (arXiv 1910.07467)
// With `added`, x + added, rounded to the stored type, goes to `sum` and stands for x: what closes one
// residual branch and begins the next. Backward, with n = x inverse and h = grad_y weight:
//   grad_x = inverse (h - n mean_j(h n))           grad_weight_j = sum_i grad_y_ij n_ij
template <typename Stored>
struct RmsNorm {
  int64_t rows = 0, width = 0;
  double eps = 0;                             // above 0
  const Stored* x = nullptr;                  // [rows, width]
  const Stored* weight = nullptr;             // [width]
  Stored* y = nullptr;                        // [rows, width], out
  Arithmetic<Stored>* inverse = nullptr;      // [rows], out of the forward pass, into the backward pass
  const Stored* grad_y = nullptr;             // backward: [rows, width]
  Stored* grad_x = nullptr;                   // backward: [rows, width], out
  Arithmetic<Stored>* grad_weight = nullptr;  // backward: [width], out
  const Stored* added = nullptr;              // forward: [rows, width]; null: nothing
  Stored* sum = nullptr;                      // [rows, width], out where something is added; may be x
  void* stream = nullptr;                     // of Device::kCuda: a cudaStream_t
};

// The columns of qkv [rows, (heads + 2 kv_heads) dim] are the query heads, the key heads and the value heads
// of a token. Queries and keys are turned by the angles of the token's position, values are taken as they are
// (arXiv 2104.09864; pairs (j, j + dim / 2), as in Qwen2):
//   out_j = x_j cos_j - x_{j + dim/2} sin_j        out_{j + dim/2} = x_{j + dim/2} cos_j + x_j sin_j
// The backward pass turns the gradients of q and k back, and lays all three side by side again.
template <typename Fused, typename Apart>
struct Rotary {
  int64_t rows = 0, heads = 0, kv_heads = 0, dim = 0;  // dim even
  const Arithmetic<Fused>* cosine = nullptr;           // [rows, dim / 2]
  const Arithmetic<Fused>* sine = nullptr;             // [rows, dim / 2]
  Fused* qkv = nullptr;                                // read forward, written backward
  Apart* q = nullptr;                                  // [rows, heads, dim], written forward, read backward
  Apart* k = nullptr;                                  // [rows, kv_heads, dim]
  Apart* v = nullptr;                                  // [rows, kv_heads, dim]
  // Forward: key and value of row i go to row slots_i of k and v, which then have `places` rows: a cache.
  // Null: to row i. On CUDA nobody looks at slots before: one outside [0, places) keeps nothing and is
  // recorded if `fault` is there, but for -1, of a row that is to keep nothing.
  const int64_t* slots = nullptr;  // [rows]
  int64_t places = 0;
  void* stream = nullptr;      // of Device::kCuda: a cudaStream_t
  FaultWord* fault = nullptr;  // on the device (device_fault.h)
};

//   out_ij = silu(gate_ij) up_ij,  silu(g) = g / (1 + exp(-g))                            (arXiv 2002.05202)
template <typename Stored>
struct SwiGlu {
  int64_t rows = 0, width = 0;
  const Stored* gate_up = nullptr;   // [rows, 2 width]: the gates of a row, then its ups
  Stored* out = nullptr;             // [rows, width], out
  const Stored* grad_out = nullptr;  // backward: [rows, width]
  Stored* grad_gate_up = nullptr;    // backward: [rows, 2 width], out
  void* stream = nullptr;            // of Device::kCuda: a cudaStream_t
};

template <typename Stored>
Status rms_norm(const RmsNorm<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status rms_norm_backward(const RmsNorm<Stored>& job, Device device = Device::kCpu);
template <typename Fused, typename Apart>
Status rotary(const Rotary<Fused, Apart>& job, Device device = Device::kCpu);
template <typename Fused, typename Apart>
Status rotary_backward(const Rotary<Fused, Apart>& job, Device device = Device::kCpu);
template <typename Stored>
Status swiglu(const SwiGlu<Stored>& job, Device device = Device::kCpu);
template <typename Stored>
Status swiglu_backward(const SwiGlu<Stored>& job, Device device = Device::kCpu);

// The oracles: plain loops in double, one rounding at the end. The backward pass of rotary is its forward
// pass with the sine negated.
template <typename Stored>
void reference_rms_norm(const RmsNorm<Stored>& job);
template <typename Stored>
void reference_rms_norm_backward(const RmsNorm<Stored>& job);
template <typename Fused, typename Apart>
void reference_rotary(const Rotary<Fused, Apart>& job);
template <typename Stored>
void reference_swiglu(const SwiGlu<Stored>& job);
template <typename Stored>
void reference_swiglu_backward(const SwiGlu<Stored>& job);

// The back end that would run, "cpu/avx512" or "cuda"; an error if there is none.
Status which(Device device, std::string* name);

// What a word of faults says of a rotary's slots; ok for kNoFault.
Status fault(FaultWord word);

}  // namespace earnest::rowwise
