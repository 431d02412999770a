// SPDX-License-Identifier: Apache-2.0
// The fast version, written once for every instruction set. A tile of EARNEST_LANES frames has one frame in
// each SIMD lane (doubles: two halves, one after the other); a frame alone has its own samples in the lanes.
// Both do the same arithmetic for each number.
#include "kernels/logmel/transform.h"

constexpr int kHopStride = kLanes + 4;

// Where the transform finds its sample [l][r] among the hops of a tile, which are stored sample by sample.
struct Places {
  int32_t at[16][25];
};
constexpr Places places() {
  Places result = {};
  for (int l = 0; l < 16; ++l) {
    for (int r = 0; r < 25; ++r) {
      const int sample = (176 * r + 225 * l) % 400;
      result.at[l][r] = sample % 160 * kHopStride + sample / 160;
    }
  }
  return result;
}
static constexpr Places kPlaces = places();

// hops[kHopStride * i + h] = samples[160 h + i]. Frames overlap 2.5 times; each hop is transposed once. The
// last of kFrames ends 80 samples into the hop kFrames + 1.
template <int kFrames>
static inline void gather(const float* samples, float* hops) {
  for (int i = 0; i < 160; i += kLanes) {
    Floats rows[kLanes];
#pragma GCC unroll 16
    for (int h = 0; h < kLanes; ++h) rows[h] = h < kFrames ? load(samples + 160 * h + i) : Floats{};
    transpose<Ints>(rows);
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) store(hops + kHopStride * (i + lane), rows[lane]);
  }
  for (int i = 0; i < 160; ++i) hops[kHopStride * i + kFrames] = samples[160 * kFrames + i];
  for (int i = 0; i < 80; ++i) hops[kHopStride * i + kFrames + 1] = samples[160 * (kFrames + 1) + i];
}

static inline Doubles power_of(Pair x) { return fused(x.re, x.re, x.im * x.im); }

static inline void first_pass(const Tables& tables, const float* hops, Pair (*rows)[16]) {
  for (int l = 0; l < 16; ++l) {
    const int32_t* place = kPlaces.at[l];
    const double* window = &tables.window[0][l];
    transform_25(
        tables, [&](int r) EARNEST_INLINE { return widened(hops + place[r]) * splat(window[16 * r]); },
        [&](int row, Pair x) EARNEST_INLINE { rows[row][l] = x; });
  }
}

static inline void second_pass(const Tables& tables, const Pair (*rows)[16], float* power) {
  for (int row = 0; row < kRows; ++row) {
    const Pair* in = rows[row];
    const int32_t* bin_at = tables.bin_at[row];
    Doubles powers[16];
    transform_16([&](int l) EARNEST_INLINE { return in[l]; },
                 [&](int d, Pair x) EARNEST_INLINE { powers[d] = power_of(x); });
#pragma GCC unroll 16
    for (int d = 0; d < 16; ++d) store_narrowed(power + kLanes * bin_at[d], powers[d]);
  }
}

// Powers of the frames of half a tile: power[kLanes * bin] and the kHalf - 1 after it.
static inline void transform_half(const Tables& tables, const float* hops, float* power) {
  Pair rows[kRows][16];
  first_pass(tables, hops, rows);
  second_pass(tables, rows, power);
}

// log10 to within 1.1e-7 for 1e-10 and more, and the rounding of e log10(2); -10 below. Idle lanes may hold
// anything.
#if EARNEST_LANES == 16
// x = 2^e m, and m c = 1 + r with c one of 16 numbers by the first bits of m, so that |r| < 1/32: a cubic.
static inline Floats log10_of(Floats x) {
  const Floats inverse = {0.969696999f, 0.914285719f, 0.864864886f, 0.820512831f, 0.780487776f, 0.744186044f,
                          0.711111128f, 0.680851042f, 0.653061211f, 0.627451003f, 0.603773594f, 0.581818163f,
                          0.561403513f, 0.542372882f, 0.524590135f, 0.507936537f};
  const Floats minus_log = {0.013363949f, 0.038918063f, 0.0630517378f, 0.0859146267f,
                            0.107633896f, 0.128318474f, 0.148062527f,  0.166947886f,
                            0.185046107f, 0.202420175f, 0.219125882f,  0.235212728f,
                            0.250724882f, 0.265702039f, 0.280179888f,  0.294190556f};
  const __m512i first_bits = _mm512_maskz_srli_epi32(0xffff, reinterpret_cast<__m512i>(x), 19);
  const Floats mantissa = _mm512_maskz_getmant_ps(0xffff, x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  const Floats exponent = _mm512_maskz_getexp_ps(0xffff, x);
  const Floats r = fused(mantissa, _mm512_maskz_permutexvar_ps(0xffff, first_bits, inverse), splat(-1.0f));
  const Floats most =
      fused(exponent, 0.30102999566398120f, _mm512_maskz_permutexvar_ps(0xffff, first_bits, minus_log));
  const Floats p = fused(fused(r, 1.4487771e-1f, splat(-2.1722989e-1f)), r, splat(4.3429446e-1f));
  const Floats value = fused(p, r, most);
  return value > -10.0f ? value : splat(-10.0f);
}
#else
// A polynomial on [sqrt(1/2), sqrt(2)), fitted to the least largest error.
static inline Floats log10_of(Floats x) {
  const Bits bits = reinterpret_cast<Bits>(x);  // unsigned, for idle lanes hold anything
  const Ints exponent = reinterpret_cast<Ints>(bits - 0x3f3504f3u) >> 23;
  const Floats f = reinterpret_cast<Floats>(bits - (reinterpret_cast<Bits>(exponent) << 23)) - 1.0f;
  Floats p = fused(f, 5.1366109401e-2f, splat(-8.2090280950e-2f));
  p = fused(p, f, splat(8.9484959841e-2f));
  p = fused(p, f, splat(-1.0805828124e-1f));
  p = fused(p, f, splat(1.4463438094e-1f));
  p = fused(p, f, splat(-2.1715576947e-1f));
  p = fused(p, f, splat(4.3429589272e-1f));
  const Floats e = __builtin_convertvector(exponent, Floats);
  const Floats value = fused(e, 0.30102999566398120f, p * f);
  return value > -10.0f ? value : splat(-10.0f);
}
#endif

static void tile(const Tables& tables, const float* samples, int count, float* out, int64_t stride) {
  alignas(64) float hops[160 * kHopStride];
  alignas(64) float power[201 * kLanes];
  for (int m = 0; m < tables.n_mels; ++m) {  // rows lie far apart: fetch them while the transform runs
    __builtin_prefetch(out + m * stride, 1);
    __builtin_prefetch(out + m * stride + kLanes - 1, 1);
  }
  if (count > kHalf) {
    gather<kLanes>(samples, hops);
    transform_half(tables, hops + kHalf, power + kHalf);
  } else {
    gather<kHalf>(samples, hops);
  }
  transform_half(tables, hops, power);
  Floats rising = {};
  int k = 0;
  for (int m = 0; m <= tables.n_mels; ++m) {
    Floats sum = rising;
    rising = Floats{};
    for (; k < tables.end[m]; ++k) {
      const Floats x = load(power + kLanes * k);
      sum = fused(x, tables.weights[k].falling, sum);
      rising = fused(x, tables.weights[k].rising, rising);
    }
    if (m == 0) continue;
    const Floats value = log10_of(sum);
    if (count == kLanes) {
      store(out, value);
    } else {
      for (int lane = 0; lane < count; ++lane) out[lane] = value[lane];
    }
    out += stride;
  }
}

// Rotates the 25 rows by one, two, four, ... in the lanes whose number has that bit: by l in lane l.
template <int kBit = 1>
EARNEST_INLINE static inline void rotate_rows(Floats* rows) {
  if constexpr (kBit < kLanes) {
    Ints set = {};
    for (int lane = 0; lane < kLanes; ++lane) set[lane] = (lane & kBit) != 0 ? -1 : 0;
    Floats turned[25];
#pragma GCC unroll 25
    for (int r = 0; r < 25; ++r) turned[r] = set ? rows[(r + 25 - kBit) % 25] : rows[r];
#pragma GCC unroll 25
    for (int r = 0; r < 25; ++r) rows[r] = turned[r];
    rotate_rows<2 * kBit>(rows);
  }
}

// in[16 r + l] = sample (176 r + 225 l) mod 400, which is 16 q + l with q = 11 (r - l) mod 25.
static inline void gather_one(const float* samples, float* in) {
#pragma GCC unroll 4
  for (int part = 0; part < 16; part += kLanes) {
    Floats rows[25];
#pragma GCC unroll 25
    for (int r = 0; r < 25; ++r) rows[r] = load(samples + (11 * (r + 25 - part)) % 25 * 16 + part);
    rotate_rows(rows);
#pragma GCC unroll 25
    for (int r = 0; r < 25; ++r) store(in + 16 * r + part, rows[r]);
  }
}

// a[row][l] -> b[l][row], 16 x 16.
static inline void transpose_16(const Doubles* a, Doubles* b) {
  constexpr int kParts = 16 / kHalf;
  for (int i = 0; i < kParts; ++i) {
    for (int j = 0; j < kParts; ++j) {
      Doubles block[kHalf];
#pragma GCC unroll 8
      for (int k = 0; k < kHalf; ++k) block[k] = a[(kHalf * i + k) * kParts + j];
      transpose<Longs>(block);
#pragma GCC unroll 8
      for (int k = 0; k < kHalf; ++k) b[(kHalf * j + k) * kParts + i] = block[k];
    }
  }
}

static void one_frame(const Tables& tables, const float* samples, float* out, int64_t stride) {
  constexpr int kParts = 16 / kHalf;
  alignas(64) float turned[400];
  gather_one(samples, turned);
  const double* window = &tables.window[0][0];
  Doubles re[16 * kParts], im[16 * kParts], columns_re[16 * kParts], columns_im[16 * kParts];
  for (int i = kRows * kParts; i < 16 * kParts; ++i) re[i] = im[i] = Doubles{};
  for (int part = 0; part < kParts; ++part) {
    transform_25(
        tables,
        [&](int r) EARNEST_INLINE {
          const int at = 16 * r + kHalf * part;
          return widened(turned + at) * *reinterpret_cast<const UnalignedDoubles*>(window + at);
        },
        [&](int row, Pair x)
            EARNEST_INLINE { re[row * kParts + part] = x.re, im[row * kParts + part] = x.im; });
  }
  transpose_16(re, columns_re);
  transpose_16(im, columns_im);
  alignas(64) float spectrum[16][16];  // [d][row]
  for (int part = 0; part < kParts; ++part) {
    transform_16(
        [&](int l)
            EARNEST_INLINE { return Pair{columns_re[l * kParts + part], columns_im[l * kParts + part]}; },
        [&](int d, Pair x) EARNEST_INLINE { store_narrowed(&spectrum[d][kHalf * part], power_of(x)); });
  }
  float power[201];
  for (int row = 0; row < kRows; ++row) {
    for (int d = 0; d < 16; ++d) power[tables.bin_at[row][d]] = spectrum[d][row];
  }
  float mels[1 + 256 + kLanes];
  float rising = 0.0f;
  int k = 0;
  for (int m = 0; m <= tables.n_mels; ++m) {
    float sum = rising;
    rising = 0.0f;
    for (; k < tables.end[m]; ++k) {
      sum = fused(power[k], tables.weights[k].falling, sum);
      rising = fused(power[k], tables.weights[k].rising, rising);
    }
    mels[m] = sum;  // of filter m - 1; the first is no filter's
  }
  for (int lane = 1; lane < kLanes; ++lane) mels[tables.n_mels + lane] = 0.0f;
  for (int m = 0; m < tables.n_mels; m += kLanes) {
    const Floats value = log10_of(load(mels + 1 + m));
    if (stride == 1 && m + kLanes <= tables.n_mels) {
      store(out + m, value);
    } else {
      for (int lane = 0; lane < kLanes && m + lane < tables.n_mels; ++lane)
        out[(m + lane) * stride] = value[lane];
    }
  }
}

static bool in_range(const float* samples, int64_t count) {
  Ints wrong = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats x = load(samples + i);
    // The bits of |x| order as |x| does, and those of Inf and NaN lie above all others.
    wrong |= (reinterpret_cast<Ints>(x) & 0x7fffffff) > kMaxMagnitudeBits;
  }
  bool fine = true;
  for (int lane = 0; lane < kLanes; ++lane) fine &= wrong[lane] == 0;
  for (; i < count; ++i) fine &= samples[i] <= 1e15f && samples[i] >= -1e15f;
  return fine;
}

static void normalize(const float* raw, int64_t count, float* out) {
  Floats highest = splat(raw[0]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats x = load(raw + i);
    highest = x > highest ? x : highest;
  }
  float top = highest[0];
  for (int lane = 1; lane < kLanes; ++lane) top = highest[lane] > top ? highest[lane] : top;
  for (; i < count; ++i) top = raw[i] > top ? raw[i] : top;
  const float floor = top - 8.0f;
  for (i = 0; i + kLanes <= count; i += kLanes) {
    const Floats x = load(raw + i);
    store(out + i, (x > floor ? x : splat(floor)) * 0.25f + 1.0f);
  }
  for (; i < count; ++i) out[i] = (raw[i] > floor ? raw[i] : floor) * 0.25f + 1.0f;
}

const Backend kBackend = {kLanes, tile, one_frame, in_range, normalize};
