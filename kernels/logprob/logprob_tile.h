// SPDX-License-Identifier: Apache-2.0
// What one CPU tier offers: packing and small matrix products on tiles. logprob_cpu.cc walks over the tiles
// with it. Plain function pointers keep code for one instruction set from being merged into another's by the
// linker.
#pragma once

#include <cstdint>

namespace earnest::logprob {

// Columns of logits in a tile. Sums over the vocabulary and over rows are made of sums over kTile of them.
constexpr int64_t kTile = 192;
// Words of depth in one register sum; longer dot products add such sums in order. Blocks of equal size, as
// kernels/linear cuts them: so logits are the same bits there and here.
constexpr int64_t kMostDepthBlock = 256;
constexpr int64_t depth_block(int64_t words, int64_t pair) {
  const int64_t blocks = (words + kMostDepthBlock - 1) / kMostDepthBlock,
                size = (words + blocks - 1) / blocks;
  return pair == 1 ? (size + 1) / 2 * 2 : size;
}
// At most so many columns of the output matrix, and words of rows (the depth of grad_weight's product), are
// packed at one time; fewer where they are long, so that each packed operand keeps within kPackedBytes, but
// at least one tile of them. They bound the scratch memory.
constexpr int64_t kSlab = 6 * kTile;
constexpr int64_t kChunk = 8 * kTile;
constexpr int64_t kPackedBytes = int64_t{8} << 20;
// Logits that forward keeps for backward.
constexpr int64_t kKeptBytes = int64_t{16} << 20;
// A multiple of every tier's row_group, so that rows can be cut into tasks anywhere on it.
constexpr int64_t kRowBlock = 96;
// Rows of kept logits, and of sums, are rounded up to a multiple of it: one of every tier's row_group and
// lanes.
constexpr int64_t kRowPad = 8;

// One tile of logits: `rows` rows from a row group's start against the columns [first_column, first_column +
// columns).
template <typename T>
struct LogitTile {
  const T* hidden;  // packed by pack_transposed in groups of row_group
  const T* weight;  // packed by pack_transposed in panels of `panel`
  int64_t depth;    // in words
  int64_t rows, columns, first_column;
  const int64_t* targets;  // of these rows
  T inverse_temperature;
};

// What rows keep of one tile, or of all tiles so far, an array each: max, sum of exp(z - max), sum of (z -
// max) exp(z - max).
template <typename T>
struct TileSums {
  T *max, *sum, *product;
};

// Of these rows; null gradients mean zeros.
template <typename T>
struct RowGradients {
  const T *lse, *entropy, *grad_logp, *grad_entropy, *grad_lse;
};

// output[i, j] (+)= sum_k left[i, k] right[k, j]; right is packed by pack_rows.
template <typename T>
struct Product {
  const T* left;          // of dz, or of dz_pairs where rows of logits are the depth
  const T* right;         // panels [panel][depth in words][panel width]
  T* output;              // row-major
  int64_t left_rows;      // rows of logits between two tiles
  int64_t right_depth;    // words of depth in a panel
  int64_t output_stride;  // elements between two rows
  int64_t rows, columns, depth;
  bool add;  // false: overwrite what output held
};

// Operands are packed in words of the size of T. A word holds `pair` numbers that follow each other along the
// depth of the product: one T, or two of bfloat16.
template <typename T>
struct TileKernels {
  int64_t row_group;  // rows that one register tile takes together
  int64_t panel;      // columns that one register tile takes together
  int64_t pair;

  // out[k * width + j] = word k of source[j * stride ...] for j < count, 0 for count <= j < width.
  void (*pack_transposed)(const void* source, bool bfloat16, int64_t stride, int64_t count, int64_t width,
                          int64_t depth, T* out);
  // out[k * panel + j] = word of column j and row(s) k for j < count, 0 beyond.
  void (*pack_rows)(const void* source, bool bfloat16, int64_t stride, int64_t depth, int64_t count, T* out);

  // Of whole row groups, though some of the last one's rows may be padding; target_logits[row] is written if
  // the row's target lies in the tile. The logits are left in `kept` [rows rounded up to a row group, kTile],
  // unless it is null.
  void (*forward_tile)(const LogitTile<T>& tile, T* kept, const TileSums<T>& sums, T* target_logits);
  // Adds the tile's sums to the rows', which begin as -inf, 0 and 0; `count` is rounded up to kRowPad.
  void (*join_tile)(const TileSums<T>& tile, const TileSums<double>& rows, int64_t count);
  // dz [rows, kTile] with the temperature's factor applied; columns past the end become 0. The logits are
  // read from `kept`, or made again where it is null. With pairs, dz holds rows of kTile / 2 words, and
  // dz_pairs the same numbers with two rows in a word, and lost[row] is what rounding took from dz of the
  // row's target if that lies in the tile. Without, dz_pairs and lost are left alone.
  void (*backward_tile)(const LogitTile<T>& tile, const T* kept, const RowGradients<T>& gradients, T* dz,
                        T* dz_pairs, T* lost);
  // output rows are rows of logits; depth runs over the tiles' columns.
  void (*multiply_tiles)(const Product<T>& product);
  // output rows are columns of one tile; depth runs over rows of logits.
  void (*multiply_tile_transposed)(const Product<T>& product);
};

namespace scalar {
const TileKernels<float>& kernels_float();
const TileKernels<double>& kernels_double();
}  // namespace scalar
namespace avx2 {
const TileKernels<float>& kernels_float();
const TileKernels<double>& kernels_double();
}  // namespace avx2
namespace avx512 {
const TileKernels<float>& kernels_float();
const TileKernels<double>& kernels_double();
}  // namespace avx512
namespace avx512_bf16 {
const TileKernels<float>& kernels_bfloat16();
}  // namespace avx512_bf16

}  // namespace earnest::logprob
