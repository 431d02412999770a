// SPDX-License-Identifier: Apache-2.0
// Vectors of one CPU tier for the attention kernels. Included inside the tier's own namespace, so that no
// copy compiled for a newer machine can be linked into an older one's path. Needs <immintrin.h> on x86.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Integer;
  typedef Integer Mask __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::Type;
template <typename T>
using Mask = typename VectorOf<T>::Mask;
template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

#define EARNEST_INLINE static inline __attribute__((always_inline))

template <typename T>
EARNEST_INLINE Vector<T> load(const T* from) {
  Vector<T> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <typename T>
EARNEST_INLINE void store(T* to, Vector<T> x) {
  __builtin_memcpy(to, &x, sizeof x);
}
template <typename T>
EARNEST_INLINE Vector<T> splat(T x) {
  return x - Vector<T>{};
}

EARNEST_INLINE Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
EARNEST_INLINE Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

template <typename T>
EARNEST_INLINE Vector<T> max(Vector<T> a, Vector<T> b) {  // b where either is NaN
  return a > b ? a : b;
}

// Lane numbers 0, 1, 2, ...
template <typename T, size_t... kLane>
EARNEST_INLINE Mask<T> lane_numbers(std::index_sequence<kLane...>) {
  return Mask<T>{static_cast<typename VectorOf<T>::Integer>(kLane)...};
}
// x in the first `count` lanes, `other` in the rest.
template <typename T>
EARNEST_INLINE Vector<T> keep_first(Vector<T> x, int64_t count, Vector<T> other) {
  const Mask<T> lanes = lane_numbers<T>(std::make_index_sequence<kLanes<T>>());
  return lanes < static_cast<typename VectorOf<T>::Integer>(count) ? x : other;
}

// Sum and maximum over the lanes, as a tree that halves the vector at each step: one order for every caller.
template <typename T, size_t... kLane>
EARNEST_INLINE Vector<T> swap_lanes(Vector<T> x, int distance, std::index_sequence<kLane...>) {
  return __builtin_shuffle(x, Mask<T>{static_cast<typename VectorOf<T>::Integer>(kLane)...} ^
                                  static_cast<typename VectorOf<T>::Integer>(distance));
}
template <typename T>
EARNEST_INLINE T sum(Vector<T> x) {
#pragma GCC unroll 4
  for (int distance = kLanes<T> / 2; distance >= 1; distance /= 2)
    x = x + swap_lanes<T>(x, distance, std::make_index_sequence<kLanes<T>>());
  return x[0];
}
template <typename T>
EARNEST_INLINE T maximum(Vector<T> x) {
#pragma GCC unroll 4
  for (int distance = kLanes<T> / 2; distance >= 1; distance /= 2)
    x = max<T>(x, swap_lanes<T>(x, distance, std::make_index_sequence<kLanes<T>>()));
  return x[0];
}

// Transposes kLanes x kLanes: log2(kLanes) rounds of perfect shuffles of the rows i and i + kLanes / 2.
template <typename T, size_t... kLane>
EARNEST_INLINE Vector<T> zip_low(Vector<T> a, Vector<T> b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (kLane % 2 ? kLanes<T> + kLane / 2 : kLane / 2)...);
}
template <typename T, size_t... kLane>
EARNEST_INLINE Vector<T> zip_high(Vector<T> a, Vector<T> b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (kLanes<T> / 2 + (kLane % 2 ? kLanes<T> + kLane / 2 : kLane / 2))...);
}
template <typename T>
EARNEST_INLINE void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr auto kSequence = std::make_index_sequence<kLanes<T>>();
#pragma GCC unroll 4
  for (int round = 1; round < kLanes<T>; round *= 2) {
    Vector<T> zipped[kLanes<T>];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T> / 2; ++i) {
      zipped[2 * i] = zip_low<T>(rows[i], rows[i + kLanes<T> / 2], kSequence);
      zipped[2 * i + 1] = zip_high<T>(rows[i], rows[i + kLanes<T> / 2], kSequence);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) rows[i] = zipped[i];
  }
}

// 2^x for x <= 1: x = n + f with integer n and |f| <= 1/2, 2^f by a minimax polynomial with value 1 at 0.
// Relative error at most 1.2e-7 (float; the polynomial's own is 2e-9) and 2.3e-16 (double; 3.4e-18) where the
// result is a normal number; 0 or a
// denormal number below; NaN stays NaN.
template <typename T>
EARNEST_INLINE Vector<T> two_to_fraction(Vector<T> f) {
  if constexpr (sizeof(T) == 4) {
    Vector<T> y = splat<T>(1.53533606293e-4f);
    for (float c : {1.33988748666e-3f, 9.61843736642e-3f, 5.55033246969e-2f, 2.40226479135e-1f,
                    6.93147202856e-1f, 1.0f})
      y = fma(y, f, splat<T>(c));
    return y;
  } else {
    Vector<T> y = splat<T>(4.4347708103775014815e-10);
    for (double c : {7.0737832854020625193e-9, 1.0178199575306790033e-7, 1.3215435282068186062e-6,
                     1.5252733493118438132e-5, 1.5403530457112641239e-4, 1.333355814677463106e-3,
                     9.6181291075945197620e-3, 5.5504108664820083176e-2, 2.4022650695910131262e-1,
                     6.9314718055994532581e-1, 1.0})
      y = fma(y, f, splat<T>(c));
    return y;
  }
}
template <typename T>
EARNEST_INLINE Vector<T> exp2(Vector<T> x) {
#if defined(__AVX512F__)
  // reduce gives 0 for an infinity, and scalef then 2^-inf = 0. The forms with a full mask keep GCC 12 from
  // warning.
  if constexpr (sizeof(T) == 4) {
    const Vector<T> fraction = _mm512_maskz_reduce_ps(0xffff, x, 0);
    return _mm512_maskz_scalef_ps(0xffff, two_to_fraction<T>(fraction),
                                  _mm512_maskz_roundscale_ps(0xffff, x, 0));
  } else {
    const Vector<T> fraction = _mm512_maskz_reduce_pd(0xff, x, 0);
    return _mm512_maskz_scalef_pd(0xff, two_to_fraction<T>(fraction), _mm512_maskz_roundscale_pd(0xff, x, 0));
  }
#else
  constexpr bool kSingle = sizeof(T) == 4;
  const Vector<T> lowest = splat<T>(kSingle ? -127 : -1023);  // 2^lowest comes out as 0
  x = x < lowest ? lowest : x;
  const Vector<T> magic = splat<T>(kSingle ? static_cast<T>(12582912.0) : static_cast<T>(6755399441055744.0));
  const Vector<T> shifted = x + magic;  // rounds x to an integer, held in the low bits
  const Vector<T> fraction = x - (shifted - magic);
  Mask<T> exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + (kSingle ? 127 : 1023)) << (kSingle ? 23 : 52);
  Vector<T> power;
  __builtin_memcpy(&power, &exponent, sizeof power);
  return two_to_fraction<T>(fraction) * power;
#endif
}

// ---- elements in memory: what is loaded and stored need not be what is computed with ----
struct BFloat16 {
  uint16_t bits;
};
EARNEST_INLINE float to_arithmetic(float x) { return x; }
EARNEST_INLINE double to_arithmetic(double x) { return x; }
EARNEST_INLINE float to_arithmetic(BFloat16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &wide, sizeof y);
  return y;
}
EARNEST_INLINE void assign(float* to, float x) { *to = x; }
EARNEST_INLINE void assign(double* to, double x) { *to = x; }
EARNEST_INLINE void assign(BFloat16* to, float x) {  // to nearest, ties to even
  uint32_t wide;
  __builtin_memcpy(&wide, &x, sizeof wide);
  const uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  to->bits = static_cast<uint16_t>(x == x ? rounded : (wide >> 16) | 0x40);
}

// kLanes elements, of which the first `count` exist; the others read as 0.
template <typename T, typename E>
EARNEST_INLINE Vector<T> load_elements(const E* from, int64_t count) {
  if constexpr (std::is_same_v<T, E>) {
    if (count >= kLanes<T>) return load<T>(from);
  } else {
    if (count >= kLanes<T>) {
      typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
      typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
      Narrow narrow;
      __builtin_memcpy(&narrow, from, sizeof narrow);
      const Wide wide = __builtin_convertvector(narrow, Wide) << 16;
      Vector<T> x;
      __builtin_memcpy(&x, &wide, sizeof x);
      return x;
    }
  }
  T values[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = to_arithmetic(from[i]);
  return load<T>(values);
}
template <typename T, typename E>
EARNEST_INLINE void store_elements(E* to, Vector<T> x, int64_t count) {
  if constexpr (std::is_same_v<T, E>) {
    if (count >= kLanes<T>) return store<T>(to, x);
  }
  T values[kLanes<T>];
  store<T>(values, x);
  const int64_t present = count < kLanes<T> ? count : kLanes<T>;
  for (int64_t i = 0; i < present; ++i) assign(to + i, values[i]);
}
