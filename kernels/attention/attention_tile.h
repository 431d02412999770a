// SPDX-License-Identifier: Apache-2.0
// How rows and keys are laid out for the products. Query rows lie in the lanes of vectors: everything that
// softmax does is then the same work in every lane, keys and values are read number by number in the order
// they lie in memory, and a row does not notice which rows share its vector. Included inside the tier's own
// namespace, after attention_product.h.

constexpr int kBlockVectors = 3;  // vectors of rows that share one product

// Cuts 64-byte-aligned arrays from a block of scratch.
struct Scratch {
  char* next;
  template <typename T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next);
    next += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return taken;
  }
};

EARNEST_INLINE int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Stacked rows dealt into blocks of `lanes` (whole vectors). Spare lanes of the last block compute the zeros
// they are given.
template <typename V>
struct Rows {
  int64_t count, lanes, blocks;
  int64_t* at;                   // where each row lies among the [tokens_q, heads] rows of q
  Integer<Element<V>>* visible;  // [blocks * lanes]: keys that it sees, never decreasing
  int64_t in(int64_t block) const { return count - block * lanes < lanes ? count - block * lanes : lanes; }
  int64_t vectors(int64_t block) const { return (in(block) + kLanes<V> - 1) / kLanes<V>; }
  int64_t least_visible(int64_t block) const { return visible[block * lanes]; }
  int64_t most_visible(int64_t block) const { return visible[(block + 1) * lanes - 1]; }
};

// Few rows that each see a different number of keys are dealt one vector at a time, so that a block computes
// little of what it has to mask.
template <typename V>
static int64_t lanes_for(const Params& p, int64_t rows) {
  if (p.causal && p.heads < 3 * p.kv_heads && rows <= 128) return kLanes<V>;
  return rows < kBlockVectors * kLanes<V> ? round_up(rows, kLanes<V>) : kBlockVectors * kLanes<V>;
}

// Rows [first, first + count) of the unit.
template <typename V>
static Rows<V> list_rows(const Params& p, const Unit& unit, int64_t first, int64_t count, Scratch* scratch) {
  const int64_t group = p.heads / p.kv_heads, lanes = lanes_for<V>(p, count);
  const int64_t blocks = (count + lanes - 1) / lanes;
  Rows<V> rows{count, lanes, blocks, scratch->take<int64_t>(count),
               scratch->take<Integer<Element<V>>>(blocks * lanes)};
  int64_t token = first / group, member = first % group;
  for (int64_t i = 0; i < blocks * lanes; ++i) {
    if (i >= count) {
      rows.visible[i] = rows.visible[count - 1];
      continue;
    }
    const int64_t seen = p.causal ? token + 1 + unit.keys - unit.queries : unit.keys;
    rows.at[i] = (unit.query_begin + token) * p.heads + unit.kv_head * group + member;
    rows.visible[i] = static_cast<Integer<Element<V>>>(seen < 0 ? 0 : seen);
    if (++member == group) member = 0, ++token;
  }
  return rows;
}

// ---- operands: elements converted to the type of sums, or two bfloat16 side by side in one word ----

// Words [word, word + kLanes) of a row of `words`; zeros beyond.
template <typename V, bool kPairs, typename E>
EARNEST_INLINE V load_words(const E* row, int64_t word, int64_t words) {
  if constexpr (kPairs) {
    typedef Vector<uint16_t, sizeof(V)> Halves;
    const int64_t count = 2 * (words - word);
    uint16_t present[kLanes<V> * 2];
    const uint16_t* from = &row[2 * word].bits;
    if (count < 2 * kLanes<V>) {
      __builtin_memset(present, 0, sizeof present);
      __builtin_memcpy(present, from, static_cast<size_t>(count) * 2);
      from = present;
    }
    return same_bits<V>(load<Halves>(from));
  } else {
    return load_elements<V>(row + word, words - word);
  }
}

// to[keys][to_row]: rows as they are, words along the row. Rows up to `padded` are zeros, and words up to the
// next whole vector.
template <typename V, bool kPairs, typename E>
static void pack_along(const E* from, int64_t from_row, int64_t keys, int64_t padded, int64_t dim,
                       Element<V>* to, int64_t to_row) {
  const int64_t words = dim / kPack<kPairs>;
  for (int64_t j = 0; j < padded; ++j) {
    for (int64_t w = 0; w < words; w += kLanes<V>)
      store(to + j * to_row + w, j < keys ? load_words<V, kPairs>(from + j * from_row, w, words) : V{});
  }
}

// to[rows / kPack][width]: words across neighbouring rows, row(i) says where each begins. Rows up to `padded`
// are zeros.
template <typename V, bool kPairs, typename Row>
static void pack_across(const Row& row, int64_t rows, int64_t padded, int64_t dim, Element<V>* to) {
  const int64_t width = padded_dim(dim);
  for (int64_t i = 0; i < padded; i += kPack<kPairs>, to += width) {
    for (int64_t d = 0; d < dim; d += kPack<kPairs> * kLanes<V>) {
      V low{}, high{};
      if (i < rows) low = load_words<V, kPairs>(row(i), d / kPack<kPairs>, dim / kPack<kPairs>);
      if constexpr (kPairs) {
        typedef Vector<uint16_t, sizeof(V)> Halves;
        constexpr auto kSequence = std::make_index_sequence<kLanes<Halves>>();
        if (i + 1 < rows) high = load_words<V, kPairs>(row(i + 1), d / 2, dim / 2);
        const auto a = same_bits<Halves>(low), b = same_bits<Halves>(high);
        low = same_bits<V>(zip_low(a, b, kSequence)), high = same_bits<V>(zip_high(a, b, kSequence));
        if (d + kLanes<V> < width) store(to + d + kLanes<V>, high);
      }
      store(to + d, low);
    }
  }
}

// to[width / kPack][lanes]: one block of rows of q, or of anything shaped like it, in lanes; spare lanes 0.
template <typename V, bool kPairs, typename E>
static void pack_lanes(const E* from, const Rows<V>& rows, int64_t block, int64_t dim, Element<V>* to) {
  const int64_t words = dim / kPack<kPairs>, first = block * rows.lanes;
  for (int64_t r = 0; r < rows.vectors(block) * kLanes<V>; r += kLanes<V>) {
    for (int64_t w = 0; w < words; w += kLanes<V>) {
      V square[kLanes<V>];
      for (int i = 0; i < kLanes<V>; ++i) {
        const int64_t row = first + r + i;
        square[i] = row < rows.count ? load_words<V, kPairs>(from + rows.at[row] * dim, w, words) : V{};
      }
      transpose(square);
      for (int i = 0; i < kLanes<V> && w + i < words; ++i) store(to + (w + i) * rows.lanes + r, square[i]);
    }
  }
}

// The way back: row i of the block = sums[:dim][i] * factor[i].
template <typename V, typename E>
static void unpack_lanes(const Element<V>* sums, const Element<V>* factor, const Rows<V>& rows, int64_t block,
                         int64_t dim, E* to) {
  const int64_t first = block * rows.lanes;
  for (int64_t r = 0; r < rows.in(block); r += kLanes<V>) {
    const V scale = load<V>(factor + r);
    for (int64_t d = 0; d < dim; d += kLanes<V>) {
      V square[kLanes<V>];
      for (int i = 0; i < kLanes<V>; ++i)
        square[i] = d + i < dim ? load<V>(sums + (d + i) * rows.lanes + r) * scale : V{};
      transpose(square);
      for (int i = 0; i < kLanes<V> && r + i < rows.in(block); ++i)
        store_elements<V>(to + rows.at[first + r + i] * dim + d, square[i], dim - d);
    }
  }
}

// A tile of keys or values as an operand: where it begins, and words from one row to the next.
template <typename T>
struct Operand {
  const T* words;
  int64_t row;
};

// Words along each key: read in place, unless they have to be converted, padded, or are worth bringing
// together because they are read often.
template <typename V, bool kPairs, typename E>
static Operand<Element<V>> keys_along(const E* from, int64_t from_row, int64_t keys, int64_t dim, bool often,
                                      Element<V>* to) {
  if constexpr (kPairs || std::is_same_v<Element<V>, E>) {
    if (!often && keys % kRowGroup == 0)
      return {reinterpret_cast<const Element<V>*>(from), from_row / kPack<kPairs>};
  }
  const int64_t to_row = padded_dim(dim) / kPack<kPairs>;
  pack_along<V, kPairs>(from, from_row, keys, round_up(keys, kRowGroup), dim, to, to_row);
  return {to, to_row};
}

// Words across neighbouring keys.
template <typename V, bool kPairs, typename E>
static Operand<Element<V>> keys_across(const E* from, int64_t from_row, int64_t keys, int64_t dim, bool often,
                                       Element<V>* to) {
  if constexpr (kPairs) {
    const auto row = [&](int64_t j) { return from + j * from_row; };
    pack_across<V, kPairs>(row, keys, round_up(keys, kRowGroup), dim, to);
    return {to, padded_dim(dim)};
  } else {
    return keys_along<V, kPairs>(from, from_row, keys, dim, often, to);
  }
}

// A sequence that will be read soon, all heads of it, asked for a share at a time while another is computed.
// Rows of one head lie far apart: read head by head, a short sequence arrives at half the speed that memory
// has in order.
struct Ahead {
  struct Range {
    const char* from = nullptr;
    int64_t lines = 0;
  };
  Range ranges[5];

  // Inlined by force: GCC takes a function that only prefetches for one without effect and drops the call.
  __attribute__((always_inline)) void ask(int64_t share, int64_t shares) const {
    for (const Range& range : ranges) {
      for (int64_t i = range.lines * share / shares; i < range.lines * (share + 1) / shares; ++i)
        __builtin_prefetch(range.from + i * 64, 0, 2);
    }
  }
};

constexpr int64_t kAheadBytes = 384 * 1024;  // more would not stay in a level-2 cache

// Besides q, k and v: up to two arrays shaped like q.
template <typename E>
static Ahead sequence_ahead(const Params& p, const Unit* unit, const void* third = nullptr,
                            const void* fourth = nullptr) {
  if (unit == nullptr) return {};
  const int64_t row = p.dim * static_cast<int64_t>(sizeof(E));
  const int64_t key_begin = unit->key_begin * p.kv_heads * row, key_bytes = unit->keys * p.kv_heads * row;
  const int64_t query_begin = unit->query_begin * p.heads * row, query_bytes = unit->queries * p.heads * row;
  if (2 * key_bytes + (third == nullptr ? 1 : 3) * query_bytes > kAheadBytes) return {};
  Ahead ahead{{{static_cast<const char*>(p.k) + key_begin, key_bytes / 64},
               {static_cast<const char*>(p.v) + key_begin, key_bytes / 64},
               {static_cast<const char*>(p.q) + query_begin, query_bytes / 64}}};
  if (third != nullptr) ahead.ranges[3] = {static_cast<const char*>(third) + query_begin, query_bytes / 64};
  if (fourth != nullptr) ahead.ranges[4] = {static_cast<const char*>(fourth) + query_begin, query_bytes / 64};
  return ahead;
}
