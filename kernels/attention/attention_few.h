// SPDX-License-Identifier: Apache-2.0
// Few rows against many keys, as in decoding: keys lie in the lanes of vectors for the scores, columns of
// values for the weighted sum, so that whole vectors are at work for a single row too. Every score and every
// sum is the chain of additions that ManyRows makes of it, hence the same bits. Included inside the tier's
// own namespace, after attention_forward.h.

constexpr int kFewLanes = 16;  // of arrays with a number for each row, loaded as whole vectors of any tier

// Rows of keys, and of values that lie alike, which will be read soon.
struct RowsAhead {
  const char *keys, *values;
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
  const char *next = ahead.keys, *values = ahead.values;
  for (int64_t w = 0; w < words; w += kLanes<V>, q += kLanes<V> * kFewRows) {
    V square[kLanes<V>];
    const T* key = keys.words + w;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<V>; ++i, key += row) square[i] = load<V>(key);
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<V>; ++i) {
      __builtin_prefetch(next + i * ahead.row, 0, 2);
      __builtin_prefetch(values + i * ahead.row, 0, 2);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        sums[r] = multiply_add<kPairs>(splat<V>(q[i * kFewRows + r]), square[i], sums[r]);
    }
    next += kLanes<V> * ahead.word, values += kLanes<V> * ahead.word;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(scores + r * kTileKeys, sums[r]);
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
    return {scratch->take<T>(kFewRows * width),     scratch->take<T>(kLanes<V> * width),
            scratch->take<T>(kTileKeys * width),    scratch->take<T>(kFewRows * kTileKeys),
            scratch->take<T>(kFewRows * kTileKeys), scratch->take<T>(kFewLanes)};
  }

  static void pack_queries(const E* q, const Rows<V>& rows, int64_t dim, const Buffers& b) {
    const int64_t words = dim / kPack<kPairs>;
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t w = 0; w < words; w += kLanes<V>) {
        const V x = load_words<V, kPairs>(q + rows.at[r] * dim, w, words);
        for (int i = 0; i < kLanes<V>; ++i) b.q[(w + i) * kFewRows + r] = x[i];
      }
    }
  }

  // The unit's rows over keys [begin, end) alone.
  static void add_keys(const Params& p, const Unit& unit, const Rows<V>& rows, int64_t begin, int64_t end,
                       const Buffers& b, const Partial<T>& partial, const Ahead& ahead) {
    with_rows(rows.count, [&](auto count) {
      for (int64_t tile = begin; tile < end; tile += kTileKeys)
        add_tile<count>(p, unit, rows, tile, end, b, partial, ahead);
    });
  }
  template <int kRows = kFewRows, typename Run>
  static void with_rows(int64_t rows, const Run& run) {
    if (rows == kRows) return run(std::integral_constant<int, kRows>());
    if constexpr (kRows > 1) with_rows<kRows - 1>(rows, run);
  }

  template <int kRows>
  static void add_tile(const Params& p, const Unit& unit, const Rows<V>& rows, int64_t begin, int64_t end,
                       const Buffers& b, const Partial<T>& partial, const Ahead& ahead) {
    const int64_t width = padded_dim(p.dim), words = p.dim / kPack<kPairs>, stride = p.kv_heads * p.dim;
    const int64_t tile = end - begin < kTileKeys ? end - begin : kTileKeys;
    const int64_t offset = (unit.key_begin + begin) * stride + unit.kv_head * p.dim;
    const E *k = static_cast<const E*>(p.k) + offset, *v = static_cast<const E*>(p.v) + offset;
    const int64_t next = unit.keys - begin > kTileKeys ? kTileKeys * stride : 0;
    for (int64_t j = 0; j < tile; j += kLanes<V>) {
      if (begin < kPartKeys) {
        const int64_t groups = (end + kLanes<V> - 1) / kLanes<V>;
        ahead.ask(unit.kv_head * groups + (begin + j) / kLanes<V>, p.kv_heads * groups);
      }
      const E* group = k + j * stride;
      Operand<T> keys{reinterpret_cast<const T*>(group), stride / kPack<kPairs>};
      if (!kSameWords || words % kLanes<V> != 0 || tile - j < kLanes<V>) {
        keys = {b.keys, round_up(words, kLanes<V>)};
        pack_along<V, kPairs>(group, stride, tile - j, kLanes<V>, p.dim, b.keys, keys.row);
      }
      const RowsAhead asked{reinterpret_cast<const char*>(group + next),
                            reinterpret_cast<const char*>(v + j * stride),
                            stride * static_cast<int64_t>(sizeof(E)), kPack<kPairs> * sizeof(E)};
      score_keys<V, kPairs, kRows>(b.q, keys, words, asked, b.scores + j);
    }
    softmax_rows<V, kPairs>(b.scores, b.weights, kRows, tile, begin, rows.visible,
                            static_cast<T>(p.scale * kLog2E), b.alpha, partial.maximum, partial.total);
    Operand<T> values{reinterpret_cast<const T*>(v), stride};
    if constexpr (kPairs) {
      values = keys_across<V, kPairs>(v, stride, tile, p.dim, true, b.values);
    } else if (!kSameWords || p.dim % kLanes<V> != 0) {
      values = keys_along<V, kPairs>(v, stride, tile, p.dim, true, b.values);
    }
    multiply_few<V, kPairs, kRows>(
        {kPairs ? b.weights : b.scores, kTileKeys / kPack<kPairs>, 1, values.words, values.row,
         round_up(tile, kPack<kPairs>) / kPack<kPairs>, partial.sums, width, b.alpha},
        (p.dim + kLanes<V> - 1) / kLanes<V>);
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
