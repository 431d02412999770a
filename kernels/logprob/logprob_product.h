// SPDX-License-Identifier: Apache-2.0
// Packing, and the register tile of all matrix products, for one kind of operand. Besides what
// logprob_vector.h asks for, a tier defines EARNEST_ROW_GROUP and EARNEST_PANEL_VECTORS.
#pragma once

#include "kernels/common/bfloat16.h"
#include "kernels/logprob/logprob_tile.h"
#include "kernels/logprob/logprob_vector.h"

namespace earnest::logprob::EARNEST_TIER {
namespace {

constexpr int64_t kRowGroup = EARNEST_ROW_GROUP;
constexpr int64_t kPanelVectors = EARNEST_PANEL_VECTORS;
template <typename T>
constexpr int64_t kPanel = kPanelVectors * kLanes<T>;

static_assert(kRowBlock % kRowGroup == 0 && kTile % kRowGroup == 0 && kRowPad % kRowGroup == 0 &&
              kRowPad % kLanes<double> == 0);
static_assert(kTile % kPanel<float> == 0 && kTile % kPanel<double> == 0);

// Operands of type T, one to a word, whatever they are stored as. A kind of operand says how many follow each
// other in a word of the size of T along the depth of a product, how words are made, and how they multiply.
template <typename T>
struct Single {
  using Number = T;
  static constexpr int64_t kPair = 1;

  template <typename Stored>
  static inline void words(const Stored* from, int64_t count, T* to) {
    for (int64_t k = 0; k < count; ++k) to[k] = widen(from[k]);
  }
  template <typename Stored>
  static inline void merge_rows(const Stored* first, const Stored*, int64_t count, T* to) {
    words(first, count, to);
  }
  static inline Vec<T> multiply_add(const T* left, Vec<T> right, Vec<T> sum) { return sum + *left * right; }
};

// Turns rows into columns: out[k * width + j] = word k of row j for j < count, 0 for count <= j < width.
// Squares of kLanes rows by kLanes words, so that a line of memory is read once, whatever the stride.
template <typename O, typename Stored>
void transpose(const Stored* source, int64_t stride, int64_t count, int64_t width, int64_t depth,
               typename O::Number* out) {
  using T = typename O::Number;
  constexpr int64_t kStep = kLanes<T> * O::kPair;
  for (int64_t j = 0; j < width; j += kLanes<T>) {
    const int64_t rows = count - j < kLanes<T> ? count - j : kLanes<T>;
    const int64_t kept = width - j < kLanes<T> ? width - j : kLanes<T>;
    for (int64_t k = 0; k < depth; k += kStep) {
      const int64_t length = depth - k < kStep ? depth - k : kStep;
      Vec<T> square[kLanes<T>] = {};
      for (int64_t i = 0; i < rows; ++i) {
        const Stored* from = source + (j + i) * stride + k;
        T words[kLanes<T>] = {};
        if (length == kStep) {
          O::words(from, kStep, words);  // a length known to the compiler makes this one load
        } else {
          O::words(from, length, words);
        }
        square[i] = load(words);
      }
      transpose_square<T>(square);
      T* to = out + k / O::kPair * width + j;
      const int64_t words = (length + O::kPair - 1) / O::kPair;
      if (kept == kLanes<T> && words == kLanes<T>) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes<T>; ++i) store(to + i * width, square[i]);
      } else {
        for (int64_t i = 0; i < words; ++i) {
          std::memcpy(to + i * width, &square[i], static_cast<size_t>(kept) * sizeof(T));
        }
      }
    }
  }
}

template <typename O>
void pack_transposed(const void* source, bool bfloat16, int64_t stride, int64_t count, int64_t width,
                     int64_t depth, typename O::Number* out) {
  if constexpr (sizeof(typename O::Number) == 4) {
    if (bfloat16) return transpose<O>(static_cast<const BFloat16*>(source), stride, count, width, depth, out);
  }
  if constexpr (O::kPair == 1) {
    transpose<O>(static_cast<const typename O::Number*>(source), stride, count, width, depth, out);
  }
}

// Words of one panel: row after row, or pair of rows after pair.
template <typename O, typename Stored>
void copy_rows(const Stored* source, int64_t stride, int64_t depth, int64_t count, typename O::Number* out) {
  using T = typename O::Number;
  Stored zeros[kPanel<T>] = {};
  for (int64_t k = 0; k < depth; k += O::kPair, source += O::kPair * stride, out += kPanel<T>) {
    const Stored* second = k + 1 < depth ? source + stride : zeros;
    if (count == kPanel<T>) {
      O::merge_rows(source, second, kPanel<T>, out);
    } else {
      O::merge_rows(source, second, count, out);
      for (int64_t j = count; j < kPanel<T>; ++j) out[j] = 0;
    }
  }
}

template <typename O>
void pack_rows(const void* source, bool bfloat16, int64_t stride, int64_t depth, int64_t count,
               typename O::Number* out) {
  if constexpr (sizeof(typename O::Number) == 4) {
    if (bfloat16) return copy_rows<O>(static_cast<const BFloat16*>(source), stride, depth, count, out);
  }
  if constexpr (O::kPair == 1) {
    copy_rows<O>(static_cast<const typename O::Number*>(source), stride, depth, count, out);
  }
}

// The register tile: kRowGroup rows by one panel, summed over `depth` words from zero, then stored or added.
// Each output is one chain of multiply-adds over the depth, so its bits do not depend on what else is in the
// tile. kVectors: of the panel's, the first.
template <typename O, int64_t kVectors = kPanelVectors, typename T = typename O::Number>
EARNEST_INLINE void register_tile(const T* left, int64_t row_stride, int64_t depth_stride, const T* right,
                                  int64_t depth, T* out, int64_t out_stride, bool add) {
  Vec<T> sums[kRowGroup][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> columns[kVectors];
#pragma GCC unroll 8
    for (int64_t j = 0; j < kVectors; ++j) columns[j] = load(right + k * kPanel<T> + j * kLanes<T>);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRowGroup; ++i) {
#pragma GCC unroll 8
      for (int64_t j = 0; j < kVectors; ++j) {
        sums[i][j] = O::multiply_add(left + i * row_stride + k * depth_stride, columns[j], sums[i][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRowGroup; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kVectors; ++j) {
      T* to = out + i * out_stride + j * kLanes<T>;
      store(to, add ? load(to) + sums[i][j] : sums[i][j]);
    }
  }
}

// The same where the output may have fewer rows or columns than a register tile.
template <typename O, typename T = typename O::Number>
EARNEST_INLINE void register_tile_of(const T* left, int64_t row_stride, int64_t depth_stride, const T* right,
                                     int64_t depth, T* out, int64_t out_stride, bool add, int64_t rows,
                                     int64_t columns) {
  if (rows >= kRowGroup && columns >= kPanel<T>) {
    return register_tile<O>(left, row_stride, depth_stride, right, depth, out, out_stride, add);
  }
  // What is left over of 256 = 5 x 48 + 16 or 512 = 10 x 48 + 32: a whole panel would be more work.
  if (rows >= kRowGroup && columns == kLanes<T>)
    return register_tile<O, 1>(left, row_stride, depth_stride, right, depth, out, out_stride, add);
  if constexpr (kPanelVectors > 2) {
    if (rows >= kRowGroup && columns == 2 * kLanes<T>)
      return register_tile<O, 2>(left, row_stride, depth_stride, right, depth, out, out_stride, add);
  }
  T whole[kRowGroup * kPanel<T>];
  register_tile<O>(left, row_stride, depth_stride, right, depth, whole, kPanel<T>, false);
  for (int64_t i = 0; i < rows && i < kRowGroup; ++i) {
    for (int64_t j = 0; j < columns && j < kPanel<T>; ++j) {
      T* to = out + i * out_stride + j;
      *to = add ? *to + whole[i * kPanel<T> + j] : whole[i * kPanel<T> + j];
    }
  }
}

// Dot products of the tile's rows with its columns, before the temperature: out [rows, kTile], where rows are
// rounded up to a row group. Depth is the outer loop: a block of the tile's weight stays in the second cache,
// and one panel of it near the first, while all rows pass over it.
template <typename O, typename T = typename O::Number>
EARNEST_INLINE void dot_products(const LogitTile<T>& tile, T* out) {
  const int64_t block = depth_block(tile.depth, O::kPair);
  for (int64_t k = 0; k < tile.depth; k += block) {
    const int64_t depth = tile.depth - k < block ? tile.depth - k : block;
    for (int64_t column = 0; column < tile.columns; column += kPanel<T>) {
      const T* weight = tile.weight + column * tile.depth + k * kPanel<T>;
      for (int64_t row = 0; row < tile.rows; row += kRowGroup) {
        const T* hidden = tile.hidden + row * tile.depth + k * kRowGroup;
        register_tile<O>(hidden, 1, kRowGroup, weight, depth, out + row * kTile + column, kTile, k > 0);
      }
    }
  }
}

// grad_hidden: rows of logits times packed rows of weight, tile after tile.
template <typename O, typename T = typename O::Number>
void multiply_tiles(const Product<T>& p) {
  for (int64_t column = 0; column < p.columns; column += kPanel<T>) {
    const T* right = p.right + column * p.right_depth;
    for (int64_t k = 0; k < p.depth; k += kTile) {
      const int64_t depth = p.depth - k < kTile ? p.depth - k : kTile;
      const T* left = p.left + k * p.left_rows / O::kPair;
      for (int64_t row = 0; row < p.rows; row += kRowGroup) {
        register_tile_of<O>(left + row * kTile / O::kPair, kTile / O::kPair, 1,
                            right + k / O::kPair * kPanel<T>, (depth + O::kPair - 1) / O::kPair,
                            p.output + row * p.output_stride + column, p.output_stride, p.add || k > 0,
                            p.rows - row, p.columns - column);
      }
    }
  }
}

// grad_weight: one tile's columns times packed rows of hidden, kTile rows of logits after another.
template <typename O, typename T = typename O::Number>
void multiply_tile_transposed(const Product<T>& p) {
  for (int64_t column = 0; column < p.columns; column += kPanel<T>) {
    const T* right = p.right + column * p.right_depth;
    for (int64_t k = 0; k < p.depth; k += kTile) {
      const int64_t depth = p.depth - k < kTile ? p.depth - k : kTile;
      for (int64_t row = 0; row < p.rows; row += kRowGroup) {
        register_tile_of<O>(p.left + k / O::kPair * kTile + row, 1, kTile, right + k / O::kPair * kPanel<T>,
                            (depth + O::kPair - 1) / O::kPair, p.output + row * p.output_stride + column,
                            p.output_stride, p.add || k > 0, p.rows - row, p.columns - column);
      }
    }
  }
}

}  // namespace
}  // namespace earnest::logprob::EARNEST_TIER
