// SPDX-License-Identifier: Apache-2.0
// What attention.cc and the CPU back ends share: one unit of work, and the table of functions that each tier
// offers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/attention.h"

namespace earnest::attention {

// Functions in this header are static, so that each tier compiles its own copy with its own instructions.

constexpr int kTileKeys = 64;       // keys per tile, counted from the sequence's first key
constexpr int kPartKeys = 512;      // keys of one partial softmax, counted likewise: a rule for every row
constexpr int kForwardRows = 384;   // query rows that share one pass over the keys
constexpr int kFewRows = 8;         // up to here a unit's rows are computed one by one, as in decoding
constexpr int kMostHeads = 8;       // key heads whose few rows may be computed together
constexpr int kBackwardRows = 192;  // query rows that share one pass over the keys backward
constexpr int64_t kDimPadding = 16;

static inline int64_t padded_dim(int64_t dim) { return (dim + kDimPadding - 1) / kDimPadding * kDimPadding; }

static inline int64_t parts_of(int64_t keys) {
  return keys <= kPartKeys ? 1 : (keys + kPartKeys - 1) / kPartKeys;
}

// One sequence seen from one key head. The heads / kv_heads query heads of every token are stacked:
// row = token * group + head_in_group, so that rows with one position are neighbours.
struct Unit {
  int64_t kv_head = 0;
  int64_t query_begin = 0, queries = 0;           // tokens of the sequence in q
  int64_t key_begin = 0, keys = 0, capacity = 0;  // tokens of the sequence in k; keys of capacity are used
  int64_t row_begin = 0, row_end = 0;             // stacked rows to compute
};

Unit unit_of(const Params& params, int64_t sequence, int64_t kv_head);

// Sums of dk, then of dv, in the type of arithmetic: [2][keys, rounded up to 8][padded_dim].
struct KeySums {
  void* memory = nullptr;
  int64_t keys = 0;
};

// `next` is a unit of the sequence that this thread computes next, or null: its memory is asked for in time.
struct Backend {
  void (*forward)(const Params&, const Output&, const Unit&, const Unit* next, void* scratch) = nullptr;
  // The same in two steps: part by part of kPartKeys keys, each into partial_bytes of memory, and joined.
  // The first takes the unit and the same of the heads after it, `heads` in all (one, or where it has no more
  // than kFewRows rows, up to kMostHeads), their partials `apart` bytes from each other.
  void (*forward_part)(const Params&, const Unit&, int64_t heads, int64_t part, void* partials, size_t apart,
                       void* scratch) = nullptr;
  void (*forward_join)(const Params&, const Output&, const Unit&, void* partials, size_t partial_bytes,
                       void* scratch) = nullptr;
  // grad_q of the unit's rows, and what they add to the gradients of the keys they see; then the latter of
  // keys [begin, end), from all units of a sequence and key head, in order.
  void (*backward)(const Params&, const Gradients&, const Unit&, const KeySums&, const Unit* next,
                   void* scratch) = nullptr;
  void (*write_key_gradients)(const Params&, const Gradients&, const Unit&, int64_t begin, int64_t end,
                              int64_t count, const KeySums* sums) = nullptr;
};

// Null where this build has no such tier.
Backend scalar_backend(Type type);
Backend avx2_backend(Type type);
Backend avx512_backend(Type type);
Backend avx512_bf16_backend();

// Bytes of 64-byte-aligned scratch for one unit, enough for every tier.
size_t forward_scratch_bytes(int64_t dim);
size_t backward_scratch_bytes(int64_t dim);
size_t partial_bytes(Type type, int64_t dim, int64_t rows);

Status check(const Params& params);
Status check(const Params& params, const Output& output);
Status check(const Params& params, const Gradients& gradients);

}  // namespace earnest::attention
