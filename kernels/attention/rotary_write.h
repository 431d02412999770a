// SPDX-License-Identifier: Apache-2.0
// What stands between the product that makes queries, keys and values and attention over pages, in one pass:
// the bias, rotary positions, and the write of keys and values to their pages. On the CPU in plain loops, for
// programs that are tried without a GPU.
//
//   x = qkv + bias
//   angle_j = position / theta^(2 j / dim)                                           (arXiv 2104.09864)
//   out_j = x_j cos_j - x_{j + dim/2} sin_j     out_{j + dim/2} = x_{j + dim/2} cos_j + x_j sin_j
//
// for queries and keys, j < dim / 2, as in Qwen2; values are x. The convention is the CPU's
// (kernels/rowwise/rowwise.h), and so are cosine and sine (rotary_turn.h). Arithmetic is float32, rounded
// once. A token's results depend on that token alone.
//
// Slots: key and value of a token go to place slot % page_size of page slot / page_size. Slot -1: they are
// not kept (a row that only fills a captured graph). Two tokens with one slot: each number there is one's.
// Positions, slots and scales lie on the device and on CUDA nobody looks at them before. A position outside
// [0, 2^24] gives NaN for the token's queries and nothing is kept; a slot outside [-1, pages * page_size) or
// a scale that is not above 0 keeps nothing; all are recorded if `fault` is there, scales whatever is kept.
// On the CPU they are an error of the call, in the same words, and nothing is written.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/attention/paged_attention.h"
#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::attention::rotary_write {

struct Params {
  Device device = Device::kCpu;
  Type type = Type::kBFloat16;                    // of qkv, bias and q: bfloat16 or float16
  paged::Cache cache = paged::Cache::kAsQueries;  // type of k and v
  int64_t tokens = 0, heads = 0, kv_heads = 0;
  int64_t dim = 0;                     // 64 or 128
  int64_t pages = 0, page_size = 0;    // page_size a power of two, 16 to 256
  double theta = 0;                    // finite, above 0
  const void* qkv = nullptr;           // [tokens, (heads + 2 kv_heads) dim]; on CUDA begins on 16 bytes
  const void* bias = nullptr;          // [(heads + 2 kv_heads) dim], likewise; null: none
  const int64_t* positions = nullptr;  // [tokens]
  const int64_t* slots = nullptr;      // [tokens]
  const float* k_scale = nullptr;      // [kv_heads], of kFloat8: k holds keys divided by it
  const float* v_scale = nullptr;      // [kv_heads], the same of values
  void* q = nullptr;                   // [tokens, heads, dim], written
  void* k = nullptr;                   // [pages, kv_heads, page_size, dim], written at the slots
  void* v = nullptr;                   // [pages, kv_heads, page_size, dim], the same
  void* stream = nullptr;              // a cudaStream_t
  FaultWord* fault = nullptr;          // on the device (device_fault.h); null: not recorded
};

// On CUDA puts work on the stream; allocates nothing, waits for nothing.
Status run(const Params& params);

// The back end that would run: "cuda/simt", or "cpu/scalar".
Status which(Device device, std::string* name);

// What a word of faults says of a run; ok for kNoFault.
Status fault(const Params& params, FaultWord word);

// The same of the first wrong entry of positions, slots and scales in CPU memory.
Status check_entries(const Params& params);

}  // namespace earnest::attention::rotary_write
