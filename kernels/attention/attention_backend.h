// SPDX-License-Identifier: Apache-2.0
// What attention.cc and the CPU back ends share: one unit of work, and the table of functions that each tier
// offers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/attention.h"

namespace earnest::attention {

// Functions in this header are static, so that each tier compiles its own copy with its own instructions.

constexpr int kTileKeys = 64;      // keys per tile, counted from the sequence's first key
constexpr int kForwardRows = 192;  // query rows that share one pass over the keys
constexpr int kBackwardRows = 48;  // query rows per step of the backward pass
constexpr int64_t kDimPadding = 16;

static inline int64_t padded_dim(int64_t dim) { return (dim + kDimPadding - 1) / kDimPadding * kDimPadding; }

// One sequence seen from one key head. The heads / kv_heads query heads of every token are stacked:
// row = token * group + head_in_group, so that rows with one position are neighbours.
struct Unit {
  int64_t kv_head = 0;
  int64_t query_begin = 0, queries = 0;           // tokens of the sequence in q
  int64_t key_begin = 0, keys = 0, capacity = 0;  // tokens of the sequence in k; keys of capacity are used
  int64_t row_begin = 0, row_end = 0;             // stacked rows to compute (forward)
};

// Where each of `count` stacked rows from `first` on lies among the [tokens_q, heads] rows of q, and how many
// keys it sees. Never decreasing, so that the last row of a block sees the most.
static inline void list_rows(const Params& params, const Unit& unit, int64_t first, int64_t count,
                             int64_t* at, int64_t* visible) {
  const int64_t group = params.heads / params.kv_heads;
  int64_t token = first / group, member = first % group;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t seen = params.causal ? token + 1 + unit.keys - unit.queries : unit.keys;
    at[i] = (unit.query_begin + token) * params.heads + unit.kv_head * group + member;
    visible[i] = seen < 0 ? 0 : seen;
    if (++member == group) member = 0, ++token;
  }
}

Unit unit_of(const Params& params, int64_t sequence, int64_t kv_head);

// Buffers of the backward pass over all sequences, in the type of arithmetic.
struct Workspace {
  void* delta = nullptr;   // [tokens_q, heads]: <grad_out, out> - grad_lse per row
  void* grad_q = nullptr;  // [tokens_q, heads, padded_dim]: sums, where grad_q itself cannot hold them
};

struct Backend {
  // `next` is a unit of the sequence that this thread computes next, or null: its memory is asked for in
  // time.
  void (*forward)(const Params&, const Output&, const Unit&, const Unit* next, void* scratch);
  void (*backward)(const Params&, const Gradients&, const Workspace&, const Unit&, const Unit* next,
                   void* scratch);
  bool needs_grad_q;  // whether backward wants Workspace::grad_q
};

// Null where this build has no such tier.
Backend scalar_backend(Type type, int64_t dim);
Backend avx2_backend(Type type, int64_t dim);
Backend avx512_backend(Type type, int64_t dim);

// Bytes of 64-byte-aligned scratch for one unit, enough for every tier.
size_t forward_scratch_bytes(int64_t dim);
size_t backward_scratch_bytes(int64_t dim);

Status unsupported_cuda();  // attention_nocuda.cc

Status check(const Params& params);
Status check(const Params& params, const Output& output);
Status check(const Params& params, const Gradients& gradients);

}  // namespace earnest::attention
