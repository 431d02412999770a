// SPDX-License-Identifier: Apache-2.0
// The transform of 400 real samples as 25 x 16, in vectors of doubles. 25 and 16 have no common factor, so
// with
//
//   n = 176 r + 225 l,  k = 16 c + 25 d   (mod 400;  r, c < 25;  l, d < 16)
//
// exp(-2 pi i n k / 400) = exp(-2 pi i r c / 25) exp(-2 pi i l d / 16): no turns between the two passes
// (Good, 1958). Samples are real, so the rows c and 25 - c hold the same, and 13 of the 25 suffice: a real
// one and 12 complex ones. A lane may be a frame, or (for one frame alone) an l in the first pass and a c in
// the second: what is computed for an element, and so its bits, is the same.
#include "kernels/logmel/lanes.h"

struct Pair {
  Doubles re, im;
  Pair() = default;
  Pair(Doubles real, Doubles imaginary) : re(real), im(imaginary) {}
  Pair(const Pair& other) : re(other.re), im(other.im) {}  // by registers: gcc 12 would copy it in pieces
  Pair& operator=(const Pair& other) {
    re = other.re;
    im = other.im;
    return *this;
  }
};

static inline Pair operator+(Pair a, Pair b) { return {a.re + b.re, a.im + b.im}; }
static inline Pair operator-(Pair a, Pair b) { return {a.re - b.re, a.im - b.im}; }
static inline Pair operator*(Pair a, double b) { return {a.re * b, a.im * b}; }
static inline Pair fused(Pair a, double b, Pair c) { return {fused(a.re, b, c.re), fused(a.im, b, c.im)}; }
static inline Pair times_minus_i(Pair a) { return {a.im, -a.re}; }
static inline Pair times(Pair a, double re, double im) {
  return {fused_minus(a.re, re, a.im * im), fused(a.re, im, a.im * re)};
}

constexpr double kSin1 = 0.95105651629515357212,
                 kSinRatio = 0.61803398874989484820;  // sin 72, sin 144 / sin 72
constexpr double kRoot = 0.55901699437494742410;      // sqrt(5) / 4

// Five real numbers: *zero = X[0], X[k] = re[k] - i sin(72 degrees) im[k] for k = 1, 2.
EARNEST_INLINE static inline void real_transform_5(const Doubles* in, Doubles* zero, Doubles* re,
                                                   Doubles* im) {
  const Doubles sum_1 = in[1] + in[4], sum_2 = in[2] + in[3], sum = sum_1 + sum_2;
  const Doubles difference_1 = in[1] - in[4], difference_2 = in[2] - in[3];
  const Doubles middle = fused(sum, -0.25, in[0]), apart = sum_1 - sum_2;
  *zero = in[0] + sum;
  re[1] = fused(apart, kRoot, middle);
  re[2] = fused(apart, -kRoot, middle);
  im[1] = fused(difference_2, kSinRatio, difference_1);
  im[2] = fused_minus(difference_1, kSinRatio, difference_2);
}

EARNEST_INLINE static inline void transform_5(const Pair* in, Pair* out) {
  const Pair sum_1 = in[1] + in[4], sum_2 = in[2] + in[3], sum = sum_1 + sum_2, apart = sum_1 - sum_2;
  const Pair difference_1 = in[1] - in[4], difference_2 = in[2] - in[3];
  const Pair middle = fused(sum, -0.25, in[0]);
  const Pair turned = apart * kRoot, real_1 = middle + turned, real_2 = middle - turned;
  const Pair odd_1 = times_minus_i(fused(difference_2, kSinRatio, difference_1)) * kSin1;
  const Pair odd_2 = times_minus_i({fused_minus(difference_1.re, kSinRatio, difference_2.re),
                                    fused_minus(difference_1.im, kSinRatio, difference_2.im)}) *
                     kSin1;
  out[0] = in[0] + sum;
  out[1] = real_1 + odd_1;
  out[2] = real_2 + odd_2;
  out[3] = real_2 - odd_2;
  out[4] = real_1 - odd_1;
}

// The 25 real numbers in(r) of one l to out(row, number) of the 13 rows of bin_at; 25 = 5 x 5 with r = 5 a +
// b. Numbers are fetched where they are first used and handed on at once: there are few registers.
template <typename In, typename Out>
EARNEST_INLINE static inline void transform_25(const Tables& tables, const In& in, const Out& out) {
  Doubles zero[5];
  Pair turned[3][5];  // [k][b]
#pragma GCC unroll 5
  for (int b = 0; b < 5; ++b) {
    const Doubles column[5] = {in(b), in(5 + b), in(10 + b), in(15 + b), in(20 + b)};
    Doubles re[3], im[3];
    real_transform_5(column, &zero[b], re, im);
#pragma GCC unroll 2
    for (int k = 1; k < 3; ++k) {
      if (b == 0) {
        turned[k][b] = {re[k], im[k] * -kSin1};
      } else {
        const Turn w = tables.turn_25[b][k];
        turned[k][b] = {fused(im[k], w.sin1_im, re[k] * w.re), fused(im[k], w.minus_sin1_re, re[k] * w.im)};
      }
    }
  }
  Doubles first, re[3], im[3];
  real_transform_5(zero, &first, re, im);
  out(0, Pair{first, Doubles{}});
  out(1, Pair{re[1], im[1] * -kSin1});
  out(2, Pair{re[2], im[2] * -kSin1});
  Pair rows[5];
  transform_5(turned[1], rows);
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) out(3 + i, rows[i]);
  transform_5(turned[2], rows);
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) out(8 + i, rows[i]);
}

// What is left of a transform of 4 once its even half, in[0] +- in[2], is known.
template <typename Out>
EARNEST_INLINE static inline void transform_4(Pair even_sum, Pair even_difference, Pair b, Pair d,
                                              const Out& out) {
  const Pair odd_sum = b + d, odd_difference = times_minus_i(b - d);
  out(0, even_sum + odd_sum);
  out(1, even_difference + odd_difference);
  out(2, even_sum - odd_sum);
  out(3, even_difference - odd_difference);
}

// The same as + and -, but done where multiplications are.
static inline Pair plus(Pair a, Pair b) { return fused(a, 1.0, b); }
static inline Pair minus(Pair a, Pair b) { return fused(b, -1.0, a); }

// out(d, sum over l of in(l) exp(-2 pi i l d / 16)), as 4 x 4.
template <typename In, typename Out>
EARNEST_INLINE static inline void transform_16(const In& in, const Out& out) {
  constexpr double kHalfRoot = 0.70710678118654752440, kCos = 0.92387953251128675613,
                   kSin = 0.38268343236508977173;
  Pair first[4][4];  // [l % 4][d % 4]
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const Pair a = in(q), c = in(8 + q);
    transform_4(plus(a, c), minus(a, c), in(4 + q), in(12 + q),
                [&](int i, Pair x) EARNEST_INLINE { first[q][i] = x; });
  }
  const Pair *a = first[0], *b = first[1], *c = first[2], *d = first[3];
  transform_4(a[0] + c[0], a[0] - c[0], b[0], d[0], [&](int i, Pair x) EARNEST_INLINE { out(4 * i, x); });
  {  // turns by 1, 2 and 3 sixteenths
    const Pair half = {c[1].re + c[1].im, c[1].im - c[1].re};
    transform_4(fused(half, kHalfRoot, a[1]), fused(half, -kHalfRoot, a[1]), times(b[1], kCos, -kSin),
                times(d[1], kSin, -kCos), [&](int i, Pair x) EARNEST_INLINE { out(4 * i + 1, x); });
  }
  {  // by 2, 4 and 6
    const Pair quarter = times_minus_i(c[2]), even_sum = a[2] + quarter, even_difference = a[2] - quarter;
    const Pair left = {b[2].re + b[2].im, b[2].im - b[2].re}, right = {d[2].re - d[2].im, d[2].re + d[2].im};
    const Pair odd_sum = left - right, odd_difference = times_minus_i(left + right);
    out(2, fused(odd_sum, kHalfRoot, even_sum));
    out(6, fused(odd_difference, kHalfRoot, even_difference));
    out(10, fused(odd_sum, -kHalfRoot, even_sum));
    out(14, fused(odd_difference, -kHalfRoot, even_difference));
  }
  {  // by 3, 6 and 9
    const Pair half = {c[3].re - c[3].im, c[3].re + c[3].im};
    transform_4(fused(half, -kHalfRoot, a[3]), fused(half, kHalfRoot, a[3]), times(b[3], kSin, -kCos),
                times(d[3], -kCos, kSin), [&](int i, Pair x) EARNEST_INLINE { out(4 * i + 3, x); });
  }
}
