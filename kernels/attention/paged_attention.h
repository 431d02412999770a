// SPDX-License-Identifier: Apache-2.0
// Attention of the newest one to eight queries of each sequence over keys and values in pages: decoding.
// attention.h has the formula. On the CPU, where the engine keeps its cache in one run, it is for programs
// that are tried without a GPU: keys and values are laid side by side, in float32, for attention.h's kernels.
//
// Key j of sequence n lies in page page_table[n, j / page_size], at place j % page_size. Query i of m sees
// keys j <= i + (length - m): the queries are the last tokens of the `lengths[n]` that the cache holds, their
// own keys included. A row that sees no key gives o = 0, lse = -inf.
//
// A row's bits depend on its query and the keys that it sees: not on the batch around it, nor on how many
// queries its sequence has, nor on which pages hold the keys. Every `piece_keys` keys are a softmax of their
// own, joined in ascending order. Sums and softmax are float32; on CUDA probabilities are rounded to q's type
// for the product with values. Exception to "sees": a NaN or Inf in V reaches the earlier
// queries of its own sequence in the same call (0 * NaN). What lies beyond the length is never read.
//
// Lengths, tables, bounds and scales lie on the device and on CUDA nobody looks at them before: a length
// outside [0, table_pages * page_size], a page outside [0, pages) or a scale that is not above 0 gives NaN
// for the rows it concerns, bounds that are wrong leave rows alone, and all are recorded if `fault` is there.
// Nothing is read or written outside. On the CPU they are an error of the call, in the same words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/attention/attention.h"
#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::attention::paged {

constexpr int64_t kMostQueries = 8;  // of a sequence in one call
constexpr int64_t kMostGroup = 16;   // query heads of a key head
constexpr int64_t kLeastPage = 16, kMostPage = 256;
constexpr int64_t kPieceKeys = 512;  // as on the CPU
constexpr int64_t kLeastPiece = 256, kMostPiece = 2048;
constexpr int kLeastStages = 2, kMostStages = 4;

// What pools hold: numbers of q's type; or e4m3 (common/float8.h), and for each key head a float that all its
// keys, and one that all its values are multiplied by. Not one for each page: that would have to be known
// when the first token of a page is written, and the rest of the page would have its bits depend on it.
enum class Cache { kAsQueries, kFloat8 };

struct Params {
  Device device = Device::kCpu;
  Type type = Type::kBFloat16;          // of q and out: bfloat16 or float16
  Cache cache = Cache::kAsQueries;      // type of k and v
  int64_t sequences = 0, tokens = 0;    // tokens: queries of all sequences together
  int64_t most_queries = 1;             // the most that one sequence has
  int64_t heads = 0, kv_heads = 0;      // heads is a multiple of kv_heads
  int64_t dim = 0;                      // 64 or 128
  int64_t pages = 0, page_size = 0;     // of the pools; page_size a power of two
  int64_t table_pages = 0;              // columns of page_table
  double scale = 1.0;                   // positive and finite
  const void* q = nullptr;              // [tokens, heads, dim]; on CUDA q, k and v begin on 16 bytes
  const void* k = nullptr;              // [pages, kv_heads, page_size, dim]
  const void* v = nullptr;              // [pages, kv_heads, page_size, dim]
  const float* k_scale = nullptr;       // [kv_heads], of kFloat8: finite, above 0
  const float* v_scale = nullptr;       // [kv_heads], of kFloat8: finite, above 0
  const int32_t* page_table = nullptr;  // [sequences, table_pages]; entries beyond the length may be anything
  const int32_t* lengths = nullptr;     // [sequences]
  const int32_t* cu_seqlens_q = nullptr;  // [sequences + 1]; null: each sequence has `most_queries`
  void* stream = nullptr;                 // a cudaStream_t
  FaultWord* fault = nullptr;             // on the device (device_fault.h); null: not recorded
  // What a bench on a GPU compares. On the CPU there is no choice: its kernels' pieces are of 512 keys.
  int64_t piece_keys = kPieceKeys;  // 256, 512, 1024 or 2048: another number gives other bits
  int stages = 0;                   // tiles of keys in shared memory, 2 to 4; 0: a rule's. Changes no bit
};

struct Output {
  void* out = nullptr;   // [tokens, heads, dim], of q's type
  float* lse = nullptr;  // [tokens, heads]; null: not wanted. float32: no backward pass reads it
};

// Bytes of scratch memory that a run needs on CUDA; of any alignment and content. They grow with what the
// table can hold (sequences * table_pages), not with the lengths, which only the device knows. None for
// sizes that a run refuses.
size_t workspace_size(const Params& params);

// On CUDA puts work on the stream; allocates nothing, waits for nothing.
Status run(const Params& params, const Output& output, void* workspace);

// The back end that would run: "cuda/sm80" (mma.sync, on every chip from compute capability 8.0 on), or
// attention's on the CPU.
Status which(Device device, std::string* name);

// What a word of faults says of a run; ok for kNoFault.
Status fault(const Params& params, FaultWord word);

// The same of the first wrong entry of lengths, tables, bounds and scales in CPU memory.
Status check_entries(const Params& params);

}  // namespace earnest::attention::paged
