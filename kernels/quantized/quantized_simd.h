// SPDX-License-Identifier: Apache-2.0
// What quantized_tile.h asks of a tier, written once with GCC/Clang vector extensions. Each tier's source
// file defines EARNEST_TIER (its namespace), EARNEST_VECTOR_BYTES, EARNEST_ACCUMULATORS (vector registers for
// sums) and perhaps EARNEST_VNNI, and includes this. Everything here has internal linkage.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if EARNEST_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#include "kernels/common/bfloat16.h"
#include "kernels/quantized/quantized_tile.h"

#define EARNEST_INLINE static inline __attribute__((always_inline))

namespace earnest::quantized::EARNEST_TIER {
namespace {

typedef float Floats __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(EARNEST_VECTOR_BYTES)));

constexpr int64_t kLanes = EARNEST_VECTOR_BYTES / 4;
constexpr int kVectors = kPanel / kLanes;  // of one panel

template <typename Vector>
EARNEST_INLINE Vector load(const char* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// In each lane: sum + the four products of w's bytes (0 to 255) with x's (-128 to 127).
EARNEST_INLINE Words dot4(Words sum, Words w, Words x) {
#if defined(EARNEST_VNNI)
  return (Words)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif EARNEST_VECTOR_BYTES == 64
  const __m512i bytes = _mm512_set1_epi16(255), signed_x = (__m512i)x, codes = (__m512i)w;
  const __m512i even =
      _mm512_madd_epi16(_mm512_and_si512(codes, bytes), _mm512_srai_epi16(_mm512_slli_epi16(signed_x, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes, 8), _mm512_srai_epi16(signed_x, 8));
  return sum + (Words)even + (Words)odd;
#elif EARNEST_VECTOR_BYTES == 32
  const __m256i bytes = _mm256_set1_epi16(255), signed_x = (__m256i)x, codes = (__m256i)w;
  const __m256i even =
      _mm256_madd_epi16(_mm256_and_si256(codes, bytes), _mm256_srai_epi16(_mm256_slli_epi16(signed_x, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(signed_x, 8));
  return sum + (Words)even + (Words)odd;
#else
  for (int byte = 0; byte < 4; ++byte) {
    const Ints factor = (Ints)(x << (24 - 8 * byte)) >> 24;
    sum += ((w >> (8 * byte)) & 255u) * (Words)factor;
  }
  return sum;
#endif
}

// a b + c, in one rounding where the tier has that. Said by name: left to the compiler, which products are
// fused differs from one tile to another, and with it the bits of a row.
EARNEST_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if EARNEST_VECTOR_BYTES == 64
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif EARNEST_VECTOR_BYTES == 32
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

EARNEST_INLINE Words same_in_all(const char* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return Words{} + value;
}

EARNEST_INLINE Floats to_float(Words sums) { return __builtin_convertvector((Ints)sums, Floats); }

// Few rows take one panel after another, so that the codes are one stream, in order, which the processor
// reads ahead faster than any line is asked for by hand. With more rows some panels are taken together, and
// those of the next tile, which lie behind them, are asked for meanwhile: they are in the second cache when
// their turn comes.
constexpr int kStreamRows = 2;

template <int kRows>
EARNEST_INLINE void fetch_ahead(const char* from, int64_t distance) {
  if constexpr (kRows > kStreamRows) __builtin_prefetch(from + distance, 0, 2);
}

// The sums of the planes as one number. Those of two fit in 32 bits together.
template <int kPlanes>
EARNEST_INLINE Floats joined(const Words* sums) {
  if constexpr (kPlanes == 1) return to_float(sums[0]);
  const Floats lower = to_float((sums[kPlanes - 2] << 8) + sums[kPlanes - 1]);
  if constexpr (kPlanes == 2) return lower;
  return to_float(sums[0]) * 65536.0f + lower;
}

template <int kPlanes>
EARNEST_INLINE const char* plane_of(const char* block, int plane) {
  return block + sizeof(BlockHeader) + plane * block_of(kPlanes);
}

// ---- one block of the depth, `groups` groups, for all rows and panels of a tile ----

// Sums of a tile that are so few that one product would wait for the one before it are made of several
// chains: the sums of integers are exact, so that their order does not count.
template <int kSums>
constexpr int kChains = kSums >= 8   ? 1
                        : kSums >= 4 ? 2
                                     : 4;

template <int kPlanes, int kRows, int kPanels>
struct Int8Block {
  static constexpr int kChain = kChains<kPlanes * kRows * kPanels * kVectors>;
  using Sums = Words[kRows][kPanels][kVectors][kPlanes];

  EARNEST_INLINE void add_step(const Tile& t, const char* left, int64_t step, const char* const* panels,
                               Sums& sums) {
    Words w[kPanels][kVectors];
#pragma GCC unroll 32
    for (int j = 0; j < kPanels * kVectors; ++j) {
      const char* from = panels[j / kVectors] + step * kPanel * 4 + j % kVectors * EARNEST_VECTOR_BYTES;
      w[j / kVectors][j % kVectors] = load<Words>(from);
      if (j % kVectors == 0) fetch_ahead<kRows>(from, t.ahead);
    }
#pragma GCC unroll 64
    for (int i = 0; i < kRows * kPlanes; ++i) {
      const char* row = left + i / kPlanes * t.left_stride;
      const Words x = same_in_all(plane_of<kPlanes>(row, i % kPlanes) + step * 4);
#pragma GCC unroll 32
      for (int j = 0; j < kPanels * kVectors; ++j) {
        Words* to = &sums[i / kPlanes][j / kVectors][j % kVectors][i % kPlanes];
        *to = dot4(*to, w[j / kVectors][j % kVectors], x);
      }
    }
  }

  EARNEST_INLINE void run(const Tile& t, const char* left, int64_t groups, const char** panels,
                          Floats (*totals)[kPanels][kVectors]) {
    Sums chains[kChain] = {};
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      BlockHeader header;
      std::memcpy(&header, left + i * t.left_stride, sizeof header);
#pragma GCC unroll 8
      for (int j = 0; j < kPanels * kVectors; ++j) {
        Words* to = chains[0][i][j / kVectors][j % kVectors];
        to[kPlanes - 1] += static_cast<uint32_t>(header.lower_sum);
        if (kPlanes == 3) to[0] += static_cast<uint32_t>(header.upper_sum);
      }
    }
    const int64_t steps = groups * kGroup / 4;
    for (int64_t step = 0; step < steps; step += kChain) {
#pragma GCC unroll 4
      for (int c = 0; c < kChain; ++c) add_step(t, left, step + c, panels, chains[c]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kPanels; ++j) panels[j] += steps * kPanel * 4;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      float unit;
      std::memcpy(&unit, left + i * t.left_stride, sizeof unit);
#pragma GCC unroll 32
      for (int j = 0; j < kPanels * kVectors; ++j) {
        Words* sums = chains[0][i][j / kVectors][j % kVectors];
#pragma GCC unroll 12
        for (int c = kPlanes; c < kChain * kPlanes; ++c)
          sums[c % kPlanes] += chains[c / kPlanes][i][j / kVectors][j % kVectors][c % kPlanes];
        Floats* to = &totals[i][j / kVectors][j % kVectors];
        *to = multiply_add(Floats{} + unit, joined<kPlanes>(sums), *to);
      }
    }
  }
};

template <int kPlanes, int kRows, int kPanels>
struct Int4Block {
  EARNEST_INLINE void run(const Tile& t, const char* left, int64_t groups, const char** panels,
                          Floats (*totals)[kPanels][kVectors]) {
    Floats part[kRows][kPanels][kVectors] = {};
    for (int64_t group = 0; group < groups; ++group) {
      Words sums[kRows][kPanels][kVectors][kPlanes] = {};
#pragma GCC unroll 4
      for (int quarter = 0; quarter < 4; ++quarter) {
        Words w[kPanels][kVectors];
#pragma GCC unroll 32
        for (int j = 0; j < kPanels * kVectors; ++j) {
          const char* from =
              panels[j / kVectors] + (1 + quarter) * kPanel * 4 + j % kVectors * EARNEST_VECTOR_BYTES;
          w[j / kVectors][j % kVectors] = load<Words>(from);
          if (j % kVectors == 0) fetch_ahead<kRows>(from, t.ahead);
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int64_t at = group * kGroup + quarter * 8 + half * 4;
#pragma GCC unroll 64
          for (int i = 0; i < kRows * kPlanes; ++i) {
            const char* row = left + i / kPlanes * t.left_stride;
            const Words x = same_in_all(plane_of<kPlanes>(row, i % kPlanes) + at);
#pragma GCC unroll 32
            for (int j = 0; j < kPanels * kVectors; ++j) {
              const Words codes = (w[j / kVectors][j % kVectors] >> (4 * half)) & 0x0f0f0f0fu;
              Words* to = &sums[i / kPlanes][j / kVectors][j % kVectors][i % kPlanes];
              *to = dot4(*to, codes, x);
            }
          }
        }
      }
#pragma GCC unroll 32
      for (int j = 0; j < kPanels * kVectors; ++j) {
        const auto both = load<Words>(panels[j / kVectors] + j % kVectors * EARNEST_VECTOR_BYTES);
        if (j % kVectors == 0) fetch_ahead<kRows>(panels[j / kVectors], t.ahead);
        const Floats scale = (Floats)(both << 16), minimum = (Floats)(both & 0xffff0000u);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          float sum;
          std::memcpy(&sum, left + i * t.left_stride + (1 + group) * 4, sizeof sum);
          Floats* to = &part[i][j / kVectors][j % kVectors];
          *to = multiply_add(scale, joined<kPlanes>(sums[i][j / kVectors][j % kVectors]), *to);
          *to = multiply_add(minimum, Floats{} + sum, *to);
        }
      }
#pragma GCC unroll 8
      for (int j = 0; j < kPanels; ++j) panels[j] += kPanel * 4 * 5;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      float unit;
      std::memcpy(&unit, left + i * t.left_stride, sizeof unit);
#pragma GCC unroll 32
      for (int j = 0; j < kPanels * kVectors; ++j) {
        Floats* to = &totals[i][j / kVectors][j % kVectors];
        *to = multiply_add(Floats{} + unit, part[i][j / kVectors][j % kVectors], *to);
      }
    }
  }
};

// Numbers of T and floats, a vector at a time.
typedef uint16_t Halves __attribute__((vector_size(EARNEST_VECTOR_BYTES / 2)));

template <typename T>
EARNEST_INLINE Floats load_widened(const T* from) {
  if constexpr (sizeof(T) == 4) return load<Floats>(reinterpret_cast<const char*>(from));
  const auto halves = load<Halves>(reinterpret_cast<const char*>(from));
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// As narrow() of kernels/common/bfloat16.h does.
template <typename T>
EARNEST_INLINE void store_narrowed(Floats values, T* to) {
  if constexpr (sizeof(T) == 4) {
    std::memcpy(to, &values, sizeof values);
    return;
  }
  const Words words = (Words)values;
  const Words even = words + 0x7fffu + ((words >> 16) & 1u),
              nan = (Words)((words & 0x7fffffffu) > 0x7f800000u);
  const Words rounded = ((nan & (words | 0x400000u)) | (~nan & even)) >> 16;
  const Halves halves = __builtin_convertvector(rounded, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// y = total scale + bias for what there is of one panel in one row.
template <typename T, Codes kCodes>
EARNEST_INLINE void finish(const Floats* totals, const char* panel, int64_t count, const void* bias, T* y) {
  T whole[kPanel], added[kPanel] = {};
  T* to = count == kPanel ? y : whole;
  const T* from = static_cast<const T*>(bias);
  if (bias != nullptr && count < kPanel) {
    std::memcpy(added, bias, static_cast<size_t>(count) * sizeof(T));
    from = added;
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const Floats biases = bias == nullptr ? Floats{} : load_widened(from + v * kLanes);
    const Floats sums = kCodes == Codes::kInt4
                            ? totals[v] + biases
                            : multiply_add(totals[v], load<Floats>(panel + v * EARNEST_VECTOR_BYTES), biases);
    store_narrowed(sums, to + v * kLanes);
  }
  if (count < kPanel) std::memcpy(y, whole, static_cast<size_t>(count) * sizeof(T));
}

template <typename T, Codes kCodes, int kPlanes, int kRows, int kPanels>
void multiply_tile(const Tile& t) {
  Floats totals[kRows][kPanels][kVectors] = {};
  const char* panels[kPanels];
  for (int j = 0; j < kPanels; ++j) panels[j] = t.panels[j] + (kCodes == Codes::kInt8 ? kPanel * 4 : 0);
  const char* left = t.left;
  constexpr int64_t kGroups = block_of(kPlanes) / kGroup;
  for (int64_t groups = groups_of(t.inputs); groups > 0; groups -= kGroups, left += block_bytes(kPlanes)) {
    const int64_t here = groups < kGroups ? groups : kGroups;
    if constexpr (kCodes == Codes::kInt8) {
      Int8Block<kPlanes, kRows, kPanels>::run(t, left, here, panels, totals);
    } else {
      Int4Block<kPlanes, kRows, kPanels>::run(t, left, here, panels, totals);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kPanels; ++j) {
      finish<T, kCodes>(totals[i][j], t.panels[j], t.counts[j], t.biases[j],
                        static_cast<T*>(t.outputs[j]) + i * t.output_stride);
    }
  }
}

// ---- rows of x as whole numbers ----

// Of a block: the bits of the largest magnitude. Those of NaN are above infinity's.
template <typename T>
uint32_t largest_bits(const T* x, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = widen(x[i]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return most;
}

template <int kPlanes>
EARNEST_INLINE void split(const int32_t* whole, int8_t* planes) {
  constexpr int64_t kBlock = block_of(kPlanes);
  for (int64_t i = 0; i < kBlock; ++i) {
    int32_t rest = whole[i];
    if (kPlanes == 3) {
      const int32_t upper = (rest + 32768 + 128) >> 16;
      planes[i] = static_cast<int8_t>(upper);
      rest -= upper * 65536;
    }
    if (kPlanes >= 2) {
      const int32_t middle = (rest + 128) >> 8;
      planes[(kPlanes - 2) * kBlock + i] = static_cast<int8_t>(middle);
      rest -= middle * 256;
    }
    planes[(kPlanes - 1) * kBlock + i] = static_cast<int8_t>(rest);
  }
}

template <typename T, int kPlanes>
void quantise_block(const T* x, int64_t count, char* out) {
  constexpr int64_t kBlock = block_of(kPlanes);
  constexpr float kMost = kPlanes == 1 ? 127.0f : kPlanes == 2 ? 127.0f * 256 : 127.0f * 65536;
  constexpr float kLeast = 1e-30f;  // below it counts as zero
  BlockHeader header = {};
  auto* planes = reinterpret_cast<int8_t*>(out + sizeof header);
  const uint32_t bits = largest_bits(x, count);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  const bool finite = bits < 0x7f800000u;
  if (!finite || largest < kLeast) {
    header.unit = finite ? 0.0f : std::nanf("");
    std::memset(planes, 0, kPlanes * kBlock);
    std::memcpy(out, &header, sizeof header);
    return;
  }
  header.unit = largest / kMost;
  const float inverse = kMost / largest;
  int32_t whole[kBlock] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float value = widen(x[i]) * inverse;
    whole[i] = static_cast<int32_t>(value + (value < 0 ? -0.5f : 0.5f));
  }
  int32_t total = 0, upper = 0;
  for (int64_t group = 0; group < kBlock / kGroup; ++group) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kGroup; ++i) sum += whole[group * kGroup + i];
    header.sums[group] = static_cast<float>(sum);
    total += sum;
  }
  split<kPlanes>(whole, planes);
  if (kPlanes == 3) {
    for (int64_t i = 0; i < kBlock; ++i) upper += planes[i];
  }
  header.upper_sum = -128 * upper;
  header.lower_sum = static_cast<int32_t>(-128 * (int64_t{total} - int64_t{upper} * 65536));
  std::memcpy(out, &header, sizeof header);
}

template <typename T, int kPlanes>
void quantise(const void* row, int64_t inputs, void* out) {
  const T* x = static_cast<const T*>(row);
  char* to = static_cast<char*>(out);
  constexpr int64_t kBlock = block_of(kPlanes);
  for (; inputs > 0; inputs -= kBlock, x += kBlock, to += block_bytes(kPlanes)) {
    quantise_block<T, kPlanes>(x, inputs < kBlock ? inputs : kBlock, to);
  }
}

// ---- which tiles there are ----

constexpr int accumulators(Codes codes) {
  return codes == Codes::kInt8 ? EARNEST_ACCUMULATORS : EARNEST_ACCUMULATORS * 2 / 3;
}
// One register of weights is good for two planes of two panels where there are many registers.
constexpr int rows_of_tile(Codes codes, int planes) {
  const int rows = accumulators(codes) / (planes * kVectors * (EARNEST_VECTOR_BYTES == 64 ? 2 : 1));
  return rows < 1 ? 1 : rows;
}
constexpr int panels_of_tile(Codes codes, int planes, int rows) {
  if (rows <= kStreamRows) return 1;
  const int most = accumulators(codes) / (planes * kVectors * rows);
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

template <typename T, Codes kCodes, int kPlanes, int kRows>
void multiply_rows(const Tile& t, int64_t panels) {
  constexpr int kMost = panels_of_tile(kCodes, kPlanes, kRows);
  if (kMost == 4 && panels == 4) return multiply_tile<T, kCodes, kPlanes, kRows, kMost == 4 ? 4 : 1>(t);
  Tile rest = t;
  const auto advance = [&rest](int by) {
    for (int64_t j = 0; j + by < kMostPanels; ++j) {
      rest.panels[j] = rest.panels[j + by];
      rest.counts[j] = rest.counts[j + by];
      rest.biases[j] = rest.biases[j + by];
      rest.outputs[j] = rest.outputs[j + by];
    }
  };
  if constexpr (kMost >= 2) {
    for (; panels >= 2; panels -= 2, advance(2)) multiply_tile<T, kCodes, kPlanes, kRows, 2>(rest);
  }
  for (; panels >= 1; --panels, advance(1)) multiply_tile<T, kCodes, kPlanes, kRows, 1>(rest);
}

template <typename T, Codes kCodes, int kPlanes, size_t... kIndex>
void multiply_of(const Tile& tile, int64_t rows, int64_t panels, std::index_sequence<kIndex...>) {
  using Rows = void (*)(const Tile&, int64_t);
  static constexpr Rows table[] = {&multiply_rows<T, kCodes, kPlanes, static_cast<int>(kIndex) + 1>...};
  table[rows - 1](tile, panels);
}

template <typename T, Codes kCodes, int kPlanes>
void multiply(const Tile& tile, int64_t rows, int64_t panels) {
  multiply_of<T, kCodes, kPlanes>(tile, rows, panels,
                                  std::make_index_sequence<rows_of_tile(kCodes, kPlanes)>{});
}

template <typename T, Codes kCodes, int kPlanes>
const Kernels& kernels_with() {
  static constexpr Kernels made = [] {
    Kernels k = {rows_of_tile(kCodes, kPlanes), {}, &quantise<T, kPlanes>, &multiply<T, kCodes, kPlanes>};
    for (int i = 0; i < k.row_tile; ++i) k.panels_of_rows[i] = panels_of_tile(kCodes, kPlanes, i + 1);
    return k;
  }();
  return made;
}

template <typename T, Codes kCodes>
const Kernels& kernels_for(Activations activations) {
  if (activations == Activations::kInt8) return kernels_with<T, kCodes, 1>();
  return kernels_with<T, kCodes, sizeof(T) == 2 ? 2 : 3>();
}

}  // namespace

const Kernels& kernels(Type type, Codes codes, Activations activations) {
  if (type == Type::kFloat32) {
    return codes == Codes::kInt8 ? kernels_for<float, Codes::kInt8>(activations)
                                 : kernels_for<float, Codes::kInt4>(activations);
  }
  return codes == Codes::kInt8 ? kernels_for<BFloat16, Codes::kInt8>(activations)
                               : kernels_for<BFloat16, Codes::kInt4>(activations);
}

}  // namespace earnest::quantized::EARNEST_TIER
