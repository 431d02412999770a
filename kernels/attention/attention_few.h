// SPDX-License-Identifier: Apache-2.0
// Few rows against many keys, as in decoding: keys lie in the lanes of vectors for the scores, columns of
// values for the weighted sum, so that whole vectors are at work for a single row too. Every score and every
// sum is the chain of additions that ManyRows makes of it, hence the same bits. Included inside the tier's
// own namespace, after attention_forward.h.

constexpr int kFewLanes = 16;  // of arrays with a number for each row, loaded as whole vectors of any tier

// Rows of keys that will be read soon.
struct RowsAhead {
  const char* keys;
  int64_t row, word;  // bytes from one to the next
};

// scores[r][lane] = <q_r, k_lane>, the chain over words of attention_product.h: kLanes keys at a time are
// transposed in registers, a square of words after the other. q is [words][kFewRows].
template <typename V, bool kPairs, int kRows>
static void score_keys(const Element<V>* q, const Operand<Element<V>>& keys, int64_t words,
                       const RowsAhead& ahead, Element<V>* scores) {
  using T = Element<V>;
  const int64_t row = keys.row;
  V sums[kRows] = {};
  const char* next = ahead.keys;
  for (int64_t w = 0; w < words; w += kLanes<V>, q += kLanes<V> * kFewRows) {
    V square[kLanes<V>];
    const T* key = keys.words + w;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<V>; ++i, key += row) square[i] = load<V>(key);
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<V>; ++i) {
      __builtin_prefetch(next + i * ahead.row, 0, 2);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        sums[r] = multiply_add<kPairs>(splat<V>(q[i * kFewRows + r]), square[i], sums[r]);
    }
    next += kLanes<V> * ahead.word;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(scores + r * kTileKeys, sums[r]);
}

// Vectors of kFewRows lanes, where the tier has them.
template <typename T>
constexpr bool kHasRowVectors = kFewRows * static_cast<int>(sizeof(T)) <= kVectorBytes;
template <typename T>
using RowVector = Vector<T, kFewRows * sizeof(T)>;
constexpr int kKeyGroup = 16;

// scores[key][:] = <q_:, k_key> for kKeyGroup keys, rows in the lanes of one vector.
template <typename L, bool kPairs>
static void score_rows(const Element<L>* q, const Operand<Element<L>>& keys, int64_t words,
                       const RowsAhead& ahead, Element<L>* scores) {
  using T = Element<L>;
  const int64_t row = keys.row;
  L sums[kKeyGroup] = {};
  const T* fours[4] = {keys.words, keys.words + 4 * row, keys.words + 8 * row, keys.words + 12 * row};
  const char* next = ahead.keys;
  for (int64_t w = 0; w < words; w += kKeyGroup) {
    const int64_t count = words - w < kKeyGroup ? words - w : kKeyGroup;
    const char* next_row = next;
    for (int64_t i = 0; i < count; ++i, q += kFewRows) {
      __builtin_prefetch(next_row, 0, 2);
      next_row += ahead.row;
      const L rows = load<L>(q);
#pragma GCC unroll 4
      for (int f = 0; f < 4; ++f) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          if constexpr (kPairs) {
            sums[4 * f + r] = dot_pair(rows, fours[f] + r * row, sums[4 * f + r]);
          } else {
            T factor;
            __builtin_memcpy(&factor, fours[f] + r * row, sizeof factor);
            sums[4 * f + r] = multiply_add<kPairs>(splat<L>(factor), rows, sums[4 * f + r]);
          }
        }
        ++fours[f];
      }
    }
    next += kKeyGroup * ahead.word;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kKeyGroup; ++i) store(scores + i * kFewRows, sums[i]);
}

// softmax_lanes for rows of scores: [rows][kTileKeys]. alpha, maximum and total have an entry for each row.
template <typename V, bool kPairs>
static void softmax_rows(Element<V>* scores, Element<V>* weights, int64_t rows, int64_t keys, int64_t begin,
                         const Integer<Element<V>>* visible, Element<V> to_base2, Element<V>* alpha,
                         Element<V>* maximum, Element<V>* total) {
  using T = Element<V>;
  const V none = splat<V>(static_cast<T>(-__builtin_inf())), factor = splat<V>(to_base2);
  const auto lane = count_up<Integers<V>>(std::make_index_sequence<kLanes<V>>());
  const int64_t columns = round_up(keys, 2 * kLanes<V>);
  T highest[kFewLanes] = {}, bases[kFewLanes], totals[kFewLanes] = {};
  for (int64_t r = 0; r < rows; ++r) {
    V x = none;
    for (int64_t j = 0; j < columns; j += kLanes<V>) {
      T* here = scores + r * kTileKeys + j;
      const auto sees = lane < static_cast<Integer<T>>(visible[r] - begin - j);
      store(here, sees ? load<V>(here) : none);
      x = max(x, load<V>(here));
    }
    highest[r] = largest(x);
  }
  for (int64_t i = 0; i < rows; i += kLanes<V>) {
    const V before = load<V>(maximum + i), now = max(before, load<V>(highest + i));
    const V base = finite_or_zero(now);
    store(alpha + i, exp2((before - base) * factor));
    store(bases + i, base);
    store(maximum + i, now);
  }
  for (int64_t r = 0; r < rows; ++r) {
    T* row = scores + r * kTileKeys;
    for (int64_t j = 0; j < columns; j += 2 * kLanes<V>) {
      V pair[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        pair[i] = exp2<kPairs>((load<V>(row + j + i * kLanes<V>) - splat<V>(bases[r])) * factor);
        store(row + j + i * kLanes<V>, pair[i]);
      }
      if constexpr (kPairs)
        store(weights + (r * kTileKeys + j) / 2, same_bits<V>(round_two(pair[0], pair[1])));
    }
    Vector<T, 4 * sizeof(T)> sums{}, four;
    for (int64_t j = 0; j < columns; j += 4) {
      __builtin_memcpy(&four, row + j, sizeof four);
      sums += four;
    }
    totals[r] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  for (int64_t i = 0; i < rows; i += kLanes<V>)
    store(total + i, fma(load<V>(total + i), load<V>(alpha + i), load<V>(totals + i)));
}

// c[r][:] = keep[r] * c[r][:] + sum_j weights[r][j] * values[j][:] for kVectors vectors of columns, each
// element the chain that multiply makes. Values lie as in memory: where kPairs, rows of two keys become pairs
// in registers, within each 16 bytes, where it is cheap. Their columns come out of order, and are put back
// after.
template <typename T>
struct WeightedSum {
  const T* weights;
  int64_t of_row, of_key;  // from one to the next, in words
  Operand<T> values;
  int64_t keys;   // rounded up to whole words
  int64_t ahead;  // bytes from what is read now to what will be read next
  T* c;
  int64_t width;
  const T* keep;
};

template <typename V, bool kPairs, int kRows, int kVectors>
static void sum_columns(const WeightedSum<Element<V>>& p, int64_t column) {
  using T = Element<V>;
  constexpr auto kSequence = std::make_index_sequence<kLanes<V>>();
  V sums[kRows][kVectors] = {};
  const T *weights = p.weights, *values = p.values.words + column / kPack<kPairs>;
  const int64_t of_row = p.of_row, of_key = p.of_key, row = p.values.row, ahead = p.ahead;
  for (int64_t j = p.keys; j > 0; j -= kPack<kPairs>) {
    V columns[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; n += kPack<kPairs>) {
      const T* at = values + n / kPack<kPairs> * kLanes<V>;
      __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead, 0, 2);
      columns[n] = load<V>(at);
      if constexpr (kPairs) {
        __builtin_prefetch(reinterpret_cast<const char*>(at + row) + ahead, 0, 2);
        const V low = columns[n], high = load<V>(at + row);
        columns[n] = zip_pairs<0>(low, high), columns[n + 1] = zip_pairs<1>(low, high);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V weight = splat<V>(weights[r * of_row]);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sums[r][n] = multiply_add<kPairs>(weight, columns[n], sums[r][n]);
    }
    weights += of_key, values += kPack<kPairs> * row;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    T* c = p.c + r * p.width + column;
    const V keep = splat<V>(p.keep[r]);
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      V sum = sums[r][n];
      if constexpr (kPairs) {
        const V low = sums[r][n / 2 * 2], high = sums[r][n / 2 * 2 + 1];
        sum = n % 2 ? zip_quarters<1>(low, high, kSequence) : zip_quarters<0>(low, high, kSequence);
        if (column + n * kLanes<V> >= p.width) break;
      }
      store(c + n * kLanes<V>, fma(load<V>(c + n * kLanes<V>), keep, sum));
    }
  }
}

// All columns, a multiple of whole vectors, or of two where kPairs.
template <typename V, bool kPairs, int kRows>
static void sum_values(const WeightedSum<Element<V>>& p, int64_t columns) {
  constexpr int kMost = (kManyRegisters ? 16 : 8) / kRows;  // vectors at a time
  int64_t d = 0;
  if constexpr (kMost >= 4) {
    for (; columns - d >= 4 * kLanes<V>; d += 4 * kLanes<V>) sum_columns<V, kPairs, kRows, 4>(p, d);
  }
  if constexpr (kMost >= 2) {
    for (; columns - d >= 2 * kLanes<V>; d += 2 * kLanes<V>) sum_columns<V, kPairs, kRows, 2>(p, d);
  }
  if constexpr (!kPairs) {
    for (; d < columns; d += kLanes<V>) sum_columns<V, kPairs, kRows, 1>(p, d);
  }
}

// Up to kFewRows rows. Sums of values lie as [rows][width].
template <typename V_, typename E_, bool kPairs>
struct FewRows {
  using V = V_;
  using E = E_;
  using T = Element<V>;
  static constexpr bool kSameWords = kPairs || std::is_same_v<T, E>;

  struct Buffers {
    T* q;                 // [words, rounded up to kLanes][kFewRows]
    T *keys, *values;     // [kLanes] and [kTileKeys] rows, where they cannot be read in place
    T *scores, *weights;  // [kFewRows][kTileKeys] and, rounded to pairs, half of that
    T* alpha;             // [kFewLanes]
  };
  static Buffers take_buffers(const Rows<V>&, int64_t width, Scratch* scratch) {
    return {scratch->take<T>(kFewRows * width),     scratch->take<T>(kKeyGroup * width),
            scratch->take<T>(kTileKeys * width),    scratch->take<T>(kFewRows * kTileKeys),
            scratch->take<T>(kFewRows * kTileKeys), scratch->take<T>(kFewLanes)};
  }

  static void pack_queries(const E* q, const Rows<V>& rows, int64_t dim, const Buffers& b) {
    const int64_t words = dim / kPack<kPairs>;
    if (rows.count < kFewRows) {
      for (int64_t i = 0; i < round_up(words, kLanes<V>) * kFewRows; ++i) b.q[i] = 0;
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t w = 0; w < words; w += kLanes<V>) {
        const V x = load_words<V, kPairs>(q + rows.at[r] * dim, w, words);
        for (int i = 0; i < kLanes<V>; ++i) b.q[(w + i) * kFewRows + r] = x[i];
      }
    }
  }

  // The unit's rows over keys [begin, end) alone. From each tile, `next` elements on lies what is read after
  // it.
  static void add_keys(const Params& p, const Unit& unit, const Rows<V>& rows, int64_t begin, int64_t end,
                       const Buffers& b, const Partial<T>& partial, const Ahead& ahead, int64_t next) {
    with_rows(rows.count, [&](auto count) {
      for (int64_t tile = begin; tile < end; tile += kTileKeys)
        add_tile<count>(p, unit, rows, tile, end, b, partial, ahead, unit.keys - tile > kTileKeys ? next : 0);
    });
  }
  template <int kRows = kFewRows, typename Run>
  static void with_rows(int64_t rows, const Run& run) {
    if (rows == kRows) return run(std::integral_constant<int, kRows>());
    if constexpr (kRows > 1) with_rows<kRows - 1>(rows, run);
  }

  template <int kRows>
  static void add_tile(const Params& p, const Unit& unit, const Rows<V>& rows, int64_t begin, int64_t end,
                       const Buffers& b, const Partial<T>& partial, const Ahead& ahead, int64_t next) {
    const int64_t width = padded_dim(p.dim), words = p.dim / kPack<kPairs>, stride = p.kv_heads * p.dim;
    const int64_t tile = end - begin < kTileKeys ? end - begin : kTileKeys;
    const int64_t offset = (unit.key_begin + begin) * stride + unit.kv_head * p.dim;
    const E *k = static_cast<const E*>(p.k) + offset, *v = static_cast<const E*>(p.v) + offset;
    constexpr bool kInLanes = kPairs && kRows >= 4;
    constexpr int kGroup = kInLanes ? kKeyGroup : kLanes<V>;
    for (int64_t j = 0; j < tile; j += kGroup) {
      if (begin < kPartKeys) {
        const int64_t groups = (end + kGroup - 1) / kGroup;
        ahead.ask(unit.kv_head * groups + (begin + j) / kGroup, p.kv_heads * groups);
      }
      const E* group = k + j * stride;
      Operand<T> keys{reinterpret_cast<const T*>(group), stride / kPack<kPairs>};
      if (!kSameWords || (!kInLanes && words % kLanes<V> != 0) || tile - j < kGroup) {
        keys = {b.keys, round_up(words, kLanes<V>)};
        pack_along<V, kPairs>(group, stride, tile - j, kGroup, p.dim, b.keys, keys.row);
      }
      const RowsAhead asked{reinterpret_cast<const char*>(group + next),
                            stride * static_cast<int64_t>(sizeof(E)), kPack<kPairs> * sizeof(E)};
      if constexpr (kInLanes) {
        score_rows<RowVector<T>, kPairs>(b.q, keys, words, asked, b.scores + j * kFewRows);
      } else {
        score_keys<V, kPairs, kRows>(b.q, keys, words, asked, b.scores + j);
      }
    }
    if constexpr (kInLanes) {
      using L = RowVector<T>;
      const int64_t columns = round_up(tile, 4);
      const L alpha = softmax_lanes<L, kPairs>(
          b.scores, b.weights, kFewRows, columns, rows.least_visible(0) - begin < columns,
          load<Integers<L>>(rows.visible) - static_cast<Integer<T>>(begin), static_cast<T>(p.scale * kLog2E),
          partial.maximum, partial.total);
      store(b.alpha, alpha);
    } else {
      softmax_rows<V, kPairs>(b.scores, b.weights, kRows, tile, begin, rows.visible,
                              static_cast<T>(p.scale * kLog2E), b.alpha, partial.maximum, partial.total);
    }
    const int64_t columns = round_up(p.dim, kPack<kPairs> * kLanes<V>), stored = columns / kPack<kPairs>;
    const int64_t counted = round_up(tile, kPack<kPairs>);
    Operand<T> values{reinterpret_cast<const T*>(v), stride / kPack<kPairs>};
    if (!kSameWords || columns != p.dim || counted != tile) {
      values = {b.values, stored};
      pack_along<V, kPairs>(v, stride, tile, counted, p.dim, b.values, stored);
      lines_ahead(v + next, stride, tile, p.dim).ask(tile * p.dim);
      next = 0;
    }
    sum_values<V, kPairs, kRows>(
        {kPairs ? b.weights : b.scores, kInLanes ? 1 : kTileKeys / kPack<kPairs>, kInLanes ? kFewRows : 1,
         values, counted, next * static_cast<int64_t>(sizeof(E)), partial.sums, width, b.alpha},
        columns);
  }

  static void join_sums(const Rows<V>& rows, int64_t lane, int64_t dim, V alpha, V beta, const T* part,
                        T* whole) {
    const int64_t width = padded_dim(dim);
    for (int64_t r = lane; r < rows.count && r < lane + kLanes<V>; ++r) {
      const V a = splat<V>(alpha[r - lane]), b = splat<V>(beta[r - lane]);
      for (int64_t d = r * width; d < (r + 1) * width; d += kLanes<V>)
        store(whole + d, fma(load<V>(whole + d), a, load<V>(part + d) * b));
    }
  }

  static void write_sums(const Rows<V>& rows, int64_t dim, const T* sums, const T* factor, E* out) {
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t d = 0; d < dim; d += kLanes<V>) {
        store_elements<V>(out + rows.at[r] * dim + d,
                          load<V>(sums + r * padded_dim(dim) + d) * splat<V>(factor[r]), dim - d);
      }
    }
  }
};
