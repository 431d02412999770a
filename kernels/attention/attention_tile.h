// SPDX-License-Identifier: Apache-2.0
// The two building blocks of both passes: a small matrix product held in registers, and the packing of rows.
// Included inside the tier's own namespace, after attention_simd.h.

constexpr int kRowBlock = 6;  // rows of one product
constexpr int kColumnBlock =
    kVectorBytes == 64 ? 4 : 2;  // vectors of one product: all sums stay in registers

// c[r][:] = alpha[r] * c[r][:] + sum_i a[r * a_row + i * a_step] * b[i * b_step + :]. The sum starts from 0,
// i ascending, one fused multiply-add each, and is added to c as a whole: an element's bits do not depend on
// the shape of the block it is computed in, and long sums are made of short ones. A null alpha does not read
// c.
template <typename T>
struct Product {
  const T* a;
  int64_t a_row, a_step;
  const T* b;
  int64_t b_step;
  int64_t count;
  T* c;
  int64_t c_row;
  const T* alpha;
};

template <typename T, int kRows, int kVectors>
static void multiply_block(const Product<T>& p, int64_t row, int64_t column) {
  Vector<T> sums[kRows][kVectors] = {};
  const T* a = p.a + row * p.a_row;
  const T* b = p.b + column;
  const int64_t a_row = p.a_row, a_step = p.a_step, b_step = p.b_step;
  for (int64_t i = p.count; i > 0; --i, a += a_step, b += b_step) {
    Vector<T> columns[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) columns[n] = load<T>(b + n * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector<T> factor = splat<T>(a[r * a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sums[r][n] = fma(factor, columns[n], sums[r][n]);
    }
  }
  T* c = p.c + row * p.c_row + column;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      T* to = c + r * p.c_row + n * kLanes<T>;
      store<T>(to,
               p.alpha == nullptr ? sums[r][n] : fma(load<T>(to), splat<T>(p.alpha[row + r]), sums[r][n]));
    }
  }
}

template <typename T, int kRows>
static void multiply_rows(const Product<T>& p, int64_t row, int vectors) {
  int n = 0;
  for (; n + kColumnBlock <= vectors; n += kColumnBlock)
    multiply_block<T, kRows, kColumnBlock>(p, row, n * kLanes<T>);
  if constexpr (kColumnBlock == 4) {
    if (vectors - n == 3) return multiply_block<T, kRows, 3>(p, row, n * kLanes<T>);
    if (vectors - n == 2) return multiply_block<T, kRows, 2>(p, row, n * kLanes<T>);
  }
  if (vectors - n == 1) multiply_block<T, kRows, 1>(p, row, n * kLanes<T>);
}

// The product for any number of rows and of vectors of columns.
template <typename T>
static void multiply(const Product<T>& p, int64_t rows, int vectors) {
  int64_t row = 0;
  for (; row + kRowBlock <= rows; row += kRowBlock) multiply_rows<T, kRowBlock>(p, row, vectors);
  switch (rows - row) {
    case 1:
      return multiply_rows<T, 1>(p, row, vectors);
    case 2:
      return multiply_rows<T, 2>(p, row, vectors);
    case 3:
      return multiply_rows<T, 3>(p, row, vectors);
    case 4:
      return multiply_rows<T, 4>(p, row, vectors);
    case 5:
      return multiply_rows<T, 5>(p, row, vectors);
    default:
      return;
  }
}

template <typename T>
EARNEST_INLINE int vectors_for(int64_t columns) {
  return static_cast<int>((columns + kLanes<T> - 1) / kLanes<T>);
}

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

// to[i][:dim] = row i, padded with zeros to whole vectors.
template <typename T, typename E>
EARNEST_INLINE void pack_row(const E* from, int64_t dim, T* to) {
  for (int64_t d = 0; d < dim; d += kLanes<T>) store<T>(to + d, load_elements<T>(from + d, dim - d));
}

// Rows at[0], at[1], ... of q or of anything shaped like it.
template <typename T, typename E>
static void pack_rows(const void* from, const int64_t* at, int64_t rows, int64_t dim, T* to) {
  const int64_t width = padded_dim(dim);
  for (int64_t i = 0; i < rows; ++i)
    pack_row<T, E>(static_cast<const E*>(from) + at[i] * dim, dim, to + i * width);
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

// The rows of k or v for one tile. `to` is used only where the elements cannot be read in place.
template <typename T, typename E>
static const T* pack_keys(const E* from, int64_t from_row, int64_t keys, int64_t dim, T* to, int64_t* row) {
  if constexpr (std::is_same_v<T, E>) {
    if (dim % kLanes<T> == 0) {
      *row = from_row;
      return from;
    }
  }
  *row = padded_dim(dim);
  for (int64_t j = 0; j < keys; ++j) pack_row<T, E>(from + j * from_row, dim, to + j * *row);
  return to;
}

// to[d][j] = from[j][d], j < kTileKeys; keys beyond `keys` read as 0 up to a whole vector.
template <typename T, typename E>
static void pack_transposed(const E* from, int64_t from_row, int64_t keys, int64_t dim, T* to) {
  for (int64_t j = 0; j < keys; j += kLanes<T>) {
    for (int64_t d = 0; d < dim; d += kLanes<T>) {
      Vector<T> square[kLanes<T>];
      const int64_t width = dim - d < kLanes<T> ? dim - d : kLanes<T>;
      if (keys - j >= kLanes<T>) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i)
          square[i] = load_elements<T>(from + (j + i) * from_row + d, width);
      } else {
        for (int i = 0; i < kLanes<T>; ++i)
          square[i] = j + i < keys ? load_elements<T>(from + (j + i) * from_row + d, width) : Vector<T>{};
      }
      transpose<T>(square);
      if (width == kLanes<T>) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) store<T>(to + (d + i) * kTileKeys + j, square[i]);
      } else {
        for (int i = 0; i < width; ++i) store<T>(to + (d + i) * kTileKeys + j, square[i]);
      }
    }
  }
}
