// SPDX-License-Identifier: Apache-2.0
// Few rows against many keys, as in decoding: keys lie in the lanes of vectors for the scores (or the rows,
// where there are enough of them), columns of values for the weighted sum, so that whole vectors are at work
// for a single row too, and keys and values are read once, in place. Every score and every sum is the chain
// of additions that ManyRows makes of it, hence the same bits. Included inside the tier's own namespace,
// after attention_forward.h.

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

constexpr int kKeyGroup =
    16;  // keys whose scores are summed together: more chains than a product takes cycles
template <typename T>
using RowVector = Vector<T, kFewRows * sizeof(T)>;

// scores[key][:] = <q_:, k_key> of pairs for kKeyGroup keys: the same chains with rows in the lanes of half a
// vector and nothing transposed, for the shuffles of score_keys take longer than the products of its pairs.
template <typename L>
static void score_rows(const Element<L>* q, const Operand<Element<L>>& keys, int64_t words,
                       const RowsAhead& ahead, Element<L>* scores) {
  const int64_t row = keys.row;
  L sums[kKeyGroup] = {};
  const Element<L>* fours[4] = {keys.words, keys.words + 4 * row, keys.words + 8 * row,
                                keys.words + 12 * row};
  const char* next = ahead.keys;
  for (int64_t w = 0; w < words; w += kKeyGroup) {
    const int64_t count = words - w < kKeyGroup ? words - w : kKeyGroup;
    const char* next_row = next;
    for (int64_t i = 0; i < count; ++i, q += kFewRows, next_row += ahead.row) {
      __builtin_prefetch(next_row, 0, 2);
      const L rows = load<L>(q);
#pragma GCC unroll 4
      for (int f = 0; f < 4; ++f) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) sums[4 * f + r] = dot_pair(rows, fours[f] + r * row, sums[4 * f + r]);
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
    T *keys, *values;     // [kKeyGroup] and [kTileKeys] rows, where they cannot be read in place
    T *scores, *weights;  // [kFewRows][kTileKeys], or turned about; rounded to pairs, half of that
    T* alpha;             // [kFewLanes]
  };
  static Buffers take_buffers(const Rows<V>&, int64_t width, Scratch* scratch) {
    return {scratch->take<T>(kFewRows * width),     scratch->take<T>(kKeyGroup * width),
            scratch->take<T>(kTileKeys * width),    scratch->take<T>(kFewRows * kTileKeys),
            scratch->take<T>(kFewRows * kTileKeys), scratch->take<T>(kFewLanes)};
  }

  static void pack_queries(const E* q, const Rows<V>& rows, int64_t dim, const Buffers& b) {
    const int64_t words = dim / kPack<kPairs>;
    for (int64_t i = 0; i < round_up(words, kLanes<V>) * kFewRows; ++i) b.q[i] = 0;  // of rows that are not
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

  // Which of score_keys and score_rows is faster; scores and weights lie as it leaves them.
  template <int kRows>
  static constexpr bool kInLanes = kPairs && kRows >= 4;

  // Scores of a tile of keys, which begin at k.
  template <int kRows>
  static void score_tile(const Params& p, const Unit& unit, int64_t begin, int64_t end, const E* k,
                         const Buffers& b, const Ahead& ahead, int64_t next) {
    constexpr int kGroup = kInLanes<kRows> ? kKeyGroup : kLanes<V>;
    const int64_t words = p.dim / kPack<kPairs>, stride = p.kv_heads * p.dim;
    const int64_t tile = end - begin < kTileKeys ? end - begin : kTileKeys;
    for (int64_t j = 0; j < tile; j += kGroup, k += kGroup * stride) {
      if (begin < kPartKeys) {
        const int64_t groups = (end + kGroup - 1) / kGroup;
        ahead.ask(unit.kv_head * groups + (begin + j) / kGroup, p.kv_heads * groups);
      }
      Operand<T> keys{reinterpret_cast<const T*>(k), stride / kPack<kPairs>};
      if (!kSameWords || (!kInLanes<kRows> && words % kLanes<V> != 0) || tile - j < kGroup) {
        keys = {b.keys, round_up(words, kLanes<V>)};
        pack_along<V, kPairs>(k, stride, tile - j, kGroup, p.dim, b.keys, keys.row);
      }
      const RowsAhead asked{reinterpret_cast<const char*>(k + next), stride * static_cast<int64_t>(sizeof(E)),
                            kPack<kPairs> * sizeof(E)};
      if constexpr (kInLanes<kRows>) {
        score_rows<RowVector<T>>(b.q, keys, words, asked, b.scores + j * kFewRows);
      } else {
        score_keys<V, kPairs, kRows>(b.q, keys, words, asked, b.scores + j);
      }
    }
  }

  template <int kRows>
  static void weigh_tile(const Params& p, const Rows<V>& rows, int64_t begin, int64_t tile, const Buffers& b,
                         const Partial<T>& partial) {
    const T to_base2 = static_cast<T>(p.scale * kLog2E);
    if constexpr (kInLanes<kRows>) {
      using L = RowVector<T>;
      const int64_t columns = round_up(tile, 4);  // of kKeyGroup that are there
      const auto visible = load<Integers<L>>(rows.visible) - static_cast<Integer<T>>(begin);
      store(b.alpha, softmax_lanes<L, kPairs>(b.scores, b.weights, kFewRows, columns,
                                              rows.least_visible(0) - begin < columns, visible, to_base2,
                                              partial.maximum, partial.total));
    } else {
      softmax_rows<V, kPairs>(b.scores, b.weights, kRows, tile, begin, rows.visible, to_base2, b.alpha,
                              partial.maximum, partial.total);
    }
  }

  template <int kRows>
  static void add_tile(const Params& p, const Unit& unit, const Rows<V>& rows, int64_t begin, int64_t end,
                       const Buffers& b, const Partial<T>& partial, const Ahead& ahead, int64_t next) {
    const int64_t stride = p.kv_heads * p.dim, tile = end - begin < kTileKeys ? end - begin : kTileKeys;
    const int64_t offset = (unit.key_begin + begin) * stride + unit.kv_head * p.dim;
    score_tile<kRows>(p, unit, begin, end, static_cast<const E*>(p.k) + offset, b, ahead, next);
    weigh_tile<kRows>(p, rows, begin, tile, b, partial);
    const E* v = static_cast<const E*>(p.v) + offset;
    const int64_t columns = round_up(p.dim, kPack<kPairs> * kLanes<V>), packed = columns / kPack<kPairs>;
    const int64_t keys = round_up(tile, kPack<kPairs>);
    Operand<T> values{reinterpret_cast<const T*>(v), stride / kPack<kPairs>};
    if (!kSameWords || columns != p.dim || keys != tile) {
      values = {b.values, packed};
      pack_along<V, kPairs>(v, stride, tile, keys, p.dim, b.values, packed);
      lines_ahead(v + next, stride, tile, p.dim).ask(tile * p.dim);
      next = 0;
    }
    const T* weights = kPairs ? b.weights : b.scores;
    const int64_t of_row = kInLanes<kRows> ? 1 : kTileKeys / kPack<kPairs>;
    const int64_t of_key = kInLanes<kRows> ? kFewRows : 1;
    sum_values<V, kPairs, kRows>(
        {weights, of_row, of_key, values, keys, next * static_cast<int64_t>(sizeof(E)), partial.sums,
         padded_dim(p.dim), b.alpha},
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
