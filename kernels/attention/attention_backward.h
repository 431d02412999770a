// SPDX-License-Identifier: Apache-2.0
// Backward pass of one unit, from the saved log-sum-exp:
//   p = exp(s - lse)   dv = p^T do   dp = do v^T   ds = p * (dp - <do, o> + dlse) * scale   dq = ds k   dk =
//   ds^T q
// Groups of rows outside, tiles of keys, blocks of rows inside, all ascending: dq of a group is summed over
// tiles in order, dk and dv over rows in order (all heads of the group). Included inside the tier's own
// namespace, after attention_forward.h.

template <typename T>
struct BackwardBuffers {
  T *q_lanes, *grad_out_lanes;         // [blocks][width / kPack][lanes]
  T *q_rows, *grad_out_rows;           // [blocks][lanes / kPack][width]
  T* grad_q;                           // [blocks][width][lanes]
  T *keys, *values, *keys_across;      // tiles
  T *grad_k, *grad_v;                  // their sums over the rows: [kTileKeys][width]
  T *weights, *grad_scores;            // [kTileKeys][lanes]: s, then p; dp, then ds
  T *weight_words, *grad_score_words;  // the same rounded, words along rows: [kTileKeys][lanes / 2]
  T* grad_score_pairs;                 // and words across keys: [kTileKeys / 2][lanes]
  T *delta, *shift, *shift_low;        // [blocks][lanes]
  T* ones;                             // [width], or [lanes] if that is more
};

template <typename V>
static BackwardBuffers<Element<V>> take_backward_buffers(const Rows<V>& rows, int64_t width,
                                                         Scratch* scratch) {
  using T = Element<V>;
  const auto take = [&](int64_t count) { return scratch->take<T>(count); };
  const int64_t lanes = rows.blocks * rows.lanes, square = kTileKeys * rows.lanes;
  BackwardBuffers<T> b;
  for (T** rows_of : {&b.q_lanes, &b.grad_out_lanes, &b.q_rows, &b.grad_out_rows, &b.grad_q})
    *rows_of = take(lanes * width);
  for (T** tile : {&b.keys, &b.values, &b.keys_across, &b.grad_k, &b.grad_v}) *tile = take(kTileKeys * width);
  for (T** scores : {&b.weights, &b.grad_scores, &b.weight_words, &b.grad_score_words, &b.grad_score_pairs})
    *scores = take(square);
  for (T** numbers : {&b.delta, &b.shift, &b.shift_low}) *numbers = take(lanes);
  const int64_t ones = width > rows.lanes ? width : rows.lanes;
  b.ones = take(ones);
  for (int64_t i = 0; i < ones; ++i) b.ones[i] = 1;
  return b;
}

// <do, o> - dlse, and -lse * log2(e) in two parts of T.
template <typename V, typename E>
static void row_constants(const Params& p, const Gradients& g, const Rows<V>& rows,
                          const BackwardBuffers<Element<V>>& b) {
  using T = Element<V>;
  for (int64_t i = 0; i < rows.blocks * rows.lanes; ++i) {
    b.delta[i] = b.shift[i] = b.shift_low[i] = 0;
    if (i >= rows.count) continue;
    const int64_t at = rows.at[i];
    V total{};
    for (int64_t d = 0; d < p.dim; d += kLanes<V>) {
      total = fma(load_elements<V>(static_cast<const E*>(g.out) + at * p.dim + d, p.dim - d),
                  load_elements<V>(static_cast<const E*>(g.grad_out) + at * p.dim + d, p.dim - d), total);
    }
    b.delta[i] = sum(total) - (g.grad_lse == nullptr ? T(0) : static_cast<T>(g.grad_lse[at]));
    if (rows.visible[i] <= 0) continue;
    const double shift = -g.lse[at] * kLog2E;
    b.shift[i] = static_cast<T>(shift);
    b.shift_low[i] = static_cast<T>(shift - static_cast<double>(b.shift[i]));
  }
}

// What of a row takes part in differentiating its scores, for one vector of rows.
template <typename V>
struct Differentiate {
  V factor, factor_low, shift, shift_low, delta, scale;
  Integers<V> visible;
  bool masked;

  // p and ds from s = <q, k> and dp = <do, v> for key j of the tile. x = to_base2 * s - lse, both factors in
  // two parts: their rounding would shift the whole row alike, and such errors add up in dk and dv.
  template <bool kPairs>
  EARNEST_INLINE void apply(const Differentiate& row, int64_t j, V* s, V* dp) {
    V x = fma(*s, row.factor, row.shift);
    if constexpr (!kPairs) x += fma(*s, row.factor_low, row.shift_low);
    *s = exp2<kPairs>(x);
    *dp = *s * (*dp - row.delta) * row.scale;
    if (!row.masked) return;
    const auto seen = row.visible > static_cast<Integer<Element<V>>>(j);
    *s = seen ? *s : V{};
    *dp = seen ? *dp : V{};
  }
};

// s and dp of one vector of rows to p and ds: in place, or rounded into the three arrangements of pairs.
template <typename V, bool kPairs>
static void differentiate_lanes(const Differentiate<V>& row, const BackwardBuffers<Element<V>>& b, int64_t n,
                                int64_t lanes, int64_t columns) {
  for (int64_t j = 0; j < columns; j += 2) {
    V s[2], dp[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      s[i] = load<V>(b.weights + (j + i) * lanes + n);
      dp[i] = load<V>(b.grad_scores + (j + i) * lanes + n);
      Differentiate<V>::template apply<kPairs>(row, j + i, &s[i], &dp[i]);
      if constexpr (!kPairs) {
        store(b.weights + (j + i) * lanes + n, s[i]);
        store(b.grad_scores + (j + i) * lanes + n, dp[i]);
      }
    }
    if constexpr (kPairs) {
      const auto p = round_two(s[0], s[1]), ds = round_two(dp[0], dp[1]);
      store(b.grad_score_pairs + j / 2 * lanes + n, same_bits<V>(pair_up(ds)));
      __builtin_memcpy(b.weight_words + (j * lanes + n) / 2, &p, sizeof p / 2);
      __builtin_memcpy(b.weight_words + ((j + 1) * lanes + n) / 2,
                       reinterpret_cast<const char*>(&p) + sizeof p / 2, sizeof p / 2);
      __builtin_memcpy(b.grad_score_words + (j * lanes + n) / 2, &ds, sizeof ds / 2);
      __builtin_memcpy(b.grad_score_words + ((j + 1) * lanes + n) / 2,
                       reinterpret_cast<const char*>(&ds) + sizeof ds / 2, sizeof ds / 2);
    }
  }
}

// One block of rows against one tile of keys, of which it sees `columns` (padded).
template <typename V, bool kPairs>
static void backward_block(const Params& p, const Rows<V>& rows, int64_t block, int64_t tile_begin,
                           int64_t columns, const Operand<Element<V>>& keys,
                           const Operand<Element<V>>& values, const Operand<Element<V>>& keys_across,
                           const BackwardBuffers<Element<V>>& b) {
  using T = Element<V>;
  constexpr int kWord = kPack<kPairs>;
  const int64_t width = padded_dim(p.dim), lanes = rows.lanes, vectors = rows.vectors(block);
  const int64_t at = block * lanes, words = p.dim / kWord;
  multiply<V, kPairs>(
      {keys.words, keys.row, 1, b.q_lanes + at * width / kWord, lanes, words, b.weights, lanes, nullptr},
      columns, vectors);
  multiply<V, kPairs>({values.words, values.row, 1, b.grad_out_lanes + at * width / kWord, lanes, words,
                       b.grad_scores, lanes, nullptr},
                      columns, vectors);
  const double to_base2 = p.scale * kLog2E;
  const T factor = static_cast<T>(to_base2);
  for (int64_t n = 0; n < vectors * kLanes<V>; n += kLanes<V>) {
    const Differentiate<V> row{splat<V>(factor),
                               splat<V>(static_cast<T>(to_base2 - static_cast<double>(factor))),
                               load<V>(b.shift + at + n),
                               load<V>(b.shift_low + at + n),
                               load<V>(b.delta + at + n),
                               splat<V>(static_cast<T>(p.scale)),
                               load<Integers<V>>(rows.visible + at + n) - static_cast<Integer<T>>(tile_begin),
                               rows.least_visible(block) - tile_begin < columns};
    differentiate_lanes<V, kPairs>(row, b, n, lanes, columns);
  }
  multiply<V, kPairs>({keys_across.words, 1, keys_across.row, kPairs ? b.grad_score_pairs : b.grad_scores,
                       lanes, columns / kWord, b.grad_q + at * width, lanes, b.ones},
                      p.dim, vectors);
  const int64_t along_dim = (p.dim + kLanes<V> - 1) / kLanes<V>, count = (rows.in(block) + kWord - 1) / kWord;
  multiply<V, kPairs>({kPairs ? b.grad_score_words : b.grad_scores, lanes / kWord, 1,
                       b.q_rows + at * width / kWord, width, count, b.grad_k, width, b.ones},
                      columns, along_dim);
  multiply<V, kPairs>({kPairs ? b.weight_words : b.weights, lanes / kWord, 1,
                       b.grad_out_rows + at * width / kWord, width, count, b.grad_v, width, b.ones},
                      columns, along_dim);
}

template <typename V>
static void add_and_clear(Element<V>* from, int64_t count, Element<V>* to) {
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    store(to + i, load<V>(to + i) + load<V>(from + i));
    store(from + i, V{});
  }
}

// One group of rows against every key that it sees.
template <typename V, typename E, bool kPairs>
static void backward_rows(const Params& p, const Gradients& g, const Unit& unit, int64_t first, int64_t count,
                          Element<V>* grad_k, Element<V>* grad_v, const Ahead& ahead, Scratch scratch) {
  using T = Element<V>;
  const int64_t width = padded_dim(p.dim), stride = p.kv_heads * p.dim;
  const Rows<V> rows = list_rows<V>(p, unit, first, count, &scratch);
  const BackwardBuffers<T> b = take_backward_buffers(rows, width, &scratch);
  const E *q = static_cast<const E*>(p.q), *grad_out = static_cast<const E*>(g.grad_out);
  pack_all_lanes<V, kPairs>(q, rows, p.dim, b.q_lanes);
  pack_all_lanes<V, kPairs>(grad_out, rows, p.dim, b.grad_out_lanes);
  const int64_t padded = round_up(count, kPack<kPairs>);
  pack_across<V, kPairs>([&](int64_t i) { return q + rows.at[i] * p.dim; }, count, padded, p.dim, b.q_rows);
  pack_across<V, kPairs>([&](int64_t i) { return grad_out + rows.at[i] * p.dim; }, count, padded, p.dim,
                         b.grad_out_rows);
  row_constants<V, E>(p, g, rows, b);
  for (int64_t i = 0; i < rows.blocks * rows.lanes * width; i += kLanes<V>) store(b.grad_q + i, V{});

  for (int64_t i = 0; i < kTileKeys * width; i += kLanes<V>)
    store(b.grad_k + i, V{}), store(b.grad_v + i, V{});

  const int64_t seen = rows.most_visible(rows.blocks - 1);
  int64_t skipped = 0;  // blocks that see nothing of the tile
  for (int64_t begin = 0; begin < seen; begin += kTileKeys) {
    const int64_t tile = seen - begin < kTileKeys ? seen - begin : kTileKeys;
    const int64_t offset = (unit.key_begin + begin) * stride + unit.kv_head * p.dim;
    const E *k = static_cast<const E*>(p.k) + offset, *v = static_cast<const E*>(p.v) + offset;
    const Operand<T> keys = keys_along<V, kPairs>(k, stride, tile, p.dim, true, b.keys);
    const Operand<T> values = keys_along<V, kPairs>(v, stride, tile, p.dim, true, b.values);
    const Operand<T> keys_across_rows =
        kPairs ? keys_across<V, kPairs>(k, stride, tile, p.dim, true, b.keys_across) : keys;
    while (rows.most_visible(skipped) <= begin) ++skipped;
    const int64_t after = seen - begin - kTileKeys, then = after < kTileKeys ? after : kTileKeys;
    LinesAhead next_keys = lines_ahead(k + kTileKeys * stride, stride, then, p.dim);
    LinesAhead next_values = lines_ahead(v + kTileKeys * stride, stride, then, p.dim);
    const int64_t lines_per_block = next_keys.left / (rows.blocks - skipped) + 1;
    for (int64_t block = skipped; block < rows.blocks; ++block) {
      const int64_t sees = rows.most_visible(block) - begin;
      next_keys.ask(lines_per_block), next_values.ask(lines_per_block);
      if (begin == 0) ahead.ask(unit.kv_head * rows.blocks + block, p.kv_heads * rows.blocks);
      backward_block<V, kPairs>(p, rows, block, begin, round_up(sees < tile ? sees : tile, kRowGroup), keys,
                                values, keys_across_rows, b);
    }
    add_and_clear<V>(b.grad_k, round_up(tile, kRowGroup) * width, grad_k + begin * width);
    add_and_clear<V>(b.grad_v, round_up(tile, kRowGroup) * width, grad_v + begin * width);
  }
  for (int64_t block = 0; block < rows.blocks; ++block) {
    unpack_lanes<V>(b.grad_q + block * width * rows.lanes, b.ones, rows, block, p.dim,
                    static_cast<E*>(g.grad_q));
  }
}

// grad_k and grad_v of keys [begin, end) of the unit: `parts` arrays of sums in order, zeros where there are
// none. Part i holds the sums of the first held(i) keys, dk before dv.
template <typename V, typename E>
static void write_key_gradients(const Params& p, const Gradients& g, const Unit& unit, int64_t begin,
                                int64_t end, int64_t parts, const KeySums* sums) {
  using T = Element<V>;
  const int64_t width = padded_dim(p.dim), stride = p.kv_heads * p.dim;
  for (int64_t j = begin; j < end; ++j) {
    const int64_t to = (unit.key_begin + j) * stride + unit.kv_head * p.dim;
    for (int64_t d = 0; d < p.dim; d += kLanes<V>) {
      V grad_k{}, grad_v{};
      for (int64_t i = 0; i < parts; ++i) {
        if (j >= sums[i].keys) continue;
        const T* from = static_cast<const T*>(sums[i].memory) + j * width + d;
        grad_k += load<V>(from);
        grad_v += load<V>(from + round_up(sums[i].keys, kRowGroup) * width);
      }
      store_elements<V>(static_cast<E*>(g.grad_k) + to + d, grad_k, p.dim - d);
      store_elements<V>(static_cast<E*>(g.grad_v) + to + d, grad_v, p.dim - d);
    }
  }
}

// Rows [row_begin, row_end) of the unit: their dq, and their sums for dk and dv.
template <typename V, typename E, bool kPairs>
static void backward_unit(const Params& p, const Gradients& g, const Unit& unit, const KeySums& sums,
                          const Unit* next, void* memory) {
  using T = Element<V>;
  const int64_t size = round_up(sums.keys, kRowGroup) * padded_dim(p.dim);
  T *grad_k = static_cast<T*>(sums.memory), *grad_v = grad_k + size;
  for (int64_t i = 0; i < 2 * size; i += kLanes<V>) store(grad_k + i, V{});
  const Ahead ahead = sequence_ahead<E>(p, next, g.out, g.grad_out);
  for (int64_t row = unit.row_begin; row < unit.row_end; row += kBackwardRows) {
    const int64_t count = unit.row_end - row < kBackwardRows ? unit.row_end - row : kBackwardRows;
    backward_rows<V, E, kPairs>(p, g, unit, row, count, grad_k, grad_v,
                                row == unit.row_begin ? ahead : Ahead{}, {static_cast<char*>(memory)});
  }
}
