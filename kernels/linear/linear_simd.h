// SPDX-License-Identifier: Apache-2.0
// The tiles of linear_tile.h, written once with GCC/Clang vector extensions. Each tier's source file defines
// EARNEST_TIER (its namespace), EARNEST_VECTOR_BYTES, EARNEST_ACCUMULATORS (vector registers for sums) and
// perhaps EARNEST_VDPBF16, and includes this. Everything here has internal linkage.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(EARNEST_VDPBF16)
#include <immintrin.h>
#endif

#include "kernels/common/bfloat16.h"
#include "kernels/linear/linear_tile.h"

#define EARNEST_INLINE static inline __attribute__((always_inline))

namespace earnest::linear::EARNEST_TIER {
namespace {

typedef float Floats __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(EARNEST_VECTOR_BYTES)));

template <typename Vector, typename T>
EARNEST_INLINE Vector load(const T* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <typename Vector, typename T>
EARNEST_INLINE void store(T* to, Vector value) {
  std::memcpy(to, &value, sizeof value);
}

// How each type is multiplied. Left and Right are what one step of the depth takes from the two sides.
struct Float32 {
  using Stored = float;
  using Sum = float;
  using Sums = Floats;
  using Left = float;
  using Right = float;
  using Rights = Floats;
  static constexpr int64_t kDepthPerStep = 1;
  static Left left(float first, float) { return first; }
  static Right right(float first, float) { return first; }
  EARNEST_INLINE void multiply_add(Sums* sums, Left left, Rights right) { *sums += left * right; }
};

struct Float64 {
  using Stored = double;
  using Sum = double;
  using Sums = Doubles;
  using Left = double;
  using Right = double;
  using Rights = Doubles;
  static constexpr int64_t kDepthPerStep = 1;
  static Left left(double first, double) { return first; }
  static Right right(double first, double) { return first; }
  EARNEST_INLINE void multiply_add(Sums* sums, Left left, Rights right) { *sums += left * right; }
};

inline uint32_t pair_of(BFloat16 first, BFloat16 second) {
  return first.bits | static_cast<uint32_t>(second.bits) << 16;
}

struct BFloat16Pairs {
  using Stored = BFloat16;
  using Sum = float;
  using Sums = Floats;
  using Right = uint32_t;
  using Rights = Words;
  static constexpr int64_t kDepthPerStep = 2;
  static Right right(BFloat16 first, BFloat16 second) { return pair_of(first, second); }
#if defined(EARNEST_VDPBF16)
  using Left = uint32_t;
  static Left left(BFloat16 first, BFloat16 second) { return pair_of(first, second); }
  EARNEST_INLINE void multiply_add(Sums* sums, Left left, Rights right) {
    *sums = (Sums)_mm512_dpbf16_ps((__m512)*sums, (__m512bh)_mm512_set1_epi32(static_cast<int>(left)),
                                   (__m512bh)right);
  }
#else
  struct Left {
    float first, second;
  };
  static Left left(BFloat16 first, BFloat16 second) { return {widen(first), widen(second)}; }
  EARNEST_INLINE void multiply_add(Sums* sums, Left left, Rights right) {
    *sums += left.first * (Sums)(right << 16);
    *sums += left.second * (Sums)(right & 0xffff0000u);
  }
#endif
};

template <typename P>
constexpr int64_t kLanes = EARNEST_VECTOR_BYTES / static_cast<int64_t>(sizeof(typename P::Sum));
constexpr int64_t kRowTile = EARNEST_ACCUMULATORS / 2;

// Between two rows of the left tile: a power of two would put them all into the same sets of the cache.
template <typename P>
constexpr int64_t kLeftStride = kMostSteps + 16;

// A step of the depth from one row of source, or (transposed) from two rows below each other.
template <typename P, bool kTransposed>
EARNEST_INLINE auto step_of(const typename P::Stored* source, int64_t stride, bool whole, auto make) {
  if constexpr (P::kDepthPerStep == 1) return make(source[0], source[0]);
  const typename P::Stored zero = {};
  return make(source[0], whole ? source[kTransposed ? stride : 1] : zero);
}

template <typename P, bool kTransposed>
void pack_panel_of(const typename P::Stored* source, int64_t stride, int64_t count, int64_t depth,
                   typename P::Right* out) {
  constexpr int64_t kStep = P::kDepthPerStep;
  const int64_t along_columns = kTransposed ? 1 : stride, along_depth = kTransposed ? stride : 1;
  for (int64_t k = 0; k < depth; k += kStep, out += kPanel) {
    const typename P::Stored* from = source + k * along_depth;
    const bool whole = k + kStep <= depth;
    const auto fill = [&](int64_t columns) {
      for (int64_t j = 0; j < columns; ++j) {
        out[j] = step_of<P, kTransposed>(from + j * along_columns, stride, whole, P::right);
      }
    };
    if (count == kPanel) {
      fill(kPanel);
    } else {
      fill(count);
      for (int64_t j = count; j < kPanel; ++j) out[j] = {};
    }
  }
}

template <typename P>
void pack_panel(const void* source, int64_t stride, bool transposed, int64_t count, int64_t depth,
                void* out) {
  const auto* from = static_cast<const typename P::Stored*>(source);
  auto* to = static_cast<typename P::Right*>(out);
  if (transposed) {
    pack_panel_of<P, true>(from, stride, count, depth, to);
  } else {
    pack_panel_of<P, false>(from, stride, count, depth, to);
  }
}

// As it lies in source, the left tile is [row][step]; transposed it is [step][row].
template <typename P>
void load_left(const void* source, int64_t stride, bool transposed, int64_t rows, int64_t depth, void* tile) {
  constexpr int64_t kStep = P::kDepthPerStep;
  const auto* from = static_cast<const typename P::Stored*>(source);
  auto* to = static_cast<typename P::Left*>(tile);
  const int64_t whole_depth = depth / kStep * kStep;
  if (transposed) {
    for (int64_t k = 0; k < depth; k += kStep, from += kStep * stride, to += kRowTile) {
      const auto fill = [&](int64_t count, bool whole) {
        for (int64_t i = 0; i < count; ++i) to[i] = step_of<P, true>(from + i, stride, whole, P::left);
      };
      if (rows < kRowTile || k >= whole_depth) {
        fill(rows, k < whole_depth);
      } else if constexpr (kStep == 1) {
        std::memcpy(to, from, kRowTile * sizeof *to);
      } else {
        fill(kRowTile, true);  // a count that the compiler knows
      }
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i, from += stride, to += kLeftStride<P>) {
    if constexpr (sizeof(typename P::Left) == kStep * sizeof(typename P::Stored)) {
      std::memcpy(to, from, static_cast<size_t>(whole_depth) * sizeof *from);
    } else {
      for (int64_t k = 0; k < whole_depth; k += kStep) to[k / kStep] = P::left(from[k], from[k + 1]);
    }
    if (whole_depth < depth) to[whole_depth / kStep] = P::left(from[whole_depth], {});
  }
}

// With up to half of the rows the arithmetic is so short that the processor itself reads far enough ahead.
// With more it is not, so lines are asked for: into the second cache where each panel is met once, into the
// first by a tile of all rows, behind which more may come.
template <int kRows>
EARNEST_INLINE void fetch_ahead(const void* from) {
  constexpr bool kWhole = kRows == kRowTile;
  constexpr int kBytes = kWhole ? 4096 : 8192;
  if constexpr (kRows > kRowTile / 2) {
    __builtin_prefetch(static_cast<const char*>(from) + kBytes, 0, kWhole ? 3 : 2);
  }
}

// The register tile: kRows rows by kVectors vectors of columns, summed over the depth from zero, then stored
// or added. Each sum is one chain of multiply-adds, whatever else is in the tile.
template <typename P, int kRows, int kVectors, bool kTransposed>
void register_tile(const typename P::Left* left, int64_t steps, const typename P::Right* right,
                   typename P::Sum* sums, int64_t sums_stride, bool add) {
  constexpr int64_t kRowStride = kTransposed ? 1 : kLeftStride<P>, kDepthStride = kTransposed ? kRowTile : 1;
  typename P::Sums tile[kRows][kVectors] = {};
  for (int64_t k = 0; k < steps; ++k) {
    typename P::Rights columns[kVectors];
#pragma GCC unroll 8
    for (int64_t j = 0; j < kVectors; ++j) {
      const typename P::Right* from = right + k * kPanel + j * kLanes<P>;
      fetch_ahead<kRows>(from);
      columns[j] = load<typename P::Rights>(from);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) {
      const typename P::Left value = left[i * kRowStride + k * kDepthStride];
#pragma GCC unroll 8
      for (int64_t j = 0; j < kVectors; ++j) P::multiply_add(&tile[i][j], value, columns[j]);
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kVectors; ++j) {
      typename P::Sum* to = sums + i * sums_stride + j * kLanes<P>;
      store(to, add ? load<typename P::Sums>(to) + tile[i][j] : tile[i][j]);
    }
  }
}

// Few rows leave registers for a whole panel, which is then read once and as one stream.
template <typename P>
constexpr int kPanelVectors = static_cast<int>(kPanel / kLanes<P>);
template <typename P>
constexpr int vectors_for(int rows) {
  int vectors = kPanelVectors<P>;
  while (vectors > 2 && rows * vectors > EARNEST_ACCUMULATORS) vectors /= 2;
  return vectors;
}

template <typename P, int kRows, bool kTransposed>
void multiply_rows(const typename P::Left* left, int64_t steps, const typename P::Right* right,
                   int64_t panel_stride, int64_t panels, typename P::Sum* sums, int64_t sums_stride,
                   bool add) {
  constexpr int kVectors = vectors_for<P>(kRows);
  for (int64_t panel = 0; panel < panels; ++panel, right += panel_stride * kPanel, sums += kPanel) {
    for (int64_t column = 0; column < kPanel; column += kVectors * kLanes<P>) {
      register_tile<P, kRows, kVectors, kTransposed>(left, steps, right + column, sums + column, sums_stride,
                                                     add);
    }
  }
}

template <typename P>
struct RowTable {
  decltype(&multiply_rows<P, 1, false>) entry[kRowTile];
};
template <typename P, bool kTransposed, size_t... kIndex>
constexpr RowTable<P> row_table(std::index_sequence<kIndex...>) {
  return {{&multiply_rows<P, static_cast<int>(kIndex) + 1, kTransposed>...}};
}
template <typename P, bool kTransposed>
constexpr RowTable<P> kRowTable = row_table<P, kTransposed>(std::make_index_sequence<kRowTile>{});

template <typename P>
void multiply(const void* tile, bool transposed, int64_t rows, int64_t steps, const void* right,
              int64_t panel_stride, int64_t panels, void* sums, int64_t sums_stride, bool add) {
  const RowTable<P>& table = transposed ? kRowTable<P, true> : kRowTable<P, false>;
  table.entry[rows - 1](static_cast<const typename P::Left*>(tile), steps,
                        static_cast<const typename P::Right*>(right), panel_stride, panels,
                        static_cast<typename P::Sum*>(sums), sums_stride, add);
}

template <typename P>
void finish(const void* sums, int64_t sums_stride, int64_t rows, int64_t columns, const void* bias,
            void* output, int64_t output_stride) {
  const auto* from = static_cast<const typename P::Sum*>(sums);
  const auto* added = static_cast<const typename P::Stored*>(bias);
  auto* to = static_cast<typename P::Stored*>(output);
  for (int64_t i = 0; i < rows; ++i, from += sums_stride, to += output_stride) {
    if (added == nullptr) {
      for (int64_t j = 0; j < columns; ++j) narrow(from[j], &to[j]);
    } else {
      for (int64_t j = 0; j < columns; ++j) narrow(from[j] + widen(added[j]), &to[j]);
    }
  }
}

// Each column in four chains, of every fourth row, which are then added in pairs.
template <typename P>
void sum_rows(const void* source, int64_t stride, int64_t rows, int64_t columns, void* sums, bool add) {
  const auto* from = static_cast<const typename P::Stored*>(source);
  auto* to = static_cast<typename P::Sum*>(sums);
  constexpr int64_t kColumns = 2 * kLanes<P>;
  for (int64_t first = 0; first < columns; first += kColumns) {
    const int64_t count = columns - first < kColumns ? columns - first : kColumns;
    typename P::Sum chains[4][kColumns] = {};
    for (int64_t i = 0; i < rows; ++i) {
      const auto* row = from + i * stride + first;
      typename P::Sum* chain = chains[i % 4];
      if (count == kColumns) {
        for (int64_t j = 0; j < kColumns; ++j) chain[j] += widen(row[j]);
      } else {
        for (int64_t j = 0; j < count; ++j) chain[j] += widen(row[j]);
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      const typename P::Sum sum = (chains[0][j] + chains[1][j]) + (chains[2][j] + chains[3][j]);
      to[first + j] = add ? to[first + j] + sum : sum;
    }
  }
}

template <typename P>
constexpr TileKernels kKernels = {
    kRowTile,       kRowTile * kLeftStride<P> * static_cast<int64_t>(sizeof(typename P::Left)),
    &pack_panel<P>, &load_left<P>,
    &multiply<P>,   &finish<P>,
    &sum_rows<P>};

}  // namespace

const TileKernels& kernels(Type type) {
  switch (type) {
    case Type::kFloat64:
      return kKernels<Float64>;
    case Type::kBFloat16:
      return kKernels<BFloat16Pairs>;
    case Type::kFloat32:
      break;
  }
  return kKernels<Float32>;
}

}  // namespace earnest::linear::EARNEST_TIER
