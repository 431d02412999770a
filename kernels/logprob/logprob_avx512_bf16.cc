// SPDX-License-Identifier: Apache-2.0
// bfloat16 operands multiplied as they are, two to a word, summed in float (VDPBF16PS). float and double have
// nothing to gain here: they run the avx512 tier.
#if defined(__x86_64__)
#include <immintrin.h>

#define EARNEST_TIER avx512_bf16
#define EARNEST_VECTOR_BYTES 64
#define EARNEST_ROW_GROUP 8
#define EARNEST_PANEL_VECTORS 3
#include "kernels/logprob/logprob_simd.h"

namespace earnest::logprob::avx512_bf16 {
namespace {

// Neighbours along the depth share a word, the first in its lower half; past the end comes 0.
struct Pair {
  using Number = float;
  static constexpr int64_t kPair = 2;

  static inline void words(const BFloat16* from, int64_t count, float* to) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(BFloat16));
  }
  static inline void merge_rows(const BFloat16* first, const BFloat16* second, int64_t count, float* to) {
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t word = first[j].bits | static_cast<uint32_t>(second[j].bits) << 16;
      std::memcpy(to + j, &word, sizeof word);
    }
  }
  static inline Vec<float> multiply_add(const float* left, Vec<float> right, Vec<float> sum) {
    const __m512 word = _mm512_set1_ps(*left);
    return reinterpret_cast<Vec<float>>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(word), reinterpret_cast<__m512bh>(right)));
  }
  // Two rows of dz rounded to bfloat16: `rows` holds one after the other, `pairs` words of both.
  static inline void narrow_rows(const float* first, const float* second, float* rows, float* pairs) {
    for (int64_t j = 0; j < kTile; j += 16) {
      const Halves a = narrow_lanes(first + j), b = narrow_lanes(second + j);
      std::memcpy(rows + j / 2, &a, sizeof a);
      std::memcpy(rows + (kTile + j) / 2, &b, sizeof b);
      const Words words = __builtin_convertvector(a, Words) | __builtin_convertvector(b, Words) << 16;
      std::memcpy(pairs + j, &words, sizeof words);
    }
  }
  static inline float lost(float value) {
    BFloat16 rounded;
    narrow(value, &rounded);
    return value - widen(rounded);
  }

 private:
  typedef uint16_t Halves __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(64)));

  static inline Halves narrow_lanes(const float* from) {
    return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from)));
  }
};

}  // namespace

const TileKernels<float>& kernels_bfloat16() { return kKernels<Pair>; }

}  // namespace earnest::logprob::avx512_bf16
#endif
