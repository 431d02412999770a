// SPDX-License-Identifier: Apache-2.0
// The fast version, written once: EARNEST_LANES frames side by side, one in each SIMD lane, so that every
// lane does the same arithmetic whatever its neighbours hold. Included inside a namespace of each instruction
// set; everything is static, so that no copy compiled for a newer machine can stand in for an older one's.

constexpr int kLanes = EARNEST_LANES;
typedef float Lanes __attribute__((vector_size(4 * EARNEST_LANES)));
typedef float UnalignedLanes __attribute__((vector_size(4 * EARNEST_LANES), aligned(4)));
typedef int32_t IntLanes __attribute__((vector_size(4 * EARNEST_LANES)));

struct Pair {
  Lanes re, im;
};

static inline Lanes load(const float* from) { return *reinterpret_cast<const UnalignedLanes*>(from); }
static inline void store(float* to, Lanes value) { *reinterpret_cast<UnalignedLanes*>(to) = value; }

static inline Pair operator+(Pair a, Pair b) { return {a.re + b.re, a.im + b.im}; }
static inline Pair operator-(Pair a, Pair b) { return {a.re - b.re, a.im - b.im}; }
static inline Pair operator*(Pair a, Complex w) {
  return {a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}
static inline Pair times_minus_i(Pair a) { return {a.im, -a.re}; }

// One step of a transpose: where the lane's bit kBit is clear, keep a and fetch from b what lies kBit above
// it.
template <int kBit>
static inline void exchange(Lanes* a, Lanes* b) {
  IntLanes low = {}, high = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool set = (lane & kBit) != 0;
    low[lane] = set ? kLanes + lane - kBit : lane;
    high[lane] = set ? kLanes + lane : lane + kBit;
  }
  const Lanes x = *a, y = *b;
  *a = __builtin_shuffle(x, y, low);
  *b = __builtin_shuffle(x, y, high);
}

template <int kBit>
static inline void exchange_all(Lanes* rows) {
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kBit) == 0) exchange<kBit>(&rows[i], &rows[i + kBit]);
  }
}

// samples[j] = sample j of every frame. 400 is a multiple of every lane count.
static inline void gather(const float* const* frames, Lanes* samples) {
  for (int j = 0; j < 400; j += kLanes) {
    Lanes rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) rows[lane] = load(frames[lane] + j);
    exchange_all<1>(rows);
    exchange_all<2>(rows);
    if constexpr (kLanes > 4) exchange_all<4>(rows);
    if constexpr (kLanes > 8) exchange_all<8>(rows);
    for (int i = 0; i < kLanes; ++i) samples[j + i] = rows[i];
  }
}

static inline void transform_4(Pair a, Pair b, Pair c, Pair d, Pair* out) {
  const Pair even_sum = a + c, even_difference = a - c;
  const Pair odd_sum = b + d, odd_difference = times_minus_i(b - d);
  out[0] = even_sum + odd_sum;
  out[1] = even_difference + odd_difference;
  out[2] = even_sum - odd_sum;
  out[3] = even_difference - odd_difference;
}

static inline void transform_8(const Pair* in, Pair* out) {
  constexpr float kHalfRoot = 0.70710678118654752f;
  Pair even[4], odd[4];
  transform_4(in[0], in[2], in[4], in[6], even);
  transform_4(in[1], in[3], in[5], in[7], odd);
  odd[1] = {(odd[1].re + odd[1].im) * kHalfRoot, (odd[1].im - odd[1].re) * kHalfRoot};
  odd[2] = times_minus_i(odd[2]);
  odd[3] = {(odd[3].im - odd[3].re) * kHalfRoot, (odd[3].re + odd[3].im) * -kHalfRoot};
  for (int k = 0; k < 4; ++k) {
    out[k] = even[k] + odd[k];
    out[k + 4] = even[k] - odd[k];
  }
}

static inline void transform_5(Pair a, Pair b, Pair c, Pair d, Pair e, Pair* out) {
  constexpr float kCos1 = 0.30901699437494742f, kCos2 = -0.80901699437494742f;  // of 72 and 144 degrees
  constexpr float kSin1 = 0.95105651629515357f, kSin2 = 0.58778525229247313f;
  const Pair sum_1 = b + e, sum_2 = c + d, difference_1 = b - e, difference_2 = c - d;
  const Pair real_1 = {a.re + sum_1.re * kCos1 + sum_2.re * kCos2,
                       a.im + sum_1.im * kCos1 + sum_2.im * kCos2};
  const Pair real_2 = {a.re + sum_1.re * kCos2 + sum_2.re * kCos1,
                       a.im + sum_1.im * kCos2 + sum_2.im * kCos1};
  const Pair turned_1 = times_minus_i(
      {difference_1.re * kSin1 + difference_2.re * kSin2, difference_1.im * kSin1 + difference_2.im * kSin2});
  const Pair turned_2 = times_minus_i(
      {difference_1.re * kSin2 - difference_2.re * kSin1, difference_1.im * kSin2 - difference_2.im * kSin1});
  out[0] = a + sum_1 + sum_2;
  out[1] = real_1 + turned_1;
  out[2] = real_2 + turned_2;
  out[3] = real_2 - turned_2;
  out[4] = real_1 - turned_1;
}

// Windows 400 samples and transforms the 200 pairs; bin k ends in rows[tables.bin_at[k]]. 8 and 25 have no
// common factor, so with n = 25 n1 + 8 n2 and k = 25 k1 + 176 k2 (mod 200; 8 * 22 = 1 mod 25) no turns are
// needed between the transforms of 8 and of 25 (Good, 1958). 25 = 5 x 5: n2 = 5 a + b, k2 = c + 5 d, in
// place.
static inline void transform_200(const Tables& tables, const Lanes* samples, Pair* rows) {
  for (int n2 = 0; n2 < 25; ++n2) {
    Pair in[8], out[8];
    for (int n1 = 0; n1 < 8; ++n1) {
      const int j = tables.pair_at[n2][n1];
      in[n1] = {samples[j] * tables.half_window[j], samples[j + 1] * tables.half_window[j + 1]};
    }
    transform_8(in, out);
    for (int k1 = 0; k1 < 8; ++k1) rows[25 * k1 + n2] = out[k1];
  }
  for (Pair* row = rows; row < rows + 200; row += 25) {
    for (int b = 0; b < 5; ++b) {
      Pair out[5];
      transform_5(row[b], row[5 + b], row[10 + b], row[15 + b], row[20 + b], out);
      row[b] = out[0];
      for (int c = 1; c < 5; ++c) row[5 * c + b] = out[c] * tables.turn_25[b][c];
    }
    for (int c = 0; c < 5; ++c) {
      Pair* in = row + 5 * c;
      transform_5(in[0], in[1], in[2], in[3], in[4], in);
    }
  }
}

// Power of bins 0 .. 200 of the real transform. Z packs the transforms of the even samples, E, and of the
// odd, O: X[k] = E + w O and conj(X[200 - k]) = E - w O with w = exp(-2 pi i k / 400).
static inline void split_power(const Tables& tables, const Pair* rows, Lanes* power) {
  for (int k = 0; k <= 100; ++k) {
    const Pair a = rows[tables.bin_at[k]], b = rows[tables.bin_at[200 - k]];
    const Pair even = {a.re + b.re, a.im - b.im};
    const Pair odd = Pair{a.im + b.im, b.re - a.re} * tables.turn_400[k];
    const Pair low = even + odd, high = even - odd;
    power[k] = low.re * low.re + low.im * low.im;
    power[200 - k] = high.re * high.re + high.im * high.im;
  }
}

// log10 of positive normal numbers, within 2 units in the last place: Cephes' polynomial on [sqrt(1/2),
// sqrt(2)).
static inline Lanes log10_of(Lanes x) {
  const IntLanes bits = reinterpret_cast<IntLanes>(x);
  const IntLanes exponent = (bits - 0x3f3504f3) >> 23;
  const Lanes f = reinterpret_cast<Lanes>(bits - (exponent << 23)) - 1.0f;
  Lanes p = 7.0376836292e-2f * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Lanes square = f * f;
  const Lanes tail = p * f * square - 0.5f * square;  // ln(1 + f) - f
  const Lanes e = __builtin_convertvector(exponent, Lanes);
  constexpr float kLog10E = 0.43429448190325182f, kLog10Of2 = 0.30102999566398120f;
  return e * kLog10Of2 + (f * kLog10E + tail * kLog10E);
}

static inline void filter_and_log(const Tables& tables, const Lanes* power, int count, float* out,
                                  int64_t stride) {
  for (int m = 0; m < tables.n_mels; ++m) {
    const Tables::Filter filter = tables.filters[m];
    const float* weights = tables.weights + filter.offset;
    Lanes sum = {};
    for (int i = 0; i < filter.count; ++i) sum += power[filter.first + i] * weights[i];
    const Lanes value = log10_of(sum > 1e-10f ? sum : Lanes{} + 1e-10f);
    if (count == kLanes) {
      store(out, value);
    } else {
      for (int lane = 0; lane < count; ++lane) out[lane] = value[lane];
    }
    out += stride;
  }
}

static void tile(const Tables& tables, const float* const* frames, int count, float* out, int64_t stride) {
  Lanes samples[400];
  Pair rows[200];
  gather(frames, samples);
  transform_200(tables, samples, rows);
  Lanes* power = samples;  // the samples are used up
  split_power(tables, rows, power);
  filter_and_log(tables, power, count, out, stride);
}

static bool in_range(const float* samples, int64_t count) {
  IntLanes wrong = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes x = load(samples + i);
    // The bits of |x| order as |x| does, and those of Inf and NaN lie above all others.
    wrong |= (reinterpret_cast<IntLanes>(x) & 0x7fffffff) > kMaxMagnitudeBits;
  }
  bool fine = true;
  for (int lane = 0; lane < kLanes; ++lane) fine &= wrong[lane] == 0;
  for (; i < count; ++i) fine &= samples[i] <= 1e15f && samples[i] >= -1e15f;
  return fine;
}

static void normalize(const float* raw, int64_t count, float* out) {
  Lanes highest = Lanes{} + raw[0];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes x = load(raw + i);
    highest = x > highest ? x : highest;
  }
  float top = highest[0];
  for (int lane = 1; lane < kLanes; ++lane) top = highest[lane] > top ? highest[lane] : top;
  for (; i < count; ++i) top = raw[i] > top ? raw[i] : top;
  const float floor = top - 8.0f;
  for (i = 0; i + kLanes <= count; i += kLanes) {
    const Lanes x = load(raw + i);
    store(out + i, (x > floor ? x : Lanes{} + floor) * 0.25f + 1.0f);
  }
  for (; i < count; ++i) out[i] = (raw[i] > floor ? raw[i] : floor) * 0.25f + 1.0f;
}

const Backend kBackend = {kLanes, tile, in_range, normalize};
