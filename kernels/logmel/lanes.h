// SPDX-License-Identifier: Apache-2.0
// Vectors of one instruction set: EARNEST_LANES floats, or half as many doubles. Included inside a namespace
// of each; everything is static, so that no copy compiled for a newer machine can stand in for an older
// one's.

#define EARNEST_INLINE __attribute__((always_inline))  // the transforms live in registers or are slow

constexpr int kLanes = EARNEST_LANES, kHalf = kLanes / 2;
typedef float Floats __attribute__((vector_size(4 * EARNEST_LANES)));
typedef float UnalignedFloats __attribute__((vector_size(4 * EARNEST_LANES), aligned(4)));
typedef float HalfFloats __attribute__((vector_size(2 * EARNEST_LANES)));
typedef float UnalignedHalfFloats __attribute__((vector_size(2 * EARNEST_LANES), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * EARNEST_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * EARNEST_LANES)));
typedef double Doubles __attribute__((vector_size(4 * EARNEST_LANES)));
typedef double UnalignedDoubles __attribute__((vector_size(4 * EARNEST_LANES), aligned(8)));
typedef int64_t Longs __attribute__((vector_size(4 * EARNEST_LANES)));

static inline Floats load(const float* from) { return *reinterpret_cast<const UnalignedFloats*>(from); }
static inline void store(float* to, Floats value) { *reinterpret_cast<UnalignedFloats*>(to) = value; }

static inline Doubles splat(double x) { return x - Doubles{}; }  // unlike x + 0, this is x for all x
static inline Floats splat(float x) { return x - Floats{}; }

// a * b + c and a * b - c, rounded once where the machine can. Written out, so that a compiler that sees the
// same formula in two places cannot fuse it in one of them only.
#if EARNEST_LANES == 16
static inline Doubles widened(const float* from) {
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));
}
static inline void store_narrowed(float* to, Doubles x) {
  _mm256_storeu_ps(to, _mm512_maskz_cvtpd_ps(0xff, x));
}
static inline Doubles fused(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
static inline Doubles fused_minus(Doubles a, Doubles b, Doubles c) { return _mm512_fmsub_pd(a, b, c); }
static inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#elif EARNEST_LANES == 8
static inline Doubles widened(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
static inline void store_narrowed(float* to, Doubles x) { _mm_storeu_ps(to, _mm256_cvtpd_ps(x)); }
static inline Doubles fused(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
static inline Doubles fused_minus(Doubles a, Doubles b, Doubles c) { return _mm256_fmsub_pd(a, b, c); }
static inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
static inline Doubles widened(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const UnalignedHalfFloats*>(from), Doubles);
}
static inline void store_narrowed(float* to, Doubles x) {
  *reinterpret_cast<UnalignedHalfFloats*>(to) = __builtin_convertvector(x, HalfFloats);
}
static inline Doubles fused(Doubles a, Doubles b, Doubles c) { return a * b + c; }
static inline Doubles fused_minus(Doubles a, Doubles b, Doubles c) { return a * b - c; }
static inline Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
static inline float fused(float a, float b, float c) { return a * b + c; }
#endif
static inline Doubles fused(Doubles a, double b, Doubles c) { return fused(a, splat(b), c); }
static inline Doubles fused_minus(Doubles a, double b, Doubles c) { return fused_minus(a, splat(b), c); }
static inline Floats fused(Floats a, float b, Floats c) { return fused(a, splat(b), c); }

// One step of a transpose: where the lane's bit kBit is clear, keep a and fetch from b what lies kBit above
// it.
template <int kBit, typename Vector, typename Index>
static inline void exchange(Vector* a, Vector* b) {
  constexpr int kCount = sizeof(Vector) / sizeof((*a)[0]);
  Index low = {}, high = {};
  for (int lane = 0; lane < kCount; ++lane) {
    const bool set = (lane & kBit) != 0;
    low[lane] = set ? kCount + lane - kBit : lane;
    high[lane] = set ? kCount + lane : lane + kBit;
  }
  const Vector x = *a, y = *b;
  *a = __builtin_shuffle(x, y, low);
  *b = __builtin_shuffle(x, y, high);
}

// Transposes as many rows as a row has lanes.
template <typename Index, typename Vector, int kBit = 1>
static inline void transpose(Vector* rows) {
  constexpr int kCount = sizeof(Vector) / sizeof(rows[0][0]);
  if constexpr (kBit < kCount) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      if ((i & kBit) == 0) exchange<kBit, Vector, Index>(&rows[i], &rows[i + kBit]);
    }
    transpose<Index, Vector, 2 * kBit>(rows);
  }
}
