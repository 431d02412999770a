// SPDX-License-Identifier: Apache-2.0
// The fast version, written once: EARNEST_LANES samples, bins or lags of one frame side by side, so that a
// stream's single frame costs no more than one of many. Included inside a namespace of each instruction set;
// everything is static, so that no copy compiled for a newer machine can stand in for an older one's.

constexpr int kLanes = EARNEST_LANES;
constexpr int kGroups = 16 / kLanes;
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
static inline Pair operator*(Pair a, Pair w) {
  return {a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}
static inline Pair times_minus_i(Pair a) { return {a.im, -a.re}; }

static inline Lanes reversed(Lanes a) {
  IntLanes order = {};
  for (int lane = 0; lane < kLanes; ++lane) order[lane] = kLanes - 1 - lane;
  return __builtin_shuffle(a, order);
}

// Lanes first, first + 2, .. of the two vectors at `from`.
static inline Lanes every_other(const float* from, int first) {
  IntLanes order = {};
  for (int lane = 0; lane < kLanes; ++lane) order[lane] = 2 * lane + first;
  return __builtin_shuffle(load(from), load(from + kLanes), order);
}

static inline float sum_of(Lanes a) {
  float half[kLanes];
  store(half, a);
  for (int count = kLanes / 2; count > 0; count /= 2) {
    for (int i = 0; i < count; ++i) half[i] += half[i + count];
  }
  return half[0];
}

static inline Lanes square_root(Lanes a) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(a)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes>(_mm256_sqrt_ps(reinterpret_cast<__m256>(a)));
#else
  for (int lane = 0; lane < kLanes; ++lane) a[lane] = __builtin_sqrtf(a[lane]);
  return a;
#endif
}

// One bit a lane.
static inline uint32_t bits_of(IntLanes mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return bits;
#endif
}

static void halve(const Tables& tables, const float* raw, int64_t count, float* out) {
  for (int64_t m = 0; m < count; m += kLanes) {
    const float* centre = raw + 2 * m + kReach;
    Lanes sum = 0.5f * every_other(centre, 0);
    for (int i = 0; i < kTaps; ++i) {
      const int far = 2 * i + 1;
      sum += tables.taps[i] * (every_other(centre - far, 0) + every_other(centre + far, 0));
    }
    store(out + m, sum);
  }
}

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

// Writes kLanes rows transposed, 16 floats apart.
static inline void store_transposed(Lanes* rows, float* to) {
  exchange_all<1>(rows);
  exchange_all<2>(rows);
  if constexpr (kLanes > 4) exchange_all<4>(rows);
  if constexpr (kLanes > 8) exchange_all<8>(rows);
  for (int i = 0; i < kLanes; ++i) store(to + 16 * i, rows[i]);
}

static inline void transform_4(Pair a, Pair b, Pair c, Pair d, Pair* out) {
  const Pair even_sum = a + c, even_difference = a - c;
  const Pair odd_sum = b + d, odd_difference = times_minus_i(b - d);
  out[0] = even_sum + odd_sum;
  out[1] = even_difference + odd_difference;
  out[2] = even_sum - odd_sum;
  out[3] = even_difference - odd_difference;
}

// The transform of 16 in every lane, as 4 x 4: rows[4 a + b] in, rows[c + 4 d] out.
static inline void transform_16(Pair* rows) {
  constexpr float kCos[10] = {1.0f,  0.92387953251128674f,  0.70710678118654752f,  0.38268343236508977f,
                              0.0f,  -0.38268343236508977f, -0.70710678118654752f, -0.92387953251128674f,
                              -1.0f, -0.92387953251128674f};
  constexpr float kSin[10] = {0.0f, 0.38268343236508977f, 0.70710678118654752f, 0.92387953251128674f,
                              1.0f, 0.92387953251128674f, 0.70710678118654752f, 0.38268343236508977f,
                              0.0f, -0.38268343236508977f};
  Pair middle[4][4];
  for (int b = 0; b < 4; ++b) {
    transform_4(rows[b], rows[4 + b], rows[8 + b], rows[12 + b], middle[b]);
    for (int c = 1; c < 4 && b > 0; ++c) {
      const Pair turn = {Lanes{} + kCos[b * c], Lanes{} - kSin[b * c]};
      middle[b][c] = middle[b][c] * turn;
    }
  }
  for (int c = 0; c < 4; ++c) {
    Pair out[4];
    transform_4(middle[0][c], middle[1][c], middle[2][c], middle[3][c], out);
    for (int d = 0; d < 4; ++d) rows[c + 4 * d] = out[d];
  }
}

// 256 complex numbers in place, 16 x 16: columns first, a turn, then rows, which a transpose makes columns.
static inline void transform_256(const Tables& tables, float* re, float* im) {
  alignas(64) float turned_re[256], turned_im[256];
  for (int group = 0; group < kGroups; ++group) {
    Pair rows[16];
    for (int a = 0; a < 16; ++a) {
      rows[a] = {load(re + 16 * a + kLanes * group), load(im + 16 * a + kLanes * group)};
    }
    transform_16(rows);
    for (int part = 0; part < kGroups; ++part) {
      Lanes block_re[kLanes], block_im[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int at = 16 * (kLanes * part + i) + kLanes * group;
        const Pair turn = {load(tables.turn_256_re + at), load(tables.turn_256_im + at)};
        const Pair value = rows[kLanes * part + i] * turn;
        block_re[i] = value.re;
        block_im[i] = value.im;
      }
      store_transposed(block_re, turned_re + 16 * kLanes * group + kLanes * part);
      store_transposed(block_im, turned_im + 16 * kLanes * group + kLanes * part);
    }
  }
  for (int group = 0; group < kGroups; ++group) {
    Pair rows[16];
    for (int b = 0; b < 16; ++b) {
      rows[b] = {load(turned_re + 16 * b + kLanes * group), load(turned_im + 16 * b + kLanes * group)};
    }
    transform_16(rows);
    for (int d = 0; d < 16; ++d) {
      store(re + 16 * d + kLanes * group, rows[d].re);
      store(im + 16 * d + kLanes * group, rows[d].im);
    }
  }
}

// Two transforms of `half`, of the even and of the odd numbers, one behind the other -> one of 2 half.
static inline void combine(const Tables& tables, int half, float* re, float* im) {
  for (int k = 0; k < half; k += kLanes) {
    const Pair turn = {load(tables.turn_re + half + k), load(tables.turn_im + half + k)};
    const Pair even = {load(re + k), load(im + k)};
    const Pair odd = Pair{load(re + half + k), load(im + half + k)} * turn;
    const Pair low = even + odd, high = even - odd;
    store(re + k, low.re);
    store(im + k, low.im);
    store(re + half + k, high.re);
    store(im + half + k, high.im);
  }
}

// The size / 2 complex numbers (x[2n], x[2n + 1]) transformed; number 0 is written again behind the last.
static inline void transform_pairs(const Tables& tables, const float* x, float* re, float* im) {
  const int half = tables.size / 2, parts = half / 256;
  if (parts == 1) {
    for (int n = 0; n < 256; n += kLanes) {
      store(re + n, every_other(x + 2 * n, 0));
      store(im + n, every_other(x + 2 * n, 1));
    }
  } else {
    constexpr int kOrder[2][4] = {{0, 1, 0, 0}, {0, 2, 1, 3}};  // bit-reversed
    for (int part = 0; part < parts; ++part) {
      const float* from = x + 2 * kOrder[parts / 4][part];
      for (int n = 0; n < 256; ++n) {
        re[256 * part + n] = from[2 * parts * n];
        im[256 * part + n] = from[2 * parts * n + 1];
      }
    }
  }
  for (int part = 0; part < parts; ++part) transform_256(tables, re + 256 * part, im + 256 * part);
  for (int size = 256; size < half; size *= 2) {
    for (int at = 0; at < half; at += 2 * size) combine(tables, size, re + at, im + at);
  }
  re[half] = re[0];
  im[half] = im[0];
}

// Twice the even and twice the turned odd part of bins k .. k + kLanes - 1 (their sum is twice the real
// transform there, their difference twice its conjugate at size / 2 - k, ..).
static inline void split(const Tables& tables, const float* re, const float* im, int k, Pair* even,
                         Pair* odd) {
  const int half = tables.size / 2, mirror = half - k - (kLanes - 1);
  const Pair a = {load(re + k), load(im + k)};
  const Pair b = {reversed(load(re + mirror)), reversed(load(im + mirror))};
  *even = {a.re + b.re, a.im - b.im};
  const Pair turn = {load(tables.turn_re + half + k), load(tables.turn_im + half + k)};
  *odd = Pair{a.im + b.im, b.re - a.re} * turn;
}

// |X|^1.5 by bin, weighted: 4 |X|^2 comes in.
static inline Lanes shape(Lanes power, Lanes weight, Lanes floor) {
  power = power > floor ? power : floor;
  const Lanes root = square_root(power);
  return root * square_root(root) * weight;
}

// x [size]: windowed samples in, the shaped spectrum of all bins 0 .. size - 1 (it is even) out.
static inline void shape_spectrum(const Tables& tables, float floor, float* x, float* re, float* im) {
  const int size = tables.size, half = size / 2;
  transform_pairs(tables, x, re, im);
  const Lanes least = Lanes{} + floor;
  for (int k = 0; k < half / 2; k += kLanes) {
    Pair even, odd;
    split(tables, re, im, k, &even, &odd);
    const Pair low = even + odd, high = even - odd;
    const Lanes at_low = shape(low.re * low.re + low.im * low.im, load(tables.weight + k), least);
    const Lanes weight_high = reversed(load(tables.weight + half - k - (kLanes - 1)));
    const Lanes at_high = shape(high.re * high.re + high.im * high.im, weight_high, least);
    // Lane i of at_low is bin k + i, of at_high bin half - k - i; both appear again at size less the bin.
    store(x + k, at_low);
    store(x + half + k, at_high);
    store(x + half - k - (kLanes - 1), reversed(at_high));
    store(x + size - k - (kLanes - 1), reversed(at_low));  // bin 0 falls behind the end, where nobody reads
  }
  const int middle = half / 2;
  const Lanes power = Lanes{} + 4.0f * (re[middle] * re[middle] + im[middle] * im[middle]);
  const float at_middle = shape(power, Lanes{} + tables.weight[middle], least)[0];
  x[middle] = x[size - middle] = at_middle;
}

// x [size]: the shaped spectrum in; the normalised correlation at lags 0 .. last_lag out.
static inline void correlate(const Tables& tables, int last_lag, float* x, float* re, float* im) {
  transform_pairs(tables, x, re, im);
  float scale = 0.0f;
  for (int lag = 0; lag <= last_lag; lag += kLanes) {
    Pair even, odd;
    split(tables, re, im, lag, &even, &odd);
    const Lanes value = even.re + odd.re;
    if (lag == 0) scale = 1.0f / value[0];
    store(x + lag, value * (load(tables.unwindow + lag) * scale));
  }
}

// Keeps the kKept best peaks of r, best first.
static inline void find_peaks(const Tables& tables, const float* r, Candidates* out) {
  float score[kKept];
  int found = 0;
  float tallest = 0.0f;
  const int end = tables.first_lag + tables.lags;
  for (int lag = tables.first_lag; lag < end; lag += kLanes) {
    const Lanes left = load(r + lag - 1), here = load(r + lag), right = load(r + lag + 1);
    uint32_t peaks = bits_of((here > left) & (here >= right) & (here > 0.0f));
    if (end - lag < kLanes) peaks &= (1u << (end - lag)) - 1;
    for (; peaks != 0; peaks &= peaks - 1) {
      const int at = lag + __builtin_ctz(peaks);
      const float a = r[at - 1], b = r[at], c = r[at + 1];
      const float bend = a - 2.0f * b + c;  // a parabola through the three
      const float shift = bend < -1e-12f ? 0.5f * (a - c) / bend : 0.0f;
      const float peak = b - 0.25f * (a - c) * shift;
      const float height = peak < 1.0f ? peak : 1.0f;
      const float value = height - tables.long_period_cost[at];
      tallest = height > tallest ? height : tallest;
      int place = found < kKept ? found++ : kKept;
      if (place == kKept) {
        if (value <= score[kKept - 1]) continue;
        place = kKept - 1;
      }
      for (; place > 0 && value > score[place - 1]; --place) {
        score[place] = score[place - 1];
        out->strength[place] = out->strength[place - 1];
        out->f0[place] = out->f0[place - 1];
      }
      score[place] = value;
      out->strength[place] = height;
      out->f0[place] = static_cast<float>(kRate) / (static_cast<float>(at) + shift);
    }
  }
  for (; found < kKept; ++found) out->strength[found] = out->f0[found] = 0.0f;
  out->voicing = tallest;
}

static inline float energy_of(const float* raw, int count, float mean) {
  Lanes sum = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes x = load(raw + i) - mean;
    sum += x * x;
  }
  float total = sum_of(sum);
  for (; i < count; ++i) total += (raw[i] - mean) * (raw[i] - mean);
  return total / static_cast<float>(count);
}

static void frame(const Tables& tables, const float* samples, int first, int last, const float* raw,
                  int raw_count, Candidates* out) {
  alignas(64) float x[kMaxSize + 2 * kMaxLanes], re[kMaxSize / 2 + kMaxLanes], im[kMaxSize / 2 + kMaxLanes];
  Lanes sum = {}, squares = {};
  for (int j = 0; j < tables.width; j += kLanes) {
    const Lanes y = load(samples + j);
    sum += y;
    squares += y * y;
  }
  const float mean = sum_of(sum) / static_cast<float>(last - first);
  for (int j = 0; j < tables.width; j += kLanes)
    store(x + j, (load(samples + j) - mean) * load(tables.window + j));
  for (int j = 0; j < first; ++j) x[j] = 0.0f;
  for (int j = last; j < tables.width; ++j) x[j] = 0.0f;
  for (int j = tables.width; j < tables.size; j += kLanes) store(x + j, Lanes{});
  const float rounding = 4.0f * kRounding * sum_of(squares);
  shape_spectrum(tables, rounding > kLeastPower ? rounding : kLeastPower, x, re, im);
  correlate(tables, tables.first_lag + tables.lags, x, re, im);
  find_peaks(tables, x, out);
  out->energy = energy_of(raw, raw_count, mean);
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
  for (; i < count; ++i) fine &= samples[i] <= kMaxMagnitude && samples[i] >= -kMaxMagnitude;
  return fine;
}

const Backend kBackend = {halve, frame, in_range};
