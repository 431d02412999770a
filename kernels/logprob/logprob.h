// SPDX-License-Identifier: Apache-2.0
// Log-probability of chosen tokens, and entropy, from hidden states and an output matrix; the logits are
// never held.
//
//   z[n, v]    = dot(hidden[n, :], weight[v, :]) / temperature
//   lse[n]     = log sum_v exp(z[n, v])
//   logp[n]    = z[n, targets[n]] - lse[n]
//   entropy[n] = -sum_v p[n, v] log p[n, v],   p[n, v] = exp(z[n, v] - lse[n])            (nats)
//
// Backward recomputes z tile by tile, but for the first columns, whose z forward may keep. With a, e and l
// the gradients of logp, entropy and lse:
//   dz[n, v]       = a[n] [v = targets[n]] - p[n, v] (a[n] - l[n] + e[n] (log p[n, v] + entropy[n]))
//   grad_hidden[n] = sum_v dz[n, v] weight[v] / temperature,   grad_weight[v] = sum_n dz[n, v] hidden[n] /
//   temperature
//
// A row's results depend on that row and the matrix alone, bit for bit: not on the other rows of the call,
// nor on the number of threads. grad_weight adds rows in their order. A row with NaN or Inf gives NaN in its
// own outputs only; a logit of -inf has probability 0 and adds nothing to the entropy. On CUDA nobody looks
// at targets before: one outside [0, V) gives NaN for its row, and a record if `fault` is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/common/cuda_path.h"
#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::logprob {

// Row outputs and sums are float for kFloat32 and kBFloat16, double for kFloat64. The tier avx512_bf16
// multiplies bfloat16 as it is, and rounds dz to it; others widen it first.
enum class Type { kFloat32, kFloat64, kBFloat16 };

// CUDA's ways to a product. kBest: what EARNEST_CUDA_TIER forces, or else the choice of cuda_path.h.
using earnest::CudaPath;

struct Problem {
  Type type = Type::kFloat32;        // of hidden, weight and their gradients
  int64_t rows = 0;                  // N, may be 0
  int64_t depth = 0;                 // H, at least 1
  int64_t vocabulary = 0;            // V, at least 1
  double temperature = 1;            // finite and above 0
  const void* hidden = nullptr;      // [N, H]
  const void* weight = nullptr;      // [V, H]
  const int64_t* targets = nullptr;  // [N], each in [0, V)
  Device device = Device::kCpu;      // where to run, and where all arrays and the workspace lie
  // With Device::kCuda only. A call puts work on the stream, waits for nothing and allocates nothing.
  void* stream = nullptr;  // a cudaStream_t
  FaultWord* fault =
      nullptr;  // on the device, for targets outside [0, V) (device_fault.h); null: not recorded
  CudaPath path = CudaPath::kBest;
};

struct Forward {
  Problem problem;
  void* logp = nullptr;     // [N], float or double
  void* entropy = nullptr;  // [N]
  void* lse = nullptr;      // [N]
  void* logits = nullptr;   // [kept_size(problem)] for backward; null: not wanted
};

struct Backward {
  Problem problem;
  const void* entropy = nullptr;       // [N], from the forward run
  const void* lse = nullptr;           // [N], from the forward run
  const void* logits = nullptr;        // [kept_size(problem)], from the forward run; null: made again
  const void* grad_logp = nullptr;     // [N]; a null gradient means zeros
  const void* grad_entropy = nullptr;  // [N]
  const void* grad_lse = nullptr;      // [N]
  void* grad_hidden = nullptr;         // [N, H], written; null: not wanted
  void* grad_weight = nullptr;         // [V, H], written; null: not wanted
  // CUDA: bytes of the workspace that hold gradients of logits. More is faster; no bit depends on it.
  int64_t scratch = int64_t{64} << 20;
};

// Elements (of a row output's type) that forward can keep for backward: the logits of as many of the first
// columns as 16 MiB hold, so a small vocabulary is kept whole. They change no bit. None on CUDA.
int64_t kept_size(const Problem& problem);

// Bytes of scratch memory a run needs, all of it; README.md gives the formula. Bounded in N V: see kSlab and
// kChunk in logprob_tile.h, on CUDA `scratch`. It depends on the tier in force. `workspace` needs no
// alignment and no particular content.
size_t workspace_size(const Forward& forward);
size_t workspace_size(const Backward& backward);

Status run(const Forward& forward, void* workspace);
Status run(const Backward& backward, void* workspace);

// The same by plain loops, one thread, no scratch: the oracle.
Status run_reference(const Forward& forward);
Status run_reference(const Backward& backward);

// The back end that would run: "cpu/scalar", "cpu/avx2", "cpu/avx512", "cpu/avx512_bf16"; "cuda/sm80",
// "cuda/sm90a"; an error where there is none. Of a device: the best for any problem; of a problem: the one
// for it.
Status which(Device device, std::string* name);
Status which(const Problem& problem, std::string* name);

// What a word of faults says of these runs, in the words of the CPU's checks; ok for kNoFault.
Status fault(const Problem& problem, FaultWord word);

// What both directions check first: device, sizes, pointers, temperature, targets.
Status check(const Problem& problem);

}  // namespace earnest::logprob
