// SPDX-License-Identifier: Apache-2.0
// Forward pass of one unit: for each tile of keys, scores of a few rows at a time, a softmax that rescales
// what was summed before (online softmax, Milakov and Gimelshein 2018), and their weighted sum of values.
// Scores live in base 2: x = scale * log2(e) * <q, k>. Included inside the tier's own namespace, after
// attention_tile.h.

constexpr double kLog2E = 1.4426950408889634074;

// Running state of each row: the largest dot product so far, the sum of weights relative to it, and how many
// keys the row sees.
template <typename T>
struct RowState {
  T* maximum;
  T* total;
  int64_t* visible;
};

// Turns the dot products s of up to kRowBlock rows with one tile into 2^((s - maximum) * to_base2), in place,
// 0 where masked. alpha[r] is the factor by which what row r summed before has to shrink.
template <typename T>
static void softmax_rows(T* scores, int rows, int vectors, int64_t tile_begin, T to_base2,
                         const RowState<T>& state, T* alpha) {
  const Vector<T> none = splat<T>(-__builtin_inf());
  const Vector<T> factor = splat<T>(to_base2);
  alignas(64) T shrink[kRowBlock + kLanes<T>] = {};
  for (int r = 0; r < rows; ++r) {
    T* row = scores + r * kTileKeys;
    const int64_t columns = state.visible[r] - tile_begin;
    if (columns <= 0) continue;
    Vector<T> highest = none;
    for (int n = 0; n < vectors; ++n) {
      Vector<T> x = load<T>(row + n * kLanes<T>);
      if (columns < (n + 1) * kLanes<T>) {
        x = keep_first<T>(x, columns - n * kLanes<T>, none);
        store<T>(row + n * kLanes<T>, x);
      }
      highest = max<T>(highest, x);
    }
    const T before = state.maximum[r], here = maximum<T>(highest);
    state.maximum[r] = before > here ? before : here;
    shrink[r] = (before - state.maximum[r]) * to_base2;
  }
  for (int r = 0; r < rows; r += kLanes<T>) store<T>(alpha + r, exp2<T>(load<T>(shrink + r)));
  for (int r = 0; r < rows; ++r) {
    T* row = scores + r * kTileKeys;
    if (state.visible[r] <= tile_begin) {
      for (int n = 0; n < vectors; ++n) store<T>(row + n * kLanes<T>, Vector<T>{});
      continue;
    }
    const Vector<T> highest = splat<T>(state.maximum[r]);
    Vector<T> total{};
    for (int n = 0; n < vectors; ++n) {
      const Vector<T> weight = exp2<T>((load<T>(row + n * kLanes<T>) - highest) * factor);
      store<T>(row + n * kLanes<T>, weight);
      total += weight;
    }
    state.total[r] = state.total[r] * alpha[r] + sum<T>(total);
  }
}

template <typename T, typename E>
static void write_rows(const Params& p, const Output& output, const int64_t* at, int64_t rows, const T* sums,
                       const RowState<T>& state) {
  const int64_t width = padded_dim(p.dim);
  for (int64_t i = 0; i < rows; ++i) {
    const bool empty = state.visible[i] <= 0;
    const Vector<T> inverse = splat<T>(empty ? T(0) : T(1) / state.total[i]);
    E* out = static_cast<E*>(output.out) + at[i] * p.dim;
    for (int64_t d = 0; d < p.dim; d += kLanes<T>)
      store_elements<T>(out + d, load<T>(sums + i * width + d) * inverse, p.dim - d);
    if (output.lse == nullptr) continue;
    output.lse[at[i]] = empty ? -__builtin_inf()
                              : static_cast<double>(state.maximum[i]) * p.scale +
                                    std::log(static_cast<double>(state.total[i]));
  }
}

template <typename T, typename E>
static void forward_unit(const Params& p, const Output& output, const Unit& unit, const Unit* next,
                         void* memory) {
  const int64_t rows = unit.row_end - unit.row_begin, width = padded_dim(p.dim), stride = p.kv_heads * p.dim;
  Scratch scratch{static_cast<char*>(memory)};
  T* q = scratch.take<T>(kForwardRows * width);
  T* sums = scratch.take<T>(kForwardRows * width);
  T* keys_transposed = scratch.take<T>(kTileKeys * width);
  T* values_packed = scratch.take<T>(kTileKeys * width);
  T* scores = scratch.take<T>(kRowBlock * kTileKeys);
  RowState<T> state{scratch.take<T>(kForwardRows), scratch.take<T>(kForwardRows),
                    scratch.take<int64_t>(kForwardRows)};
  int64_t* at = scratch.take<int64_t>(kForwardRows);
  list_rows(p, unit, unit.row_begin, rows, at, state.visible);
  pack_rows<T, E>(p.q, at, rows, p.dim, q);
  for (int64_t i = 0; i < rows; ++i) {
    state.maximum[i] = static_cast<T>(-__builtin_inf());
    state.total[i] = 0;
  }
  for (int64_t i = 0; i < rows * width; i += kLanes<T>) store<T>(sums + i, Vector<T>{});

  const T to_base2 = static_cast<T>(p.scale * kLog2E);
  const int64_t most_visible = state.visible[rows - 1];
  const int dim_vectors = vectors_for<T>(p.dim);
  const Ahead ahead = sequence_ahead<E>(p, next);
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  int64_t first = 0;  // rows before it see nothing of the tile
  for (int64_t begin = 0; begin < most_visible; begin += kTileKeys) {
    const int64_t tile = most_visible - begin < kTileKeys ? most_visible - begin : kTileKeys;
    const int64_t offset = (unit.key_begin + begin) * stride + unit.kv_head * p.dim;
    const E *k = static_cast<const E*>(p.k) + offset, *v = static_cast<const E*>(p.v) + offset;
    pack_transposed<T, E>(k, stride, tile, p.dim, keys_transposed);
    int64_t value_row;
    const T* values = pack_keys<T, E>(v, stride, tile, p.dim, values_packed, &value_row);
    while (state.visible[first] <= begin) ++first;
    for (int64_t row = first; row < rows; row += kRowBlock) {
      const int block = static_cast<int>(rows - row < kRowBlock ? rows - row : kRowBlock);
      const int64_t seen = state.visible[row + block - 1] - begin;
      const int64_t columns = seen < tile ? seen : tile;
      const int vectors = vectors_for<T>(columns);
      if (begin == 0) ahead.ask(unit.kv_head * blocks + row / kRowBlock, p.kv_heads * blocks);
      alignas(64) T alpha[kRowBlock + kLanes<T>];
      multiply<T>({q + row * width, width, 1, keys_transposed, kTileKeys, p.dim, scores, kTileKeys, nullptr},
                  block, vectors);
      softmax_rows<T>(scores, block, vectors, begin, to_base2,
                      {state.maximum + row, state.total + row, state.visible + row}, alpha);
      multiply<T>({scores, kTileKeys, 1, values, value_row, columns, sums + row * width, width, alpha}, block,
                  dim_vectors);
    }
  }
  write_rows<T, E>(p, output, at, rows, sums, state);
}
