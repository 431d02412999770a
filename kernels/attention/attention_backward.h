// SPDX-License-Identifier: Apache-2.0
// Backward pass of one sequence and one key head, from the saved log-sum-exp:
//   p = exp(s - lse)   dv = p^T do   dp = do v^T   ds = p * (dp - <do, o> + dlse) * scale   dq = ds k   dk =
//   ds^T q
// Tiles of keys outside, blocks of stacked rows inside, both ascending: dk and dv are summed over rows in
// order (all heads of the group), dq over tiles in order. Included inside the tier's own namespace, after
// attention_forward.h.

template <typename T>
struct BackwardBuffers {
  T *q, *grad_out;                         // [kBackwardRows][width]
  T *weights, *grad_scores;                // [kBackwardRows][kTileKeys]: p and ds
  T *keys_transposed, *values_transposed;  // [width][kTileKeys]
  T* keys_packed;                          // [kTileKeys][width], where k cannot be read in place
  T* grad_q;                               // [kRowBlock][width]: one tile's share
  T *grad_k, *grad_v;                      // [kTileKeys][width]
  T* ones;                                 // [kTileKeys]
  int64_t *at, *visible;                   // [kBackwardRows], see list_rows
};

// p and ds of one row from <q, k> and <do, v>, in place; 0 where masked.
template <typename T>
static void differentiate_row(T* scores, T* grad_weights, int64_t columns, double to_base2, double lse,
                              T delta, T scale) {
  // x = to_base2 * score - lse, both factors in two parts of T: their rounding would shift the whole row
  // alike, and such errors add up in dk and dv.
  const double shift = -lse * kLog2E;
  const T high = static_cast<T>(shift), factor_high = static_cast<T>(to_base2);
  const Vector<T> factor = splat<T>(factor_high), shift_high = splat<T>(high);
  const Vector<T> factor_low = splat<T>(static_cast<T>(to_base2 - static_cast<double>(factor_high)));
  const Vector<T> shift_low = splat<T>(static_cast<T>(shift - static_cast<double>(high)));
  for (int64_t j = 0; j < kTileKeys; j += kLanes<T>) {
    Vector<T> p{}, ds{};
    if (j < columns) {
      const Vector<T> s = load<T>(scores + j);
      p = exp2<T>(fma(s, factor, shift_high) + fma(s, factor_low, shift_low));
      ds = p * (load<T>(grad_weights + j) - splat<T>(delta)) * splat<T>(scale);
      if (columns - j < kLanes<T>) {
        p = keep_first<T>(p, columns - j, Vector<T>{});
        ds = keep_first<T>(ds, columns - j, Vector<T>{});
      }
    }
    store<T>(scores + j, p);
    store<T>(grad_weights + j, ds);
  }
}

template <typename T, typename E>
static void row_dot_products(const Params& p, const Gradients& g, const Unit& unit, T* delta) {
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t i = 0; i < unit.queries; ++i) {
    for (int64_t member = 0; member < group; ++member) {
      const int64_t at = (unit.query_begin + i) * p.heads + unit.kv_head * group + member;
      Vector<T> total{};
      for (int64_t d = 0; d < p.dim; d += kLanes<T>) {
        total = fma(load_elements<T>(static_cast<const E*>(g.out) + at * p.dim + d, p.dim - d),
                    load_elements<T>(static_cast<const E*>(g.grad_out) + at * p.dim + d, p.dim - d), total);
      }
      delta[at] = sum<T>(total) - (g.grad_lse == nullptr ? T(0) : static_cast<T>(g.grad_lse[at]));
    }
  }
}

// Where the sums of dq live: in grad_q itself if its elements are T and rows are whole vectors, else in the
// workspace.
template <typename T, typename E>
EARNEST_INLINE bool sums_in_place(int64_t dim) {
  return std::is_same_v<T, E> && dim % kLanes<T> == 0;
}

// One block of stacked rows against one tile of keys.
template <typename T, typename E>
static void backward_block(const Params& p, const Gradients& g, const Workspace& workspace, const Unit& unit,
                           int64_t first, int64_t rows, int64_t tile_begin, int64_t tile, const T* keys,
                           int64_t key_row, const BackwardBuffers<T>& b) {
  const int64_t width = padded_dim(p.dim);
  const int dim_vectors = vectors_for<T>(p.dim);
  const double to_base2 = p.scale * kLog2E;
  const T scale = static_cast<T>(p.scale);
  const bool in_place = sums_in_place<T, E>(p.dim);
  T* grad_q = static_cast<T*>(in_place ? g.grad_q : workspace.grad_q);
  const int64_t grad_q_row = in_place ? p.dim : width;
  list_rows(p, unit, first, rows, b.at, b.visible);
  pack_rows<T, E>(p.q, b.at, rows, p.dim, b.q);
  pack_rows<T, E>(g.grad_out, b.at, rows, p.dim, b.grad_out);
  for (int64_t row = 0; row < rows; row += kRowBlock) {
    const int block = static_cast<int>(rows - row < kRowBlock ? rows - row : kRowBlock);
    const int64_t seen = b.visible[row + block - 1] - tile_begin;
    const int64_t columns = seen < tile ? seen : tile;
    T* scores = b.weights + row * kTileKeys;
    T* grad_scores = b.grad_scores + row * kTileKeys;
    multiply<T>(
        {b.q + row * width, width, 1, b.keys_transposed, kTileKeys, p.dim, scores, kTileKeys, nullptr}, block,
        vectors_for<T>(columns));
    multiply<T>({b.grad_out + row * width, width, 1, b.values_transposed, kTileKeys, p.dim, grad_scores,
                 kTileKeys, nullptr},
                block, vectors_for<T>(columns));
    for (int r = 0; r < block; ++r) {
      const int64_t at = b.at[row + r], own = b.visible[row + r] - tile_begin;
      differentiate_row<T>(scores + r * kTileKeys, grad_scores + r * kTileKeys, own < columns ? own : columns,
                           to_base2, g.lse[at], static_cast<const T*>(workspace.delta)[at], scale);
    }
    multiply<T>({grad_scores, kTileKeys, 1, keys, key_row, columns, b.grad_q, width, nullptr}, block,
                dim_vectors);
    for (int r = 0; r < block; ++r) {
      T* to = grad_q + b.at[row + r] * grad_q_row;
      for (int64_t d = 0; d < dim_vectors * kLanes<T>; d += kLanes<T>) {
        const Vector<T> share = load<T>(b.grad_q + r * width + d);
        store<T>(to + d, tile_begin == 0 ? share : load<T>(to + d) + share);
      }
    }
  }
  multiply<T>({b.weights, 1, kTileKeys, b.grad_out, width, rows, b.grad_v, width, b.ones}, tile, dim_vectors);
  multiply<T>({b.grad_scores, 1, kTileKeys, b.q, width, rows, b.grad_k, width, b.ones}, tile, dim_vectors);
}

template <typename T, typename E>
static void zero_rows(E* rows, int64_t stride, int64_t count, int64_t dim) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t d = 0; d < dim; d += kLanes<T>)
      store_elements<T>(rows + j * stride + d, Vector<T>{}, dim - d);
  }
}

template <typename T, typename E>
static void finish_grad_q(const Params& p, const Gradients& g, const Workspace& workspace, const Unit& unit) {
  if (sums_in_place<T, E>(p.dim)) return;
  const int64_t group = p.heads / p.kv_heads, width = padded_dim(p.dim);
  for (int64_t token = unit.query_begin; token < unit.query_begin + unit.queries; ++token) {
    for (int64_t head = unit.kv_head * group; head < (unit.kv_head + 1) * group; ++head) {
      const T* from = static_cast<const T*>(workspace.grad_q) + (token * p.heads + head) * width;
      E* to = static_cast<E*>(g.grad_q) + (token * p.heads + head) * p.dim;
      for (int64_t d = 0; d < p.dim; d += kLanes<T>) store_elements<T>(to + d, load<T>(from + d), p.dim - d);
    }
  }
}

// Zeros for the tokens that see no key at all. The first tile writes all others.
template <typename T>
static void start_grad_q(const Params& p, T* sums, int64_t row_width, const Unit& unit) {
  const int64_t group = p.heads / p.kv_heads, before = p.causal ? unit.queries - unit.keys : 0;
  const int64_t tokens = unit.keys == 0 ? unit.queries : before;
  for (int64_t i = 0; i < tokens; ++i) {
    T* row = sums + ((unit.query_begin + i) * p.heads + unit.kv_head * group) * row_width;
    for (int64_t d = 0; d < group * row_width; d += kLanes<T>) store<T>(row + d, Vector<T>{});
  }
}

template <typename T>
static BackwardBuffers<T> cut_buffers(void* memory, int64_t width) {
  Scratch scratch{static_cast<char*>(memory)};
  BackwardBuffers<T> b;
  b.q = scratch.take<T>(kBackwardRows * width);
  b.grad_out = scratch.take<T>(kBackwardRows * width);
  b.weights = scratch.take<T>(kBackwardRows * kTileKeys);
  b.grad_scores = scratch.take<T>(kBackwardRows * kTileKeys);
  b.keys_transposed = scratch.take<T>(width * kTileKeys);
  b.values_transposed = scratch.take<T>(width * kTileKeys);
  b.keys_packed = scratch.take<T>(width * kTileKeys);
  b.grad_q = scratch.take<T>(kRowBlock * width);
  b.grad_k = scratch.take<T>(width * kTileKeys);
  b.grad_v = scratch.take<T>(width * kTileKeys);
  b.ones = scratch.take<T>(kTileKeys);
  b.at = scratch.take<int64_t>(kBackwardRows);
  b.visible = scratch.take<int64_t>(kBackwardRows);
  for (int i = 0; i < kTileKeys; ++i) b.ones[i] = 1;
  return b;
}

template <typename T, typename E>
static void backward_unit(const Params& p, const Gradients& g, const Workspace& workspace, const Unit& unit,
                          const Unit* next, void* memory) {
  const int64_t group = p.heads / p.kv_heads, width = padded_dim(p.dim), stride = p.kv_heads * p.dim;
  const int64_t rows = unit.queries * group;
  const BackwardBuffers<T> b = cut_buffers<T>(memory, width);
  const bool in_place = sums_in_place<T, E>(p.dim);
  start_grad_q<T>(p, static_cast<T*>(in_place ? g.grad_q : workspace.grad_q), in_place ? p.dim : width, unit);
  row_dot_products<T, E>(p, g, unit, static_cast<T*>(workspace.delta));
  const Ahead ahead = sequence_ahead<E>(p, next, g.out, g.grad_out);
  const int64_t shares = (rows + kBackwardRows - 1) / kBackwardRows;
  for (int64_t begin = 0; begin < unit.keys; begin += kTileKeys) {
    const int64_t tile = unit.keys - begin < kTileKeys ? unit.keys - begin : kTileKeys;
    const int64_t at = (unit.key_begin + begin) * stride + unit.kv_head * p.dim;
    pack_transposed<T, E>(static_cast<const E*>(p.k) + at, stride, tile, p.dim, b.keys_transposed);
    pack_transposed<T, E>(static_cast<const E*>(p.v) + at, stride, tile, p.dim, b.values_transposed);
    int64_t key_row;
    const T* keys =
        pack_keys<T, E>(static_cast<const E*>(p.k) + at, stride, tile, p.dim, b.keys_packed, &key_row);
    for (int64_t i = 0; i < kTileKeys * width; i += kLanes<T>) {
      store<T>(b.grad_k + i, Vector<T>{});
      store<T>(b.grad_v + i, Vector<T>{});
    }
    int64_t first =
        p.causal ? (begin + unit.queries - unit.keys) * group : 0;  // the first row to see the tile
    for (first = first < 0 ? 0 : first; first < rows; first += kBackwardRows) {
      const int64_t block = rows - first < kBackwardRows ? rows - first : kBackwardRows;
      if (begin == 0) ahead.ask(unit.kv_head * shares + first / kBackwardRows, p.kv_heads * shares);
      backward_block<T, E>(p, g, workspace, unit, first, block, begin, tile, keys, key_row, b);
    }
    for (int64_t j = 0; j < tile; ++j) {
      for (int64_t d = 0; d < p.dim; d += kLanes<T>) {
        store_elements<T>(static_cast<E*>(g.grad_k) + at + j * stride + d, load<T>(b.grad_k + j * width + d),
                          p.dim - d);
        store_elements<T>(static_cast<E*>(g.grad_v) + at + j * stride + d, load<T>(b.grad_v + j * width + d),
                          p.dim - d);
      }
    }
  }
  const int64_t unused = (unit.key_begin + unit.keys) * stride + unit.kv_head * p.dim;
  zero_rows<T, E>(static_cast<E*>(g.grad_k) + unused, stride, unit.capacity - unit.keys, p.dim);
  zero_rows<T, E>(static_cast<E*>(g.grad_v) + unused, stride, unit.capacity - unit.keys, p.dim);
  finish_grad_q<T, E>(p, g, workspace, unit);
}
