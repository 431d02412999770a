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

#define EARNEST_INLINE static inline __attribute__((always_inline))

template <typename T, int kBytes = kVectorBytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};
template <typename T, int kBytes = kVectorBytes>
using Vector = typename VectorOf<T, kBytes>::Type;

template <typename V>
using Element = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
template <typename V>
constexpr int kLanes = static_cast<int>(sizeof(V) / sizeof(Element<V>));
// Integers as wide as T: a comparison of vectors of T selects by vectors of these.
template <typename T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <typename V>
using Integers = Vector<Integer<Element<V>>, sizeof(V)>;

template <typename V, typename T>
EARNEST_INLINE V load(const T* from) {
  static_assert(sizeof(T) == sizeof(Element<V>));
  V x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <typename V, typename T>
EARNEST_INLINE void store(T* to, V x) {
  __builtin_memcpy(to, &x, sizeof x);
}
template <typename V, size_t... kLane>
EARNEST_INLINE V fill(Element<V> x, std::index_sequence<kLane...>) {
  return V{((void)kLane, x)...};
}
template <typename V>
EARNEST_INLINE V splat(Element<V> x) {
  return fill<V>(x, std::make_index_sequence<kLanes<V>>());
}
template <typename To, typename From>
EARNEST_INLINE To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}

// a * b + c; b where either of a and b is NaN; x to the nearest integer; x * 2^n for an integer n.
template <typename V>
EARNEST_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vector<float>>) return _mm512_fmadd_ps(a, b, c);
  if constexpr (std::is_same_v<V, Vector<double>>) return _mm512_fmadd_pd(a, b, c);
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return _mm256_fmadd_ps(a, b, c);
  if constexpr (std::is_same_v<V, Vector<double, 32>>) return _mm256_fmadd_pd(a, b, c);
#endif
  return a * b + c;
}
template <typename V>
EARNEST_INLINE V max(V a, V b) {
#if defined(__AVX512F__)  // the forms with a full mask keep GCC 12 from warning
  if constexpr (std::is_same_v<V, Vector<float>>) return _mm512_maskz_max_ps(0xffff, a, b);
  if constexpr (std::is_same_v<V, Vector<double>>) return _mm512_maskz_max_pd(0xff, a, b);
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return _mm256_max_ps(a, b);
#endif
  return a > b ? a : b;
}
#if defined(__AVX512F__)
template <typename V>
EARNEST_INLINE V nearest(V x) {
  if constexpr (std::is_same_v<V, Vector<float>>) return _mm512_maskz_roundscale_ps(0xffff, x, 8);
  if constexpr (std::is_same_v<V, Vector<double>>) return _mm512_maskz_roundscale_pd(0xff, x, 8);
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return _mm256_roundscale_ps(x, 8);
}
template <typename V>
EARNEST_INLINE V scale_by_power(V x, V n) {
  if constexpr (std::is_same_v<V, Vector<float>>) return _mm512_maskz_scalef_ps(0xffff, x, n);
  if constexpr (std::is_same_v<V, Vector<double>>) return _mm512_maskz_scalef_pd(0xff, x, n);
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return _mm256_scalef_ps(x, n);
}
#endif

// The lanes joined to one, as a tree that halves the vector at each step: one order for every caller.
template <typename V, size_t... kLane>
EARNEST_INLINE V swap_lanes(V x, int distance, std::index_sequence<kLane...>) {
  using I = Integer<Element<V>>;
  return __builtin_shuffle(x, Integers<V>{static_cast<I>(kLane)...} ^ static_cast<I>(distance));
}
template <typename V, typename Join>
EARNEST_INLINE Element<V> join_lanes(V x, const Join& join) {
#pragma GCC unroll 4
  for (int distance = kLanes<V> / 2; distance >= 1; distance /= 2)
    x = join(x, swap_lanes(x, distance, std::make_index_sequence<kLanes<V>>()));
  return x[0];
}
template <typename V>
EARNEST_INLINE Element<V> sum(V x) {
  return join_lanes(x, [](const V& a, const V& b) { return a + b; });
}
template <typename V>
EARNEST_INLINE Element<V> largest(V x) {
  return join_lanes(x, [](const V& a, const V& b) { return max(a, b); });
}
template <typename V, size_t... kLane>
EARNEST_INLINE V count_up(std::index_sequence<kLane...>) {  // 0, 1, 2, ...
  return V{static_cast<Element<V>>(kLane)...};
}

// Elements of a and b in turn, from the lower or the upper half of each.
template <typename V, size_t... kLane>
EARNEST_INLINE V zip_low(V a, V b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (kLane % 2 ? kLanes<V> + kLane / 2 : kLane / 2)...);
}
template <typename V, size_t... kLane>
EARNEST_INLINE V zip_high(V a, V b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (kLanes<V> / 2 + (kLane % 2 ? kLanes<V> + kLane / 2 : kLane / 2))...);
}

// The same within each 16 bytes, where it is cheap, from half kHalf of them; and every second 16 bytes of a,
// then of b, from number kHalf on.
template <size_t kHalf, typename V, size_t... kLane>
EARNEST_INLINE V zip_within(V a, V b, std::index_sequence<kLane...>) {
  constexpr size_t kIn = 16 / sizeof(Element<V>);
  return __builtin_shufflevector(
      a, b, (kLane / kIn * kIn + kHalf * kIn / 2 + kLane % kIn / 2 + kLane % 2 * kLanes<V>)...);
}
template <size_t kHalf, typename V, size_t... kLane>
EARNEST_INLINE V every_second(V a, V b, std::index_sequence<kLane...>) {
  constexpr size_t kIn = 16 / sizeof(Element<V>);
  return __builtin_shufflevector(a, b, (kLane / kIn * 2 * kIn + kHalf * kIn + kLane % kIn)...);
}

// 16 bytes of a and b in turn, from the lower or the upper half of each.
template <size_t kHalf, typename V, size_t... kLane>
EARNEST_INLINE V zip_quarters(V a, V b, std::index_sequence<kLane...>) {
  constexpr size_t kIn = 16 / sizeof(Element<V>);
  return __builtin_shufflevector(
      a, b, (kLane / kIn / 2 * kIn + kHalf * kLanes<V> / 2 + kLane % kIn + kLane / kIn % 2 * kLanes<V>)...);
}

// Where transpose takes row i from, and leaves it: bits of the lane within 16 bytes first, then the reverse
// of those that count the 16 bytes.
template <typename V>
constexpr int place(int i) {
  constexpr int kIn = 16 / sizeof(Element<V>), kOf = kLanes<V> / kIn;
  int reversed = 0;
  for (int bit = 1; bit < kOf; bit *= 2) reversed = 2 * reversed + ((i & bit) != 0);
  return reversed * kIn + i / kOf;
}

// Transposes kLanes x kLanes: log2(kLanes) rounds on the rows i and i + kLanes / 2.
template <typename V>
EARNEST_INLINE void transpose(V (&rows)[kLanes<V>]) {
  constexpr auto kSequence = std::make_index_sequence<kLanes<V>>();
  V a[kLanes<V>], b[kLanes<V>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<V>; ++i) a[i] = rows[place<V>(i)];
#pragma GCC unroll 4
  for (int round = 1; round < kLanes<V>; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<V>; ++i) {
      const V &x = a[i / 2], &y = a[i / 2 + kLanes<V> / 2];
      if (round * static_cast<int>(sizeof(Element<V>)) < 16) {
        b[i] = i % 2 ? zip_within<1>(x, y, kSequence) : zip_within<0>(x, y, kSequence);
      } else {
        b[i] = i % 2 ? every_second<1>(x, y, kSequence) : every_second<0>(x, y, kSequence);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<V>; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<V>; ++i) rows[place<V>(i)] = a[i];
}

// 2^x for x <= 1: x = n + f with integer n and |f| <= 1/2, 2^f by a minimax polynomial with value 1 at 0.
// Relative error at most 1.2e-7 (float; the polynomial's own is 2e-9, or 9e-8 where `kShort`) and 2.3e-16
// (double; 3.4e-18) where the result is a normal number; exactly 0 from 2^-200 (float) on down and for -inf;
// NaN stays NaN.
template <bool kShort, typename V>
EARNEST_INLINE V two_to_fraction(V f) {
  const auto horner = [&](auto highest, auto... lower) {
    V y = splat<V>(highest);
    ((y = fma(y, f, splat<V>(lower))), ...);
    return y;
  };
  if constexpr (sizeof(Element<V>) == 8) {
    return horner(4.4347708103775014815e-10, 7.0737832854020625193e-9, 1.0178199575306790033e-7,
                  1.3215435282068186062e-6, 1.5252733493118438132e-5, 1.5403530457112641239e-4,
                  1.333355814677463106e-3, 9.6181291075945197620e-3, 5.5504108664820083176e-2,
                  2.4022650695910131262e-1, 6.9314718055994532581e-1, 1.0);
  } else if constexpr (kShort) {
    return horner(1.32647276300e-3f, 9.67151264624e-3f, 5.55073374175e-2f, 2.40222420853e-1f,
                  6.93146977600e-1f, 1.0f);
  } else {
    return horner(1.53533606293e-4f, 1.33988748666e-3f, 9.61843736642e-3f, 5.55033246969e-2f,
                  2.40226479135e-1f, 6.93147202856e-1f, 1.0f);
  }
}
template <bool kShort = false, typename V>
EARNEST_INLINE V exp2(V x) {
  constexpr bool kSingle = sizeof(Element<V>) == 4;
#if defined(__AVX512F__)
  x = max(splat<V>(kSingle ? -200 : -1200), x);
  const V n = nearest(x);
  return scale_by_power(two_to_fraction<kShort>(x - n), n);
#else
  using T = Element<V>;
  const V lowest = splat<V>(kSingle ? -127 : -1023);  // 2^lowest comes out as 0
  x = x < lowest ? lowest : x;
  const V magic = splat<V>(kSingle ? static_cast<T>(12582912.0) : static_cast<T>(6755399441055744.0));
  const V shifted = x + magic;  // rounds x to an integer, held in the low bits
  const Integers<V> exponent = (same_bits<Integers<V>>(shifted) + (kSingle ? 127 : 1023))
                               << (kSingle ? 23 : 52);
  return two_to_fraction<kShort>(x - (shifted - magic)) * same_bits<V>(exponent);
#endif
}

// ---- elements in memory: what is loaded and stored need not be what is computed with ----
struct BFloat16 {
  uint16_t bits;
};

// kLanes elements, of which the first `count` exist; the others read as 0.
template <typename V, typename E>
EARNEST_INLINE V load_elements(const E* from, int64_t count) {
  E present[kLanes<V>];
  if (count < kLanes<V>) {
    __builtin_memset(present, 0, sizeof present);
    if (count > 0) __builtin_memcpy(present, from, static_cast<size_t>(count) * sizeof(E));
    from = present;
  }
  if constexpr (std::is_same_v<Element<V>, E>) {
    return load<V>(from);
  } else {
    const auto narrow = load<Vector<uint16_t, sizeof(V) / 2>>(&from->bits);
    return same_bits<V>(__builtin_convertvector(narrow, Vector<uint32_t, sizeof(V)>) << 16);
  }
}
template <typename V, typename E>
EARNEST_INLINE void store_elements(E* to, V x, int64_t count) {
  E values[kLanes<V>];
  E* first = count < kLanes<V> ? values : to;
  if constexpr (std::is_same_v<Element<V>, E>) {
    store(first, x);
  } else {  // to nearest, ties to even
    const auto wide = same_bits<Vector<uint32_t, sizeof(V)>>(x);
    const auto rounded = x == x ? (wide + 0x7fff + ((wide >> 16) & 1)) >> 16 : (wide >> 16) | 0x40;
    store(&first->bits, __builtin_convertvector(rounded, Vector<uint16_t, sizeof(V) / 2>));
  }
  if (count < kLanes<V> && count > 0) __builtin_memcpy(to, values, static_cast<size_t>(count) * sizeof(E));
}

// ---- pairs of bfloat16 in the bits of a float: what vdpbf16ps multiplies and adds, two at a time ----
// kPairs says throughout whether the operands of products are such pairs; else they are the type of sums.

#if defined(__AVX512BF16__)
// a[0] * b[0] + a[1] * b[1] + c in every lane.
EARNEST_INLINE Vector<float> dot_pairs(Vector<float> a, Vector<float> b, Vector<float> c) {
  return _mm512_dpbf16_ps(c, same_bits<__m512bh>(a), same_bits<__m512bh>(b));
}
EARNEST_INLINE Vector<float, 32> dot_pairs(Vector<float, 32> a, Vector<float, 32> b, Vector<float, 32> c) {
  return _mm256_dpbf16_ps(c, same_bits<__m256bh>(a), same_bits<__m256bh>(b));
}
// The same, b one pair in memory for all lanes. GCC 12 loads it into a register first, which costs half the
// rate.
EARNEST_INLINE Vector<float, 32> dot_pair(Vector<float, 32> a, const float* pair, Vector<float, 32> c) {
  typedef float Anywhere __attribute__((aligned(1), may_alias));
  const auto* b = reinterpret_cast<const Anywhere*>(pair);
  asm("vdpbf16ps %2%{1to8%}, %1, %0" : "+v"(c) : "v"(a), "m"(*b));
  return c;
}
// low, then high, rounded.
EARNEST_INLINE Vector<uint16_t> round_two(Vector<float> low, Vector<float> high) {
  return same_bits<Vector<uint16_t>>(_mm512_cvtne2ps_pbh(high, low));
}
EARNEST_INLINE Vector<uint16_t, 32> round_two(Vector<float, 32> low, Vector<float, 32> high) {
  return same_bits<Vector<uint16_t, 32>>(_mm256_cvtne2ps_pbh(high, low));
}
#endif

// From round_two's order to pairs (low[i], high[i]).
template <typename V>
EARNEST_INLINE V pair_up(V halves) {
  constexpr int kCount = static_cast<int>(sizeof(V) / 2);
  return [&]<size_t... kLane>(std::index_sequence<kLane...>) {
    return __builtin_shuffle(halves, V{static_cast<uint16_t>(kLane / 2 + kLane % 2 * (kCount / 2))...});
  }(std::make_index_sequence<kCount>());
}

// Pairs (low, high) of what two rows hold in the lower or the upper half of each 16 bytes.
template <size_t kHalf, typename V>
EARNEST_INLINE V zip_pairs(V low, V high) {
  typedef Vector<uint16_t, sizeof(V)> Halves;
  return same_bits<V>(zip_within<kHalf>(same_bits<Halves>(low), same_bits<Halves>(high),
                                        std::make_index_sequence<kLanes<Halves>>()));
}
