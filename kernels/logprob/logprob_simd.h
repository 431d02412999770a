// SPDX-License-Identifier: Apache-2.0
// The tiles of logprob_tile.h, written once with GCC/Clang vector extensions. Each tier's source file defines
// EARNEST_TIER (its namespace), EARNEST_VECTOR_BYTES, EARNEST_ROW_GROUP and EARNEST_PANEL_VECTORS, and
// includes this. Everything here has internal linkage.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/logprob/bfloat16.h"
#include "kernels/logprob/logprob_tile.h"

#define EARNEST_INLINE static inline __attribute__((always_inline))

namespace earnest::logprob::EARNEST_TIER {
namespace {

constexpr int64_t kRowGroup = EARNEST_ROW_GROUP;
constexpr int64_t kPanelVectors = EARNEST_PANEL_VECTORS;

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(EARNEST_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(EARNEST_VECTOR_BYTES), aligned(8), may_alias));
};
template <typename T>
using Vec = typename Vector<T>::Type;
template <typename T>
constexpr int64_t kLanes = EARNEST_VECTOR_BYTES / static_cast<int64_t>(sizeof(T));
template <typename T>
constexpr int64_t kPanel = kPanelVectors * kLanes<T>;

static_assert(kRowBlock % kRowGroup == 0 && kTile % kRowGroup == 0);
static_assert(kTile % kPanel<float> == 0 && kTile % kPanel<double> == 0);

template <typename T>
EARNEST_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::Unaligned*>(from);
}
template <typename T>
EARNEST_INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename Vector<T>::Unaligned*>(to) = value;
}

// Sum and maximum over lanes, always in the same tree.
template <typename T>
EARNEST_INLINE T sum_lanes(Vec<T> value) {
  T lanes[kLanes<T>];
  store(lanes, value);
#pragma GCC unroll 8
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
template <typename T>
EARNEST_INLINE T max_lanes(Vec<T> value) {
  T lanes[kLanes<T>];
  store(lanes, value);
#pragma GCC unroll 8
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

// exp(x) for x at most a little above 0, to about 1 unit in the last place. Exactly 0 below kLowest; NaN
// stays NaN. x = n log 2 + r with |r| <= log(2) / 2, found by adding a constant that pushes n into the low
// bits; exp(r) by a polynomial (Cephes for float, the Taylor series for double); 2^n by its bits.
template <typename T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kLowest = -87.0f, kShift = 12582912.0f, kLog2E = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kExponentBits = 23, kBias = 127;
  static constexpr float kTerms[] = {1.9875691500e-4f,
                                     1.3981999507e-3f,
                                     8.3334519073e-3f,
                                     4.1665795894e-2f,
                                     1.6666665459e-1f,
                                     5.0000001201e-1f,
                                     1.0f,
                                     1.0f};
};
template <>
struct Exp<double> {
  static constexpr double kLowest = -708.0, kShift = 6755399441055744.0, kLog2E = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr int kExponentBits = 52, kBias = 1023;
  static constexpr double kTerms[] = {
      1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
      1 / 720.0,        1 / 120.0,       1 / 24.0,       1 / 6.0,       1 / 2.0,      1.0,         1.0};
};
template <typename T>
EARNEST_INLINE Vec<T> exp_of(Vec<T> x) {
  using E = Exp<T>;
  using Int = typename Vector<T>::Int;
  const Vec<T> zero = {};
  const auto below = x < E::kLowest;
  const Vec<T> clamped = below ? zero + E::kLowest : x;
  const Vec<T> shifted = clamped * E::kLog2E + E::kShift;
  const Vec<T> n = shifted - E::kShift;
  const Vec<T> r = (clamped - n * E::kLn2High) - n * E::kLn2Low;
  Vec<T> value = zero + E::kTerms[0];
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof(E::kTerms) / sizeof(T); ++i) value = value * r + E::kTerms[i];
  const Int scale = (reinterpret_cast<Int>(shifted) << E::kExponentBits) +
                    (static_cast<decltype(Int{}[0] + 0)>(E::kBias) << E::kExponentBits);
  value *= reinterpret_cast<Vec<T>>(scale);
  return below ? zero : value;
}

template <typename T, typename Stored>
EARNEST_INLINE void load_quad(const Stored* from, T* to) {
  for (int64_t i = 0; i < 4; ++i) to[i] = widen(from[i]);
}

// Blocks of 4 rows by 4 depths are turned in registers; the rest goes one by one.
template <typename T, typename Stored>
EARNEST_INLINE void transpose(const Stored* source, int64_t stride, int64_t count, int64_t width,
                              int64_t depth, T* out) {
  const int64_t block_rows = count / 4 * 4, block_depth = depth / 4 * 4;
  for (int64_t k = 0; k < block_depth; k += 4) {
    for (int64_t j = 0; j < block_rows; j += 4) {
      const Stored* from = source + j * stride + k;
      alignas(4 * sizeof(T)) T rows[4][4], columns[4][4];
      for (int64_t i = 0; i < 4; ++i) load_quad(from + i * stride, rows[i]);
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
#pragma GCC unroll 4
        for (int64_t m = 0; m < 4; ++m) columns[m][i] = rows[i][m];
      }
      for (int64_t m = 0; m < 4; ++m) std::memcpy(out + (k + m) * width + j, columns[m], sizeof columns[m]);
    }
  }
  for (int64_t j = 0; j < width; ++j) {
    const Stored* row = source + j * stride;
    for (int64_t k = j < block_rows ? block_depth : 0; k < depth; ++k)
      out[k * width + j] = j < count ? widen(row[k]) : 0;
  }
}

template <typename T>
void pack_transposed(const void* source, bool bfloat16, int64_t stride, int64_t count, int64_t width,
                     int64_t depth, T* out) {
  if constexpr (sizeof(T) == 4) {
    if (bfloat16) return transpose(static_cast<const BFloat16*>(source), stride, count, width, depth, out);
  }
  transpose(static_cast<const T*>(source), stride, count, width, depth, out);
}

template <typename T, typename Stored>
void copy_rows(const Stored* source, int64_t stride, int64_t depth, int64_t count, T* out) {
  for (int64_t k = 0; k < depth; ++k, source += stride, out += kPanel<T>) {
    if (count == kPanel<T>) {
      for (int64_t j = 0; j < kPanel<T>; ++j) out[j] = widen(source[j]);
    } else {
      for (int64_t j = 0; j < kPanel<T>; ++j) out[j] = j < count ? widen(source[j]) : 0;
    }
  }
}

template <typename T>
void pack_rows(const void* source, bool bfloat16, int64_t stride, int64_t depth, int64_t count, T* out) {
  if constexpr (sizeof(T) == 4) {
    if (bfloat16) return copy_rows(static_cast<const BFloat16*>(source), stride, depth, count, out);
  }
  copy_rows(static_cast<const T*>(source), stride, depth, count, out);
}

// The register tile: kRowGroup rows by one panel, summed over depth from zero, then stored or added. Each
// output is one chain of multiply-adds over k, so its bits do not depend on what else is in the tile.
template <typename T>
EARNEST_INLINE void register_tile(const T* left, int64_t row_stride, int64_t depth_stride, const T* right,
                                  int64_t depth, T* out, int64_t out_stride, bool add) {
  Vec<T> sums[kRowGroup][kPanelVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> columns[kPanelVectors];
#pragma GCC unroll 8
    for (int64_t j = 0; j < kPanelVectors; ++j) columns[j] = load(right + k * kPanel<T> + j * kLanes<T>);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRowGroup; ++i) {
      const T value = left[i * row_stride + k * depth_stride];
#pragma GCC unroll 8
      for (int64_t j = 0; j < kPanelVectors; ++j) sums[i][j] += value * columns[j];
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRowGroup; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kPanelVectors; ++j) {
      T* to = out + i * out_stride + j * kLanes<T>;
      store(to, add ? load(to) + sums[i][j] : sums[i][j]);
    }
  }
}

// The same where the output has fewer rows or columns than a register tile.
template <typename T>
EARNEST_INLINE void register_tile_edge(const T* left, int64_t row_stride, int64_t depth_stride,
                                       const T* right, int64_t depth, T* out, int64_t out_stride, bool add,
                                       int64_t rows, int64_t columns) {
  T whole[kRowGroup * kPanel<T>];
  register_tile(left, row_stride, depth_stride, right, depth, whole, kPanel<T>, false);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      T* to = out + i * out_stride + j;
      *to = add ? *to + whole[i * kPanel<T> + j] : whole[i * kPanel<T> + j];
    }
  }
}

// Dot products of one row group with a tile's columns, before the temperature: out [kRowGroup, kTile].
template <typename T>
EARNEST_INLINE void dot_products(const LogitTile<T>& tile, int64_t row, T* out) {
  const T* hidden = tile.hidden + row * tile.depth;
  for (int64_t column = 0; column < tile.columns; column += kPanel<T>) {
    const T* weight = tile.weight + column * tile.depth;
    for (int64_t k = 0; k < tile.depth; k += kDepthBlock) {
      const int64_t depth = tile.depth - k < kDepthBlock ? tile.depth - k : kDepthBlock;
      register_tile<T>(hidden + k * kRowGroup, 1, kRowGroup, weight + k * kPanel<T>, depth, out + column,
                       kTile, k > 0);
    }
  }
}

// Makes logits of dot products, in place, and pads the last vector with `padding`.
template <typename T>
EARNEST_INLINE void finish_logits(T* z, int64_t columns, T factor, T padding) {
  for (int64_t j = 0; j < columns; j += kLanes<T>) store(z + j, load(z + j) * factor);
  for (int64_t j = columns; j % kLanes<T> != 0; ++j) z[j] = padding;
}

template <typename T>
TileSums<T> tile_sums(const T* z, int64_t columns) {
  Vec<T> largest = load(z), sum = {}, product = {};
  for (int64_t j = kLanes<T>; j < columns; j += kLanes<T>) {
    const Vec<T> value = load(z + j);
    largest = value > largest ? value : largest;
  }
  const T max = max_lanes<T>(largest);
  for (int64_t j = 0; j < columns; j += kLanes<T>) {
    const Vec<T> zero = {}, difference = load(z + j) - max, e = exp_of<T>(difference);
    sum += e;
    product += difference < Exp<T>::kLowest ? zero : difference * e;
  }
  return {max, sum_lanes<T>(sum), sum_lanes<T>(product)};
}

template <typename T>
void forward_tile(const LogitTile<T>& tile, TileSums<T>* sums, T* target_logits) {
  alignas(64) T z[kRowGroup * kTile];
  for (int64_t row = 0; row < tile.rows; row += kRowGroup) {
    dot_products(tile, row, z);
    for (int64_t i = 0; i < kRowGroup && row + i < tile.rows; ++i) {
      T* logits = z + i * kTile;
      finish_logits<T>(logits, tile.columns, tile.inverse_temperature, -static_cast<T>(INFINITY));
      sums[row + i] = tile_sums(logits, tile.columns);
      const int64_t target = tile.targets[row + i] - tile.first_column;
      if (target >= 0 && target < tile.columns) target_logits[row + i] = logits[target];
    }
  }
}

// One row of dz from its logits, in place: see logprob.h for the formula. The temperature's factor is taken
// into the gradients first, so that the two terms of a certain token (p = 1) cancel exactly.
template <typename T>
EARNEST_INLINE void row_gradient(T* z, const LogitTile<T>& tile, const RowGradients<T>& gradients,
                                 int64_t row) {
  const T lse = gradients.lse[row], entropy = gradients.entropy[row], factor = tile.inverse_temperature;
  const T grad_logp = gradients.grad_logp ? gradients.grad_logp[row] * factor : 0;
  const T grad_entropy = gradients.grad_entropy ? gradients.grad_entropy[row] * factor : 0;
  const T base = grad_logp - (gradients.grad_lse ? gradients.grad_lse[row] * factor : 0);
  const Vec<T> zero = {};
  for (int64_t j = 0; j < tile.columns; j += kLanes<T>) {
    const Vec<T> log_p = load(z + j) - lse, p = exp_of<T>(log_p);
    const Vec<T> slope = base + grad_entropy * (log_p + entropy);
    store(z + j, log_p < Exp<T>::kLowest ? zero : -p * slope);
  }
  for (int64_t j = tile.columns; j < kTile; ++j) z[j] = 0;
  const int64_t target = tile.targets[row] - tile.first_column;
  if (target >= 0 && target < tile.columns) z[target] += grad_logp;
}

template <typename T>
void backward_tile(const LogitTile<T>& tile, const RowGradients<T>& gradients, T* dz) {
  for (int64_t row = 0; row < tile.rows; row += kRowGroup) {
    dot_products(tile, row, dz + row * kTile);
    for (int64_t i = row; i < row + kRowGroup && i < tile.rows; ++i) {
      finish_logits<T>(dz + i * kTile, tile.columns, tile.inverse_temperature, 0);
      row_gradient(dz + i * kTile, tile, gradients, i);
    }
  }
}

// grad_hidden: rows of logits times packed rows of weight, tile after tile.
template <typename T>
void multiply_tiles(const Product<T>& p) {
  for (int64_t column = 0; column < p.columns; column += kPanel<T>) {
    const int64_t columns = p.columns - column < kPanel<T> ? p.columns - column : kPanel<T>;
    const T* right = p.right + column * p.right_depth;
    for (int64_t row = 0; row < p.rows; row += kRowGroup) {
      const int64_t rows = p.rows - row < kRowGroup ? p.rows - row : kRowGroup;
      T* out = p.output + row * p.output_stride + column;
      const T* left = p.left + row * kTile;
      for (int64_t k = 0; k < p.depth; k += kTile, left += p.left_rows * kTile) {
        const int64_t depth = p.depth - k < kTile ? p.depth - k : kTile;
        const bool add = p.add || k > 0;
        if (rows == kRowGroup && columns == kPanel<T>) {
          register_tile<T>(left, kTile, 1, right + k * kPanel<T>, depth, out, p.output_stride, add);
        } else {
          register_tile_edge<T>(left, kTile, 1, right + k * kPanel<T>, depth, out, p.output_stride, add, rows,
                                columns);
        }
      }
    }
  }
}

// grad_weight: one tile's columns times packed rows of hidden, kTile rows of logits after another.
template <typename T>
void multiply_tile_transposed(const Product<T>& p) {
  for (int64_t column = 0; column < p.columns; column += kPanel<T>) {
    const int64_t columns = p.columns - column < kPanel<T> ? p.columns - column : kPanel<T>;
    const T* right = p.right + column * p.right_depth;
    for (int64_t row = 0; row < p.rows; row += kRowGroup) {
      const int64_t rows = p.rows - row < kRowGroup ? p.rows - row : kRowGroup;
      T* out = p.output + row * p.output_stride + column;
      for (int64_t k = 0; k < p.depth; k += kTile) {
        const int64_t depth = p.depth - k < kTile ? p.depth - k : kTile;
        const T* left = p.left + k * kTile + row;
        const bool add = p.add || k > 0;
        if (rows == kRowGroup && columns == kPanel<T>) {
          register_tile<T>(left, 1, kTile, right + k * kPanel<T>, depth, out, p.output_stride, add);
        } else {
          register_tile_edge<T>(left, 1, kTile, right + k * kPanel<T>, depth, out, p.output_stride, add, rows,
                                columns);
        }
      }
    }
  }
}

template <typename T>
constexpr TileKernels<T> kKernels = {
    kRowGroup,        kPanel<T>,         &pack_transposed<T>, &pack_rows<T>,
    &forward_tile<T>, &backward_tile<T>, &multiply_tiles<T>,  &multiply_tile_transposed<T>};

}  // namespace

const TileKernels<float>& kernels_float() { return kKernels<float>; }
const TileKernels<double>& kernels_double() { return kKernels<double>; }

}  // namespace earnest::logprob::EARNEST_TIER
