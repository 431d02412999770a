// SPDX-License-Identifier: Apache-2.0
// What one CPU tier offers: packing and small matrix products on tiles. logprob_cpu.cc walks over the tiles
// with it. Plain function pointers keep code for one instruction set from being merged into another's by the
// linker.
#pragma once

#include <cstdint>

namespace earnest::logprob {

// Columns of logits in a tile. Sums over the vocabulary and over rows are made of sums over kTile of them.
constexpr int64_t kTile = 192;
// Depth of one register sum; longer dot products add such sums in order.
constexpr int64_t kDepthBlock = 384;
// Columns of the output matrix, and rows, that are packed at one time: they bound the scratch memory.
constexpr int64_t kSlab = 6 * kTile;
constexpr int64_t kChunk = 8 * kTile;
// A multiple of every tier's row_group, so that rows can be cut into tasks anywhere on it.
constexpr int64_t kRowBlock = 96;

// One tile of logits: `rows` rows from a row group's start against the columns [first_column, first_column +
// columns).
template <typename T>
struct LogitTile {
  const T* hidden;  // packed by pack_transposed in groups of row_group
  const T* weight;  // packed by pack_transposed in panels of `panel`
  int64_t depth, rows, columns, first_column;
  const int64_t* targets;  // of these rows
  T inverse_temperature;
};

// What a row keeps of one tile: max, sum of exp(z - max), sum of (z - max) exp(z - max).
template <typename T>
struct TileSums {
  T max, sum, product;
};

// Of these rows; null gradients mean zeros.
template <typename T>
struct RowGradients {
  const T *lse, *entropy, *grad_logp, *grad_entropy, *grad_lse;
};

// output[i, j] (+)= sum_k left[i, k] right[k, j]; right is packed by pack_rows.
template <typename T>
struct Product {
  const T* left;          // tiles [tile][row of logits][kTile]
  const T* right;         // panels [panel][depth][panel width]
  T* output;              // row-major
  int64_t left_rows;      // rows of logits between two tiles
  int64_t right_depth;    // depth of a panel
  int64_t output_stride;  // elements between two rows
  int64_t rows, columns, depth;
  bool add;  // false: overwrite what output held
};

template <typename T>
struct TileKernels {
  int64_t row_group;  // rows that one register tile takes together
  int64_t panel;      // columns that one register tile takes together

  // out[k * width + j] = source[j * stride + k] for j < count, 0 for count <= j < width.
  void (*pack_transposed)(const void* source, bool bfloat16, int64_t stride, int64_t count, int64_t width,
                          int64_t depth, T* out);
  // out[k * panel + j] = source[k * stride + j] for j < count, 0 beyond.
  void (*pack_rows)(const void* source, bool bfloat16, int64_t stride, int64_t depth, int64_t count, T* out);

  // sums[row * sums_stride]; target_logits[row] is written if the row's target lies in the tile.
  void (*forward_tile)(const LogitTile<T>& tile, TileSums<T>* sums, T* target_logits);
  // dz [rows, kTile] with the temperature's factor applied; columns past the end become 0.
  void (*backward_tile)(const LogitTile<T>& tile, const RowGradients<T>& gradients, T* dz);
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

}  // namespace earnest::logprob
