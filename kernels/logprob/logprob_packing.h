// SPDX-License-Identifier: Apache-2.0
// What both directions of the walk share: sizes, and packing of the operands.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/logprob/logprob_cpu.h"

namespace earnest::logprob {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t size_of_row(Type type) { return type == Type::kFloat64 ? 8 : 4; }
inline int64_t size_of_stored(Type type) { return type == Type::kBFloat16 ? 2 : size_of_row(type); }

// Hands out offsets of a workspace, each on a 64-byte boundary.
class Offsets {
 public:
  size_t take(int64_t elements, int64_t size) {
    const size_t offset = bytes_;
    bytes_ += static_cast<size_t>(round_up(elements * size, kAlignment));
    return offset;
  }
  size_t total() const { return bytes_ + kAlignment; }  // the caller's pointer may lie anywhere

  static char* aligned(void* workspace) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(workspace) % kAlignment);
    return static_cast<char*>(workspace) + (kAlignment - past) % kAlignment;
  }

 private:
  static constexpr int64_t kAlignment = 64;
  size_t bytes_ = 0;
};

// How much of a problem is packed at one time. `pair` numbers make a word: see logprob_tile.h.
struct Extent {
  int64_t words;  // of depth, in one packed row or column
  int64_t chunk;  // rows
  int64_t slab;   // columns

  Extent(const Problem& p, int64_t pair) {
    words = ceil_div(p.depth, pair);
    const int64_t deep = std::max(kPackedBytes / (words * size_of_row(p.type)) / kTile, int64_t{1}) * kTile;
    chunk = std::min({kChunk * pair, deep, round_up(p.rows, kRowBlock)});
    slab = std::min({kSlab, deep, round_up(p.vocabulary, kTile)});
  }
};

// Logits that forward keeps for backward if asked to: the first `tiles` tiles [tile][row][kTile].
struct Kept {
  int64_t tiles;
  int64_t rows;  // of a tile

  explicit Kept(const Problem& p) {
    rows = round_up(p.rows, kRowPad);
    const int64_t bytes = std::max(rows, kRowPad) * size_of_row(p.type);
    tiles = std::min(kKeptBytes / kTile / bytes, ceil_div(p.vocabulary, kTile));
  }
  // Where the logits of a tile begin; null if they are not kept. T may be const.
  template <typename T>
  T* at(T* logits, int64_t tile, int64_t row) const {
    return logits == nullptr || tile >= tiles ? nullptr : logits + (tile * rows + row) * kTile;
  }
};

// Packed operands of one slab of columns and one chunk of rows.
template <typename T>
class Packing {
 public:
  Packing(const Problem& problem, const TileKernels<T>& kernels)
      : p_(problem), k_(kernels), words_(ceil_div(problem.depth, kernels.pair)) {}

  // Groups of rows, depth-major: the left side of the logits' product.
  void hidden(int64_t first, int64_t rows, T* out) const {
    for (int64_t row = 0; row < rows; row += k_.row_group) {
      k_.pack_transposed(at(p_.hidden, first + row, 0), bfloat16(), p_.depth,
                         std::min(k_.row_group, rows - row), k_.row_group, p_.depth, out + row * words_);
    }
  }
  // Panels of columns, depth-major: the right side of the logits' product.
  void weight(int64_t first, int64_t columns, T* out) const {
    for (int64_t column = 0; column < columns; column += k_.panel) {
      k_.pack_transposed(at(p_.weight, first + column, 0), bfloat16(), p_.depth,
                         std::min(k_.panel, columns - column), k_.panel, p_.depth, out + column * words_);
    }
  }
  // One panel over the depth, of `count` rows of hidden or weight: the right side of the gradients' products.
  void rows(const void* source, int64_t first, int64_t count, int64_t panel, T* out) const {
    const int64_t column = panel * k_.panel;
    k_.pack_rows(at(source, first, column), bfloat16(), p_.depth, count,
                 std::min(k_.panel, p_.depth - column), out);
  }

 private:
  bool bfloat16() const { return p_.type == Type::kBFloat16; }
  const void* at(const void* base, int64_t row, int64_t column) const {
    return static_cast<const char*>(base) + (row * p_.depth + column) * size_of_stored(p_.type);
  }
  const Problem& p_;
  const TileKernels<T>& k_;
  const int64_t words_;
};

// One tile of logits of rows [first_row, first_row + rows); the packed operands begin where the tile does.
template <typename T>
LogitTile<T> logit_tile(const Problem& p, const Extent& extent, const T* hidden, const T* weight,
                        int64_t first_row, int64_t rows, int64_t first_column) {
  return {hidden,
          weight,
          extent.words,
          rows,
          std::min(kTile, p.vocabulary - first_column),
          first_column,
          p.targets + first_row,
          static_cast<T>(1 / p.temperature)};
}

}  // namespace earnest::logprob
