// SPDX-License-Identifier: Apache-2.0
// Forward pass of one unit: for each tile of keys, scores of a block of rows, a softmax that rescales what
// was summed before (online softmax, Milakov and Gimelshein 2018), and their weighted sum of values. Every
// part of kPartKeys keys is summed for itself and the parts are joined in ascending order, whether one thread
// takes them in turn or many take one each. Scores live in base 2: x = scale * log2(e) * <q, k>. Included
// inside the tier's own namespace, after attention_tile.h.

constexpr double kLog2E = 1.4426950408889634074;

// What is known of each row after some keys: the largest dot product, the sum of weights relative to it, and
// the weighted sum of values.
template <typename T>
struct Partial {
  T *maximum, *total;  // [blocks * lanes]
  T* sums;             // [blocks][width][lanes]
};
template <typename V>
static Partial<Element<V>> take_partial(const Rows<V>& rows, int64_t width, Scratch* scratch) {
  using T = Element<V>;
  const int64_t lanes = rows.blocks * rows.lanes;
  return {scratch->take<T>(lanes), scratch->take<T>(lanes), scratch->take<T>(lanes * width)};
}

template <typename V>
static void clear_partial(const Partial<Element<V>>& partial, const Rows<V>& rows, int64_t width) {
  const int64_t lanes = rows.blocks * rows.lanes;
  for (int64_t i = 0; i < lanes; i += kLanes<V>) {
    store(partial.maximum + i, splat<V>(static_cast<Element<V>>(-__builtin_inf())));
    store(partial.total + i, V{});
  }
  for (int64_t i = 0; i < lanes * width; i += kLanes<V>) store(partial.sums + i, V{});
}

template <typename V>
EARNEST_INLINE V finite_or_zero(V x) {  // for -inf, of which nothing can be subtracted
  return x == splat<V>(static_cast<Element<V>>(-__builtin_inf())) ? V{} : x;
}

// Turns dot products of one vector of rows with `columns` keys into 2^((s - maximum) * to_base2), 0 where
// masked: in place, or rounded to pairs of neighbouring keys. Sums of weights run over every fourth key, so
// that four are in flight. Returns the factor by which what each row summed before has to shrink.
template <typename V, bool kPairs>
static V softmax_lanes(Element<V>* scores, Element<V>* pairs, int64_t lanes, int64_t columns, bool masked,
                       Integers<V> visible, Element<V> to_base2, Element<V>* maximum, Element<V>* total) {
  using T = Element<V>;
  const V none = splat<V>(static_cast<T>(-__builtin_inf())), factor = splat<V>(to_base2);
  V highest[2] = {none, none};
  for (int64_t j = 0; j < columns; j += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      V x = load<V>(scores + (j + i) * lanes);
      if (masked) {
        x = visible > static_cast<Integer<T>>(j + i) ? x : none;
        store(scores + (j + i) * lanes, x);
      }
      highest[i] = max(highest[i], x);
    }
  }
  const V before = load<V>(maximum), now = max(before, max(highest[0], highest[1]));
  const V base = finite_or_zero(now), alpha = exp2((before - base) * factor);
  V totals[4] = {};
  for (int64_t j = 0; j < columns; j += 4) {
    V weights[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      weights[i] = exp2<kPairs>((load<V>(scores + (j + i) * lanes) - base) * factor);
      totals[i] += weights[i];
      if constexpr (!kPairs) store(scores + (j + i) * lanes, weights[i]);
    }
    if constexpr (kPairs) {
      store(pairs + j / 2 * lanes, same_bits<V>(pair_up(round_two(weights[0], weights[1]))));
      store(pairs + (j / 2 + 1) * lanes, same_bits<V>(pair_up(round_two(weights[2], weights[3]))));
    }
  }
  store(maximum, now);
  store(total, fma(load<V>(total), alpha, (totals[0] + totals[1]) + (totals[2] + totals[3])));
  return alpha;
}

template <typename V, bool kPairs, typename E>
static void pack_all_lanes(const E* from, const Rows<V>& rows, int64_t dim, Element<V>* to) {
  for (int64_t block = 0; block < rows.blocks; ++block)
    pack_lanes<V, kPairs>(from, rows, block, dim, to + block * padded_dim(dim) / kPack<kPairs> * rows.lanes);
}

// Rows in lanes: as many as there are. Sums of values lie as [blocks][width][lanes].
template <typename V_, typename E_, bool kPairs>
struct ManyRows {
  using V = V_;
  using E = E_;
  using T = Element<V>;

  struct Buffers {
    T* q;               // [blocks][width / kPack][lanes]
    T *keys, *values;   // tiles, where they cannot be read in place
    T *scores, *pairs;  // [kTileKeys][lanes] and, rounded, [kTileKeys / 2][lanes]
    T* alpha;           // [lanes]
  };
  static Buffers take_buffers(const Rows<V>& rows, int64_t width, Scratch* scratch) {
    return {scratch->take<T>(rows.blocks * rows.lanes * width),
            scratch->take<T>(kTileKeys * width),
            scratch->take<T>(kTileKeys * width),
            scratch->take<T>(kTileKeys * rows.lanes),
            scratch->take<T>(kTileKeys * rows.lanes),
            scratch->take<T>(rows.lanes)};
  }

  static void pack_queries(const E* q, const Rows<V>& rows, int64_t dim, const Buffers& b) {
    pack_all_lanes<V, kPairs>(q, rows, dim, b.q);
  }

  // The unit's rows over keys [begin, end) alone. Skips what no row sees.
  static void add_keys(const Params& p, const Unit& unit, const Rows<V>& rows, int64_t begin, int64_t end,
                       const Buffers& b, const Partial<T>& partial, const Ahead& ahead, int64_t) {
    const int64_t width = padded_dim(p.dim), stride = p.kv_heads * p.dim, lanes = rows.lanes;
    const T to_base2 = static_cast<T>(p.scale * kLog2E);
    const bool often = rows.blocks > 1;
    int64_t first = 0;  // blocks before it see nothing of the tile
    for (; begin < end; begin += kTileKeys) {
      const int64_t tile = end - begin < kTileKeys ? end - begin : kTileKeys;
      const int64_t offset = (unit.key_begin + begin) * stride + unit.kv_head * p.dim;
      const E *k = static_cast<const E*>(p.k) + offset, *v = static_cast<const E*>(p.v) + offset;
      const Operand<T> keys = keys_along<V, kPairs>(k, stride, tile, p.dim, often, b.keys);
      const Operand<T> values = keys_across<V, kPairs>(v, stride, tile, p.dim, often, b.values);
      while (rows.most_visible(first) <= begin) ++first;
      const int64_t after = unit.keys - begin - kTileKeys, then = after < kTileKeys ? after : kTileKeys;
      LinesAhead next_keys = lines_ahead(k + kTileKeys * stride, stride, then, p.dim);
      LinesAhead next_values = lines_ahead(v + kTileKeys * stride, stride, then, p.dim);
      const int64_t lines_per_block = next_keys.left / (rows.blocks - first) + 1;
      for (int64_t block = first; block < rows.blocks; ++block) {
        const int64_t sees = rows.most_visible(block) - begin;
        const int64_t columns = round_up(sees < tile ? sees : tile, kRowGroup);
        const int64_t vectors = rows.vectors(block);
        const bool masked = rows.least_visible(block) - begin < columns;
        next_keys.ask(lines_per_block), next_values.ask(lines_per_block);
        if (begin == 0) ahead.ask(unit.kv_head * rows.blocks + block, p.kv_heads * rows.blocks);
        multiply<V, kPairs>({keys.words, keys.row, 1, b.q + block * width / kPack<kPairs> * lanes, lanes,
                             p.dim / kPack<kPairs>, b.scores, lanes, nullptr},
                            columns, vectors);
        for (int64_t n = 0; n < vectors * kLanes<V>; n += kLanes<V>) {
          const int64_t lane = block * lanes + n;
          const auto visible = load<Integers<V>>(rows.visible + lane) - static_cast<Integer<T>>(begin);
          store(b.alpha + n,
                softmax_lanes<V, kPairs>(b.scores + n, b.pairs + n, lanes, columns, masked, visible, to_base2,
                                         partial.maximum + lane, partial.total + lane));
        }
        multiply<V, kPairs>({values.words, 1, values.row, kPairs ? b.pairs : b.scores, lanes,
                             columns / kPack<kPairs>, partial.sums + block * width * lanes, lanes, b.alpha},
                            p.dim, vectors);
      }
    }
  }

  // whole = alpha whole + beta part, of the vector of rows from `lane` on.
  static void join_sums(const Rows<V>& rows, int64_t lane, int64_t dim, V alpha, V beta, const T* part,
                        T* whole) {
    const int64_t lanes = rows.lanes, at = lane / lanes * padded_dim(dim) * lanes + lane % lanes;
    for (int64_t d = at; d < at + dim * lanes; d += lanes)
      store(whole + d, fma(load<V>(whole + d), alpha, load<V>(part + d) * beta));
  }

  static void write_sums(const Rows<V>& rows, int64_t dim, const T* sums, const T* factor, E* out) {
    for (int64_t block = 0; block < rows.blocks; ++block) {
      unpack_lanes<V>(sums + block * padded_dim(dim) * rows.lanes, factor + block * rows.lanes, rows, block,
                      dim, out);
    }
  }
};

// ---- what takes keys part by part, whichever way (ManyRows or FewRows) rows are held ----

template <typename Way>
static void forward_keys(const Params& p, const Unit& unit, const Rows<typename Way::V>& rows, int64_t part,
                         const typename Way::Buffers& b, const Partial<typename Way::T>& partial,
                         const Ahead& ahead) {
  const int64_t begin = part * kPartKeys, seen = rows.most_visible(rows.blocks - 1);
  clear_partial(partial, rows, padded_dim(p.dim));
  Way::add_keys(p, unit, rows, begin, seen < begin + kPartKeys ? seen : begin + kPartKeys, b, partial, ahead,
                kTileKeys * p.kv_heads * p.dim);
}

// whole = whole and part, each relative to the larger of their maxima.
template <typename Way>
static void join_parts(const Params& p, const Rows<typename Way::V>& rows,
                       const Partial<typename Way::T>& part, const Partial<typename Way::T>& whole) {
  using V = typename Way::V;
  const V factor = splat<V>(static_cast<typename Way::T>(p.scale * kLog2E));
  for (int64_t lane = 0; lane < rows.blocks * rows.lanes; lane += kLanes<V>) {
    const V before = load<V>(whole.maximum + lane), here = load<V>(part.maximum + lane);
    const V now = max(before, here), base = finite_or_zero(now);
    const V alpha = exp2((before - base) * factor), beta = exp2((here - base) * factor);
    store(whole.maximum + lane, now);
    store(whole.total + lane, fma(load<V>(whole.total + lane), alpha, load<V>(part.total + lane) * beta));
    Way::join_sums(rows, lane, p.dim, alpha, beta, part.sums, whole.sums);
  }
}

template <typename Way>
static void write_rows(const Params& p, const Output& output, const Rows<typename Way::V>& rows,
                       const Partial<typename Way::T>& whole) {
  using T = typename Way::T;
  for (int64_t i = 0; i < rows.count; ++i) {
    const bool sees = rows.visible[i] > 0;
    if (output.lse != nullptr) {
      output.lse[rows.at[i]] = sees ? static_cast<double>(whole.maximum[i]) * p.scale +
                                          std::log(static_cast<double>(whole.total[i]))
                                    : -__builtin_inf();
    }
    whole.total[i] = sees ? T(1) / whole.total[i] : T(0);
  }
  Way::write_sums(rows, p.dim, whole.sums, whole.total, static_cast<typename Way::E*>(output.out));
}

template <typename Way>
static void forward_whole(const Params& p, const Output& output, const Unit& unit, const Unit* next,
                          void* memory) {
  using E = typename Way::E;
  Scratch scratch{static_cast<char*>(memory)};
  const auto rows =
      list_rows<typename Way::V>(p, unit, unit.row_begin, unit.row_end - unit.row_begin, &scratch);
  const int64_t width = padded_dim(p.dim), parts = parts_of(rows.most_visible(rows.blocks - 1));
  const auto b = Way::take_buffers(rows, width, &scratch);
  const auto whole = take_partial(rows, width, &scratch), part = take_partial(rows, width, &scratch);
  Way::pack_queries(static_cast<const E*>(p.q), rows, p.dim, b);
  forward_keys<Way>(p, unit, rows, 0, b, whole, sequence_ahead<E>(p, next));
  for (int64_t i = 1; i < parts; ++i) {
    forward_keys<Way>(p, unit, rows, i, b, part, {});
    join_parts<Way>(p, rows, part, whole);
  }
  write_rows<Way>(p, output, rows, whole);
}

// One part of the keys, for the unit and the same of the heads after it, `heads` in all, each into its own
// memory `apart` bytes from the last one's. Tile by tile, all heads of it: their keys are neighbours in
// memory, which is read in order.
template <typename Way>
static void forward_one_part(const Params& p, const Unit& first, int64_t heads, int64_t part, void* partials,
                             size_t apart, void* memory) {
  using V = typename Way::V;
  using T = typename Way::T;
  struct Head {
    Unit unit;
    Rows<V> rows;
    typename Way::Buffers buffers;
    Partial<T> partial;
  };
  Head all[kMostHeads];
  Scratch scratch{static_cast<char*>(memory)};
  const int64_t width = padded_dim(p.dim), begin = part * kPartKeys, after = begin + kPartKeys;
  int64_t end = 0;  // the same for every head
  for (int64_t h = 0; h < heads; ++h) {
    Head& head = all[h];
    head.unit = first;
    head.unit.kv_head += h;
    head.rows = list_rows<V>(p, head.unit, first.row_begin, first.row_end - first.row_begin, &scratch);
    head.buffers = h == 0 ? Way::take_buffers(head.rows, width, &scratch) : all[0].buffers;
    if (h > 0) head.buffers.q = scratch.take<T>(kFewRows * width);
    Way::pack_queries(static_cast<const typename Way::E*>(p.q), head.rows, p.dim, head.buffers);
    Scratch place{static_cast<char*>(partials) + static_cast<size_t>(h) * apart};
    head.partial = take_partial(head.rows, width, &place);
    clear_partial(head.partial, head.rows, width);
    const int64_t seen = head.rows.most_visible(head.rows.blocks - 1);
    end = seen < after ? seen : after;
  }
  const int64_t step = heads == 1 ? kPartKeys : kTileKeys, tile_size = kTileKeys * p.kv_heads * p.dim;
  for (int64_t tile = begin; tile < end; tile += step) {
    for (int64_t h = 0; h < heads; ++h) {
      const Head& head = all[h];
      Way::add_keys(p, head.unit, head.rows, tile, end - tile < step ? end : tile + step, head.buffers,
                    head.partial, {}, h + 1 < heads ? p.dim : tile_size - (heads - 1) * p.dim);
    }
  }
}

template <typename Way>
static void forward_join(const Params& p, const Output& output, const Unit& unit, void* partials,
                         size_t partial_bytes, void* memory) {
  Scratch scratch{static_cast<char*>(memory)};
  const auto rows =
      list_rows<typename Way::V>(p, unit, unit.row_begin, unit.row_end - unit.row_begin, &scratch);
  const int64_t width = padded_dim(p.dim), parts = parts_of(rows.most_visible(rows.blocks - 1));
  Scratch first{static_cast<char*>(partials)};
  const auto whole = take_partial(rows, width, &first);
  for (int64_t i = 1; i < parts; ++i) {
    Scratch other{static_cast<char*>(partials) + static_cast<size_t>(i) * partial_bytes};
    join_parts<Way>(p, rows, take_partial(rows, width, &other), whole);
  }
  write_rows<Way>(p, output, rows, whole);
}
