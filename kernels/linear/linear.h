// SPDX-License-Identifier: Apache-2.0
// Matrix products of linear layers, y = x W^T + b, and of their backward pass, with weights packed once.
//
//   Product:         output[m, n] = sum_k left[m, k] right[n, k] + bias[n]
//   forward:         left = x [M, K],   right = W [N, K]               y  = x W^T + b
//   backward:        left = dy [M, N],  right = W, packed transposed   dx = dy W
//   WeightGradient:  grad_weight[n, k] = sum_m grad_output[m, n] input[m, k],   grad_bias[n] = sum_m
//   grad_output[m, n]
//
// One packed copy serves many rows and few. An output element is a sum over blocks of at most 512 of its
// depth, each block one chain of multiply-adds from zero, the blocks added in order, then the bias, then one
// rounding. So its bits depend on its own row, column and depth alone: not on how many rows there are, nor on
// the number of threads. float32 and float64 in their own arithmetic; bfloat16 multiplied exactly and summed
// in float32 (tiers with vdpbf16ps take pairs of the depth at a time, and numbers below 1.2e-38 as zero).
// Tiers may differ in the last bits. NaN and infinities follow IEEE arithmetic, and stay in their own row.
//
// On CUDA there is the product alone, in float32 and bfloat16. Nothing is packed there: it takes W itself,
// which whoever trains it may share. Of bits the same is promised, with other blocks: up to 8 strands of the
// depth (kernels/common/strands.h); both ways of our own to a product, for few rows and for many, have the
// same bits. The vendor's way, by name only, promises none of that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/common/device.h"
#include "kernels/common/status.h"
#include "kernels/common/thread_pool.h"

namespace earnest::linear {

enum class Type { kFloat32, kFloat64, kBFloat16 };

// CUDA's ways to a product. kFew: bfloat16, W read once for up to 64 rows. kSm80: tiles of 128 x 128, any
// product. kBest: the faster of these two, which have the same bits. kVendor: cuBLASLt, if there is one to
// load (linear_vendor.h); its bits may depend on how many rows there are.
enum class CudaPath { kBest, kSm80, kFew, kVendor };

// The right side of a product. Packed, it is `packed_size` bytes that hold its shape and type as well, the
// same for all tiers; they may be copied, but mean nothing to another version of this library. For the CPU
// only.
struct Pack {
  Type type = Type::kFloat32;
  int64_t columns = 0;           // at least 1
  int64_t depth = 0;             // at least 1
  bool transposed = false;       // source is [depth, columns] instead of [columns, depth]
  const void* source = nullptr;  // row-major
  Device device = Device::kCpu;
};
Status packed_size(const Pack& pack, size_t* bytes);
// A digest of 64 numbers spread over the source: a cheap look whether it is still what was packed. Two that
// differ mean a change; two that agree do not rule one out.
Status fingerprint(const Pack& pack, uint64_t* digest);
Status run(const Pack& pack, void* packed);  // packed: on an 8-byte boundary, a 64-byte one for full speed

// On CUDA: matrices with the same depth, one below the other. As they may lie anywhere, nothing is copied.
struct Part {
  const void* right = nullptr;  // [columns, depth]
  int64_t columns = 0;          // at least 1
  const void* bias = nullptr;   // [columns]; null: none
};

struct Product {
  Type type = Type::kFloat32;
  int64_t rows = 0;              // may be 0
  int64_t columns = 0;           // at least 1
  int64_t depth = 0;             // at least 1
  const void* left = nullptr;    // [rows, depth]
  const void* packed = nullptr;  // from Pack, of the same type, columns and depth; kCuda: W itself, row-major
  const void* bias = nullptr;    // [columns]; null: none
  void* output = nullptr;        // [rows, columns]
  Device device = Device::kCpu;  // where to run, and where all arrays and the workspace lie
  int threads = num_threads();   // at most
  // With Device::kCuda only. A call puts work on the stream, waits for nothing and allocates nothing.
  void* stream = nullptr;  // a cudaStream_t
  CudaPath path = CudaPath::kBest;
  // In place of packed and bias: 1 to 16, in the host's memory, whose columns add up to `columns`.
  const Part* parts = nullptr;
  int64_t count = 0;
};

struct WeightGradient {  // on the CPU
  Type type = Type::kFloat32;
  int64_t rows = 0;                   // M, may be 0: gradients of zero
  int64_t outputs = 0;                // N, at least 1
  int64_t inputs = 0;                 // K, at least 1
  const void* grad_output = nullptr;  // [M, N]
  const void* input = nullptr;        // [M, K]; may be null where grad_weight is
  void* grad_weight = nullptr;        // [N, K]; null: not wanted
  void* grad_bias = nullptr;          // [N]; null: not wanted
  Device device = Device::kCpu;
  int threads = num_threads();  // at most
};

// Bytes of scratch memory, which needs no alignment and no particular content; README.md gives the formula.
// A problem with bad sizes needs none, nor do CUDA's own ways: the workspace may be null where it is 0.
size_t workspace_size(const Product& product);
size_t workspace_size(const WeightGradient& gradient);

Status run(const Product& product, void* workspace);
Status run(const WeightGradient& gradient, void* workspace);

// The same by plain loops in double from the unpacked right side (source of `pack`): the oracle.
Status run_reference(const Product& product, const Pack& pack);
Status run_reference(const WeightGradient& gradient);

// The back end that would run: "cpu/scalar", ..., "cpu/avx512_bf16"; "cuda/sm80", "cuda/few", "cuda/vendor";
// an error where there is none. All types run on all tiers. Of a device: the one for many rows; of a product,
// which may be without arrays: the one for it.
Status which(Device device, std::string* name);
Status which(const Product& product, std::string* name);

// Whether there is a library for kVendor. If not, the sentence of whoever asks: "[op] argument: expected
// `others` (vendor needs cuBLASLt: ...), got vendor (...)".
Status find_vendor(const char* op, const char* argument, const char* others);

}  // namespace earnest::linear
