// SPDX-License-Identifier: Apache-2.0
// The one product that all of attention is made of, held in registers. Included inside the tier's own
// namespace, after attention_simd.h.

template <bool kPairs>
constexpr int kPack = kPairs ? 2 : 1;  // elements in one operand of a product

// Lines of rows that will be read soon, asked for a few at a time while something else is computed.
struct LinesAhead {
  const char* line = nullptr;
  int64_t left = 0;                // lines
  int64_t in_row = 0, of_row = 0;  // lines of the row asked for, and all of them
  int64_t gap = 0;                 // bytes from the end of a row to the next

  // Inlined by force: GCC takes a function that only prefetches for one without effect and drops the call.
  __attribute__((always_inline)) void ask() {
    if (left <= 0) return;
    --left;
    __builtin_prefetch(line, 0, 2);
    line += 64;
    if (++in_row == of_row) in_row = 0, line += gap;
  }
  __attribute__((always_inline)) void ask(int64_t count) {
    for (int64_t i = 0; i < count; ++i) ask();
  }
};

template <typename E>
EARNEST_INLINE LinesAhead lines_ahead(const E* rows, int64_t stride, int64_t count, int64_t dim) {
  const int64_t bytes = dim * static_cast<int64_t>(sizeof(E)), lines = (bytes + 63) / 64;
  if (count <= 0) return {};
  return {reinterpret_cast<const char*>(rows), count * lines, 0, lines,
          stride * static_cast<int64_t>(sizeof(E)) - lines * 64};
}

// c[m][:] = keep * c[m][:] + sum_i a[m * a_m + i * a_i] * b[i * b_i + :], a number of `a` against whole
// vectors of b; keep is a number for each column. The sum starts
// from 0, i ascending, one fused multiply-add (or vdpbf16ps) each, and is added to c as a whole: an element's
// bits do not depend on the shape of the block it is computed in, and long sums are made of short ones. A
// null keep does not read c. Steps and counts are in units of T, which are pairs of bfloat16 in a and b where
// kPairs.
template <typename T>
struct Product {
  const T* a;
  int64_t a_m, a_i;
  const T* b;
  int64_t b_i;
  int64_t count;
  T* c;
  int64_t c_m;
  const T* keep;
};

template <bool kPairs, typename V>
EARNEST_INLINE V multiply_add(V a, V b, V c) {
  if constexpr (kPairs) {
    return dot_pairs(a, b, c);
  } else {
    return fma(a, b, c);
  }
}

template <typename V, bool kPairs, int kRows, int kVectors>
static void multiply_block(const Product<Element<V>>& p, int64_t row, int64_t column) {
  using T = Element<V>;
  V sums[kRows][kVectors] = {};
  const T* a = p.a + row * p.a_m;
  const T* b = p.b + column;
  const int64_t a_m = p.a_m, a_i = p.a_i, b_i = p.b_i;
  for (int64_t i = p.count; i > 0; --i, a += a_i, b += b_i) {
    V columns[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) columns[n] = load<V>(b + n * kLanes<V>);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      T factor;  // may lie unaligned
      __builtin_memcpy(&factor, a + r * a_m, sizeof factor);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n)
        sums[r][n] = multiply_add<kPairs>(splat<V>(factor), columns[n], sums[r][n]);
    }
  }
  T* c = p.c + row * p.c_m + column;
  const int64_t c_m = p.c_m;
  if (p.keep != nullptr) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      const V keep = load<V>(p.keep + column + n * kLanes<V>);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
        sums[r][n] = fma(load<V>(c + r * c_m + n * kLanes<V>), keep, sums[r][n]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) store(c + r * c_m + n * kLanes<V>, sums[r][n]);
  }
}

constexpr int kManyRegisters = kVectorBytes == 64;  // 32 of them, else 16
constexpr int kRowGroup = 8;                        // rows of products come in multiples of this

template <typename V, bool kPairs, int kRows, int kVectors>
static int64_t multiply_rows(const Product<Element<V>>& p, int64_t row, int64_t rows, int64_t column) {
  for (; row + kRows <= rows; row += kRows) multiply_block<V, kPairs, kRows, kVectors>(p, row, column);
  return row;
}

// The product for a multiple of kRowGroup rows and any number of vectors.
template <typename V, bool kPairs>
static void multiply(const Product<Element<V>>& p, int64_t rows, int64_t vectors) {
  constexpr int kRows = kManyRegisters ? 8 : 4;
  int64_t n = 0;
  for (; vectors - n >= 3 && vectors - n != 4; n += 3)
    multiply_rows<V, kPairs, kRows, 3>(p, 0, rows, n * kLanes<V>);
  for (; vectors - n >= 2; n += 2) multiply_rows<V, kPairs, kRows, 2>(p, 0, rows, n * kLanes<V>);
  if (vectors - n == 1) {  // more rows, for there must be enough sums in flight
    int64_t done = 0;
    if constexpr (kManyRegisters) done = multiply_rows<V, kPairs, 16, 1>(p, 0, rows, n * kLanes<V>);
    multiply_rows<V, kPairs, 8, 1>(p, done, rows, n * kLanes<V>);
  }
}
