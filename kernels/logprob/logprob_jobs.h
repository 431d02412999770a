// SPDX-License-Identifier: Apache-2.0
// What is done with the four products of the CUDA back end, strip by strip, the same for every path. With
// S = hidden weight^T (the logits before the temperature), dS the gradient of S, and left times right
// transposed over the depth in each:
//
//   LogitSums        hidden [N, H]   weight [V, H]     forward: S becomes three sums a row
//   LogitGradients   hidden [N, H]   weight [C, H]     backward: S of C columns, a chunk, becomes dS [N, C]
//   HiddenGradient   dS [N, C]       weight^T [H, C]   grad_hidden [N, H], summed over chunks
//   WeightGradient   dS^T [C, N]     hidden^T [H, N]   the chunk's rows of grad_weight [C, H]
//
// An operand written ^T lies transposed in memory. A job offers load (a strip's first sums), tile (what to do
// with the whole ones), and begin and end around the tiles of one unit. (row, column) is a strip's first
// number.
#pragma once

#include <cfloat>
#include <cmath>

#include "kernels/logprob/logprob_strip.h"

namespace earnest::logprob::gpu {

template <typename Stored>
struct ArithmeticOf {
  using Type = float;
};
template <>
struct ArithmeticOf<double> {
  using Type = double;
};
template <typename Stored>
using Arithmetic = typename ArithmeticOf<Stored>::Type;

// e^x. In float 2^(x log2(e)), within |x| + 3 units of the last place; 0 below the normal numbers.
__device__ inline float exp_of(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * kLog2E));
  return result;
#else
  return std::exp2(x * kLog2E);
#endif
}
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// A logit: the product is rounded before anything is subtracted from it. A row's largest logit less itself is
// 0, and where lse rounds to it, the probability is 1: both directions make the same number.
__device__ inline float logit(float s, float inverse_temperature) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(s, inverse_temperature);  // never fused with what follows
#else
  return s * inverse_temperature;
#endif
}
__device__ inline double logit(double s, double inverse_temperature) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(s, inverse_temperature);
#else
  return s * inverse_temperature;
#endif
}

__device__ inline float larger(float a, float b) { return fmaxf(a, b); }  // the other one of a NaN
__device__ inline double larger(double a, double b) { return fmax(a, b); }

// Exponents below it, -inf too, count as it where they are factors: e^kLeast is 0, and 0 * kLeast is no NaN.
constexpr float kLeast = -10000;
__device__ inline float bounded(float exponent) { return larger(exponent, kLeast); }
__device__ inline double bounded(double exponent) { return larger(exponent, double{kLeast}); }

__device__ inline bool is_target(int64_t target, int64_t vocabulary) {
  return target >= 0 && target < vocabulary;
}

// Of a row's logits in some columns: the largest, sum e^(z - max), sum (z - max) e^(z - max).
template <typename T>
struct Part {
  T max, sum, product;
};
constexpr float kNoMax = -FLT_MAX;  // finite, so that nothing of nothing is 0 and not NaN

template <typename T>
__device__ inline Part<T> join(const Part<T>& a, const Part<T>& b) {
  const T max = larger(a.max, b.max);
  const T past_a = bounded(a.max - max), past_b = bounded(b.max - max);
  const T of_a = exp_of(past_a), of_b = exp_of(past_b);
  return {max, a.sum * of_a + b.sum * of_b,
          (a.product + a.sum * past_a) * of_a + (b.product + b.sum * past_b) * of_b};
}

// Calls each(j, i) for the number of a strip in this lane's row of `half` and column `column` of the strip,
// if the lane holds it. The loop keeps the strip in registers: only names known when compiling index it.
template <int J, typename Each>
__device__ inline void at_column(int64_t column, int half, const Each& each) {
  if (column < 0 || column >= 8 * J || column % 8 / 2 * 2 != strip_column()) return;
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 2 * half; i < 2 * half + 2; ++i) {
      if (column == 8 * j + strip_column() + i % 2) each(j, i);
    }
  }
}

template <typename Stored>
struct LogitSums {
  using Element = Stored;
  using T = Arithmetic<Stored>;
  static constexpr const char* kName = "logit_sums";
  static constexpr bool kLeftTransposed = false, kRightTransposed = false;
  static constexpr bool kByParts = true;  // a unit goes through all tiles of a part

  int64_t rows, vocabulary;
  const int64_t* targets;
  T inverse_temperature;
  Part<T>* parts;  // [N, part_count]
  int64_t part_count;
  T* target_logits;  // [N]: written by the lane that has it

  // Each lane keeps sums of its own columns; the quad's are joined at the end.
  struct State {
    Part<T> part[2];
  };

  __device__ void begin(State& state, int64_t) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) state.part[half] = {kNoMax, 0, 0};
  }

  template <int J>
  __device__ void load(Strip<T, J>& s, int64_t, int64_t) const {
    set_zero<J>(s);
  }

  template <int J>
  __device__ void tile(State& state, Strip<T, J>& s, int64_t row, int64_t column) const {
    if (column + 8 * J > vocabulary) mask<J>(s, column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Part<T>& part = state.part[half];
      at_column<J>(target_of(row + strip_row(half)) - column, half, [&](int j, int i) {
        target_logits[row + strip_row(half)] = logit(s[j][i], inverse_temperature);
      });
      T max = s[0][2 * half];
#pragma unroll
      for (int j = 0; j < J; ++j) max = larger(max, larger(s[j][2 * half], s[j][2 * half + 1]));
      max = larger(part.max, logit(max, inverse_temperature));
      const T past = bounded(part.max - max), keep = exp_of(past);
      T sum = part.sum * keep, product = (part.product + part.sum * past) * keep;
#pragma unroll
      for (int j = 0; j < J; ++j) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const T exponent = logit(s[j][i], inverse_temperature) - max;
          const T term = exp_of(exponent);  // not of `bounded`, which would hide NaN
          sum += term;
          product = multiply_add(term, bounded(exponent), product);
        }
      }
      part.max = max;
      part.sum = sum;
      part.product = product;
    }
  }

  __device__ void end(State& state, int64_t row, int64_t part) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Part<T> mine = state.part[half];
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2) {
        const Part<T> other = {__shfl_xor_sync(simt::kFullWarp, mine.max, distance),
                               __shfl_xor_sync(simt::kFullWarp, mine.sum, distance),
                               __shfl_xor_sync(simt::kFullWarp, mine.product, distance)};
        mine = join(mine, other);
      }
      const int64_t r = row + strip_row(half);
      if (strip_column() == 0 && r < rows) parts[r * part_count + part] = mine;
    }
  }

 private:
  // -1: none. Read for each tile, rather than kept beside the sums, which leave no registers.
  __device__ int32_t target_of(int64_t row) const {
    return row < rows && is_target(targets[row], vocabulary) ? static_cast<int32_t>(targets[row]) : -1;
  }
  template <int J>
  __device__ void mask(Strip<T, J>& s, int64_t column) const {
#pragma unroll
    for (int j = 0; j < J; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + 8 * j + strip_column() + i % 2 >= vocabulary) s[j][i] = -INFINITY;
      }
    }
  }
};

// A row's gradients of its results, as factors: with q = z - lse,
//   dS[v] = target [v = targets[n]] - e^q (constant + slope q).
template <typename T>
struct alignas(4 * sizeof(T)) RowSlope {
  T lse, constant, slope, target;
};

template <typename Stored>
struct LogitGradients {
  using Element = Stored;
  using T = Arithmetic<Stored>;
  static constexpr const char* kName = "logit_gradients";
  static constexpr bool kLeftTransposed = false, kRightTransposed = false, kByParts = false;

  int64_t first;  // the chunk's first column
  const int64_t* targets;
  const RowSlope<T>* slopes;
  T inverse_temperature;
  Matrix<Stored> gradients;  // dS of the chunk
  T* lost;                   // [N]: what rounding took from the target's dS; null where nothing is rounded

  struct State {};
  __device__ void begin(State&, int64_t) const {}
  __device__ void end(State&, int64_t, int64_t) const {}

  template <int J>
  __device__ void load(Strip<T, J>& s, int64_t, int64_t) const {
    set_zero<J>(s);
  }

  template <int J>
  __device__ void tile(State&, Strip<T, J>& s, int64_t row, int64_t column) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t r = row + strip_row(half);
      if (r >= gradients.rows) continue;
      const RowSlope<T> of = slopes[r];
#pragma unroll
      for (int j = 0; j < J; ++j) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const T q = logit(s[j][i], inverse_temperature) - of.lse;
          s[j][i] = -exp_of(q) * multiply_add(of.slope, bounded(q), of.constant);
        }
      }
      const int64_t target = targets[r] - first;  // one outside [0, V) is nobody's column
      const int64_t at = target < gradients.columns ? target - column : -1;
      at_column<J>(at, half, [&](int j, int i) {
        s[j][i] += of.target;
        if (lost == nullptr) return;
        Stored rounded;
        narrow(s[j][i], &rounded);
        lost[r] = s[j][i] - widen(rounded);
      });
    }
    store_strip<J>(gradients, row, column, s);
  }
};

// Where sums over chunks of grad_hidden lie: float32 and float64 in the result itself.
template <typename Stored>
struct SumsOf {
  using Type = Matrix<Stored>;
};
template <>
struct SumsOf<BFloat16> {
  using Type = SplitSums;
};
template <int J, typename T>
__device__ inline void load_sums(const Matrix<T>& from, bool zero, int64_t row, int64_t column,
                                 Strip<T, J>& strip) {
  set_zero<J>(strip);
  if (zero) return;
  for_each_in_strip<J>(from, row, column, [&](int j, int i, int64_t r, int64_t c) {
    strip[j][i] = from.data[r * from.pitch + c];
  });
}
template <int J, typename T>
__device__ inline void store_sums(const Matrix<T>& to, int64_t row, int64_t column,
                                  const Strip<T, J>& strip) {
  store_strip<J>(to, row, column, strip);
}

template <typename Stored>
struct HiddenGradient {
  using Element = Stored;
  using T = Arithmetic<Stored>;
  static constexpr const char* kName = "hidden_gradient";
  static constexpr bool kLeftTransposed = false, kRightTransposed = true, kByParts = false;

  bool first_chunk, last_chunk;
  typename SumsOf<Stored>::Type sums;
  Matrix<Stored> result;
  const Stored* weight;  // [V, H], whole
  const int64_t* targets;
  const T* lost;

  struct State {};
  __device__ void begin(State&, int64_t) const {}
  __device__ void end(State&, int64_t, int64_t) const {}

  template <int J>
  __device__ void load(Strip<T, J>& s, int64_t row, int64_t column) const {
    load_sums<J>(sums, first_chunk, row, column, s);
  }

  template <int J>
  __device__ void tile(State&, Strip<T, J>& s, int64_t row, int64_t column) const {
    if (!last_chunk) {
      store_sums<J>(sums, row, column, s);
      return;
    }
    if (lost != nullptr) {
      for_each_in_strip<J>(result, row, column, [&](int j, int i, int64_t r, int64_t c) {
        // A row whose target is none has NaN already, and no such row of weight.
        if (lost[r] != 0)
          s[j][i] = multiply_add(lost[r], widen(weight[targets[r] * result.columns + c]), s[j][i]);
      });
    }
    store_strip<J>(result, row, column, s);
  }
};

template <typename Stored>
struct WeightGradient {
  using Element = Stored;
  using T = Arithmetic<Stored>;
  static constexpr const char* kName = "weight_gradient";
  static constexpr bool kLeftTransposed = true, kRightTransposed = true, kByParts = false;

  Matrix<Stored> result;     // the chunk's rows of grad_weight
  const Stored* hidden;      // [N, H]
  const int32_t* first_row;  // [C]: the first row with this target, -1: none
  const int32_t* next_row;   // [N]: the next row with the same target, -1: none
  const T* lost;

  struct State {};
  __device__ void begin(State&, int64_t) const {}
  __device__ void end(State&, int64_t, int64_t) const {}

  template <int J>
  __device__ void load(Strip<T, J>& s, int64_t, int64_t) const {
    set_zero<J>(s);
  }

  template <int J>
  __device__ void tile(State&, Strip<T, J>& s, int64_t row, int64_t column) const {
    if (lost != nullptr) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t r = row + strip_row(half);
        if (r >= result.rows) continue;
        for (int32_t n = first_row[r]; n >= 0; n = next_row[n]) give_back<J>(s, half, n, column);
      }
    }
    store_strip<J>(result, row, column, s);
  }

 private:
  template <int J>
  __device__ void give_back(Strip<T, J>& s, int half, int64_t n, int64_t column) const {
    const T factor = lost[n];
    const Stored* of = hidden + n * result.columns;
#pragma unroll
    for (int j = 0; j < J; ++j) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int64_t c = column + 8 * j + strip_column() + i % 2;
        if (c < result.columns) s[j][i] = multiply_add(factor, widen(of[c]), s[j][i]);
      }
    }
  }
};

}  // namespace earnest::logprob::gpu
