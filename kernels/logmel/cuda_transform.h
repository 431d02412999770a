// SPDX-License-Identifier: Apache-2.0
// The transform of transform.h, 25 x 16 by Good's mapping, for one thread of a GPU in float32. There a
// product costs as much as a sum and a fused pair of them no more than either, so every turn is part of a
// fused sum, and the window is part of the first sums. All fusing is written out: nvcc could else choose
// differently in two kernels, and a frame's bits with it.
#pragma once

#include "kernels/common/simt.h"

namespace earnest::logmel {

struct Complex {
  float re, im;
};

// A product that the compiler may not make part of a fused sum.
__device__ __forceinline__ float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ __forceinline__ Complex plus_product(Complex a, float b, Complex c) {
  return {fmaf(a.re, b, c.re), fmaf(a.im, b, c.im)};
}
// a times -i b, plus c.
__device__ __forceinline__ Complex plus_turned(Complex a, float b, Complex c) {
  return {fmaf(a.im, b, c.re), fmaf(a.re, -b, c.im)};
}
__device__ __forceinline__ Complex times(Complex a, float re, float im) {
  return {fmaf(a.re, re, -(a.im * im)), fmaf(a.re, im, a.im * re)};
}
__device__ __forceinline__ float power_of(Complex x) { return fmaf(x.re, x.re, x.im * x.im); }

// sin 72, sin 144 / sin 72 degrees; sqrt(5) / 4.
constexpr float kSin1 = 0.95105651629515357212f, kSinRatio = 0.61803398874989484820f,
                kRoot5 = 0.55901699437494742410f;

// Of five real numbers, all but the first given as sums and differences of the first and last, and of the two
// between: *zero = X[0], X[k] = re[k - 1] - i sin(72 degrees) im[k - 1] for k = 1, 2.
__device__ __forceinline__ void real_transform_5(float first, float sum_1, float sum_2, float difference_1,
                                                 float difference_2, float* zero, float* re, float* im) {
  const float sum = sum_1 + sum_2, apart = sum_1 - sum_2, middle = fmaf(sum, -0.25f, first);
  *zero = first + sum;
  re[0] = fmaf(apart, kRoot5, middle);
  re[1] = fmaf(apart, -kRoot5, middle);
  im[0] = fmaf(difference_2, kSinRatio, difference_1);
  im[1] = fmaf(difference_1, kSinRatio, -difference_2);
}

__device__ __forceinline__ void transform_5(const Complex* in, Complex* out) {
  const Complex sum_1 = in[1] + in[4], sum_2 = in[2] + in[3], sum = sum_1 + sum_2, apart = sum_1 - sum_2;
  const Complex difference_1 = in[1] - in[4], difference_2 = in[2] - in[3];
  const Complex middle = plus_product(sum, -0.25f, in[0]);
  const Complex real_1 = plus_product(apart, kRoot5, middle), real_2 = plus_product(apart, -kRoot5, middle);
  const Complex odd_1 = plus_product(difference_2, kSinRatio, difference_1);
  const Complex odd_2 = {fmaf(difference_1.re, kSinRatio, -difference_2.re),
                         fmaf(difference_1.im, kSinRatio, -difference_2.im)};
  out[0] = in[0] + sum;
  out[1] = plus_turned(odd_1, kSin1, real_1);
  out[2] = plus_turned(odd_2, kSin1, real_2);
  out[3] = plus_turned(odd_2, -kSin1, real_2);
  out[4] = plus_turned(odd_1, -kSin1, real_1);
}

// exp(-2 pi i n / 25) for the n = b k there are, and sin(72 degrees) times it.
struct Turn25 {
  float re, im, sin1_re, sin1_im;
};
__device__ __forceinline__ constexpr Turn25 turn_25(int n) {
  constexpr double kNone = 0.0, kSin72 = 0.95105651629515357212;
  constexpr double kRe[9] = {1.0,
                             0.96858316112863108,
                             0.87630668004386358,
                             0.72896862742141155,
                             0.53582679497899666,
                             kNone,
                             0.062790519529313374,
                             kNone,
                             -0.42577929156507272};
  constexpr double kIm[9] = {0.0,
                             -0.24868988716485479,
                             -0.48175367410171532,
                             -0.68454710592868873,
                             -0.84432792550201508,
                             kNone,
                             -0.99802672842827156,
                             kNone,
                             -0.90482705246601958};
  return {static_cast<float>(kRe[n]), static_cast<float>(kIm[n]), static_cast<float>(kSin72 * kRe[n]),
          static_cast<float>(kSin72 * kIm[n])};
}

// The rows out(0 .. 12) of bin_at (tables.h) of the 25 windowed samples of one l. in(r) is a sample,
// window(r) its weight; r = 5 a + b. Samples are fetched where they are first used and handed on at once:
// registers are few.
template <typename In, typename Window, typename Out>
__device__ __forceinline__ void transform_25(const In& in, const Window& window, const Out& out) {
  float zero[5];
  Complex turned[2][5];  // [k - 1][b]
#pragma unroll
  for (int b = 0; b < 5; ++b) {
    const float second = in(20 + b) * window(20 + b), third = in(15 + b) * window(15 + b);
    const float x = in(5 + b), y = in(10 + b), v = window(5 + b), w = window(10 + b);
    float re[2], im[2];
    real_transform_5(product(in(b), window(b)), fmaf(x, v, second), fmaf(y, w, third), fmaf(x, v, -second),
                     fmaf(y, w, -third), &zero[b], re, im);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Turn25 turn = turn_25(b * (k + 1));
      if (b == 0) {
        turned[k][b] = {re[k], product(im[k], -kSin1)};
      } else {
        turned[k][b] = {fmaf(im[k], turn.sin1_im, re[k] * turn.re),
                        fmaf(im[k], -turn.sin1_re, re[k] * turn.im)};
      }
    }
  }
  float first, re[2], im[2];
  real_transform_5(zero[0], zero[1] + zero[4], zero[2] + zero[3], zero[1] - zero[4], zero[2] - zero[3],
                   &first, re, im);
  out(0, Complex{first, 0.0f});
  out(1, Complex{re[0], product(im[0], -kSin1)});
  out(2, Complex{re[1], product(im[1], -kSin1)});
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    Complex rows[5];
    transform_5(turned[k], rows);
#pragma unroll
    for (int i = 0; i < 5; ++i) out(3 + 5 * k + i, rows[i]);
  }
}

// Four outputs of which the even half, in[0] +- in[2], is known: out(i) = outputs i = 0 .. 3.
template <typename Out>
__device__ __forceinline__ void transform_4(Complex even_sum, Complex even_difference, Complex b, Complex d,
                                            const Out& out) {
  const Complex odd_sum = b + d, odd_difference = b - d;
  out(0, even_sum + odd_sum);
  out(1, Complex{even_difference.re + odd_difference.im, even_difference.im - odd_difference.re});
  out(2, even_sum - odd_sum);
  out(3, Complex{even_difference.re - odd_difference.im, even_difference.im + odd_difference.re});
}

// out(d, sum over l of in[l] exp(-2 pi i l d / 16)), as 4 x 4.
template <typename Out>
__device__ __forceinline__ void transform_16(const Complex* in, const Out& out) {
  constexpr float kHalfRoot = 0.70710678118654752440f, kCos = 0.92387953251128675613f,
                  kSin = 0.38268343236508977173f;
  Complex first[4][4];  // [l % 4][d % 4]
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    transform_4(in[q] + in[8 + q], in[q] - in[8 + q], in[4 + q], in[12 + q],
                [&](int i, Complex x) { first[q][i] = x; });
  }
  const Complex *a = first[0], *b = first[1], *c = first[2], *d = first[3];
  transform_4(a[0] + c[0], a[0] - c[0], b[0], d[0], [&](int i, Complex x) { out(4 * i, x); });
  {  // turns by 1, 2 and 3 sixteenths
    const Complex half = {c[1].re + c[1].im, c[1].im - c[1].re};
    transform_4(plus_product(half, kHalfRoot, a[1]), plus_product(half, -kHalfRoot, a[1]),
                times(b[1], kCos, -kSin), times(d[1], kSin, -kCos),
                [&](int i, Complex x) { out(4 * i + 1, x); });
  }
  {  // by 2, 4 and 6
    const Complex even_sum = {a[2].re + c[2].im, a[2].im - c[2].re};
    const Complex even_difference = {a[2].re - c[2].im, a[2].im + c[2].re};
    const Complex left = {b[2].re + b[2].im, b[2].im - b[2].re},
                  right = {d[2].re - d[2].im, d[2].re + d[2].im};
    const Complex odd_sum = left - right, odd_difference = left + right;
    out(2, plus_product(odd_sum, kHalfRoot, even_sum));
    out(6, plus_turned(odd_difference, kHalfRoot, even_difference));
    out(10, plus_product(odd_sum, -kHalfRoot, even_sum));
    out(14, plus_turned(odd_difference, -kHalfRoot, even_difference));
  }
  {  // by 3, 6 and 9
    const Complex half = {c[3].re - c[3].im, c[3].re + c[3].im};
    transform_4(plus_product(half, -kHalfRoot, a[3]), plus_product(half, kHalfRoot, a[3]),
                times(b[3], kSin, -kCos), times(d[3], -kCos, kSin),
                [&](int i, Complex x) { out(4 * i + 3, x); });
  }
}

}  // namespace earnest::logmel
