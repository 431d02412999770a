// SPDX-License-Identifier: Apache-2.0
// The tiles of logprob_tile.h: products of logprob_product.h, and the softmax of their results while they lie
// in the near caches. Written once for all tiers; see logprob_vector.h for what a tier defines.
#pragma once

#include "kernels/logprob/logprob_product.h"

namespace earnest::logprob::EARNEST_TIER {
namespace {

// Makes logits of one row's dot products, in place; the last vector is filled up with -inf. Returns their
// maximum, lane by lane.
template <typename T>
EARNEST_INLINE Vec<T> finish_logits(T* z, int64_t columns, T factor) {
  Vec<T> largest = Vec<T>{} - static_cast<T>(INFINITY);
  const auto finish = [&](T* at) {
    const Vec<T> value = load(at) * factor;
    store(at, value);
    largest = largest > value ? largest : value;  // a NaN is kept or not; the sums will be NaN in any case
  };
  const int64_t whole = columns / kLanes<T> * kLanes<T>;
  for (int64_t j = 0; j < whole; j += kLanes<T>) finish(z + j);
  if (whole < columns) {
    for (int64_t j = columns; j < whole + kLanes<T>; ++j) z[j] = -static_cast<T>(INFINITY);
    finish(z + whole);
  }
  return largest;
}

// Sum of e^(z - max) and of (z - max) e^(z - max), lane by lane. Where all logits are -inf, both are 0.
template <typename T>
EARNEST_INLINE void row_sums(const T* z, int64_t columns, T max, Vec<T>* sum, Vec<T>* product) {
  const T finite = max == -static_cast<T>(INFINITY) ? 0 : max;
  Vec<T> sums = {}, products = {};
  for (int64_t j = 0; j < columns; j += kLanes<T>) {
    const Vec<T> difference = load(z + j) - finite, e = exp_of<T>(difference);
    sums += e;
    products += clamp_for_exp<T>(difference) * e;  // 0 where e is
  }
  *sum = sums;
  *product = products;
}

template <typename O, typename T = typename O::Number>
void forward_tile(const LogitTile<T>& tile, T* kept, const TileSums<T>& sums, T* target_logits) {
  alignas(64) T scratch[kRowBlock * kTile];
  T* z = kept == nullptr ? scratch : kept;
  dot_products<O>(tile, z);
  for (int64_t row = 0; row < tile.rows; row += kRowGroup) {
    // All rows of the group, that is of `z`, though the last may be padding.
    Vec<T> largest[kRowGroup], both[2 * kRowGroup];
    T joined[2 * kRowGroup];
    for (int64_t i = 0; i < kRowGroup; ++i) {
      largest[i] = finish_logits<T>(z + (row + i) * kTile, tile.columns, tile.inverse_temperature);
    }
    join_lanes<T>(largest, kRowGroup, joined, [](Vec<T> a, Vec<T> b) { return a > b ? a : b; });
    std::memcpy(sums.max + row, joined, kRowGroup * sizeof(T));
    for (int64_t i = 0; i < kRowGroup; ++i) {
      row_sums<T>(z + (row + i) * kTile, tile.columns, joined[i], &both[i], &both[kRowGroup + i]);
    }
    join_lanes<T>(both, 2 * kRowGroup, joined, [](Vec<T> a, Vec<T> b) { return a + b; });
    std::memcpy(sums.sum + row, joined, kRowGroup * sizeof(T));
    std::memcpy(sums.product + row, joined + kRowGroup, kRowGroup * sizeof(T));
  }
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t target = tile.targets[row] - tile.first_column;
    if (target >= 0 && target < tile.columns) target_logits[row] = z[row * kTile + target];
  }
}

// Sums of a tile join those of the tiles before it. product holds sum of (z - max) e^(z - max): moving the
// maximum by d adds d times the sum.
template <typename T>
void join_tile(const TileSums<T>& tile, const TileSums<double>& rows, int64_t count) {
  typedef T Narrow __attribute__((vector_size(kLanes<double> * sizeof(T))));
  using Wide = Vec<double>;
  const auto widen_lanes = [](const T* from) {
    Narrow lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return __builtin_convertvector(lanes, Wide);
  };
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    const Wide none = {}, tile_max = widen_lanes(tile.max + i), row_max = load(rows.max + i);
    const Wide max = row_max > tile_max ? row_max : tile_max;
    const Wide finite = max == -INFINITY ? none : max;
    const auto moved = [&](Wide old_max, Wide sum, Wide product, Wide* moved_product) {
      const Wide down = old_max - finite, factor = exp_of<double>(down);
      *moved_product = factor == 0 ? none : factor * (product + down * sum);
      return factor * sum;
    };
    Wide row_product, tile_product;
    const Wide row_sum = moved(row_max, load(rows.sum + i), load(rows.product + i), &row_product);
    const Wide tile_sum =
        moved(tile_max, widen_lanes(tile.sum + i), widen_lanes(tile.product + i), &tile_product);
    store(rows.max + i, max);
    store(rows.sum + i, row_sum + tile_sum);
    store(rows.product + i, row_product + tile_product);
  }
}

// One row of dz from its logits (padded with -inf): see logprob.h for the formula. The temperature's factor
// is taken into the gradients first, so that the two terms of a certain token (p = 1) cancel exactly.
template <typename T>
EARNEST_INLINE void row_gradient(const T* z, const LogitTile<T>& tile, const RowGradients<T>& gradients,
                                 int64_t row, T* dz) {
  const T lse = gradients.lse[row], entropy = gradients.entropy[row], factor = tile.inverse_temperature;
  const T grad_logp = gradients.grad_logp ? gradients.grad_logp[row] * factor : 0;
  const T grad_entropy = gradients.grad_entropy ? gradients.grad_entropy[row] * factor : 0;
  const T base = grad_logp - (gradients.grad_lse ? gradients.grad_lse[row] * factor : 0);
  const Vec<T> zero = {};
  for (int64_t j = 0; j < tile.columns; j += kLanes<T>) {
    const Vec<T> log_p = load(z + j) - lse, p = exp_of<T>(log_p);
    const Vec<T> slope = base + grad_entropy * (log_p + entropy);
    store(dz + j, log_p < Exp<T>::kLowest ? zero : -p * slope);
  }
  for (int64_t j = tile.columns; j < kTile; ++j) dz[j] = 0;
  const int64_t target = tile.targets[row] - tile.first_column;
  if (target >= 0 && target < tile.columns) dz[target] += grad_logp;
}

template <typename O, typename T = typename O::Number>
void backward_tile(const LogitTile<T>& tile, const T* kept, const RowGradients<T>& gradients, T* dz,
                   [[maybe_unused]] T* dz_pairs, [[maybe_unused]] T* lost) {
  alignas(64) T scratch[kRowBlock * kTile];
  T* z = O::kPair == 1 ? dz : scratch;
  if (kept == nullptr) dot_products<O>(tile, z);
  for (int64_t row = 0; row < tile.rows; row += O::kPair) {
    alignas(64) T gradient[O::kPair][kTile] = {};
    for (int64_t i = row; i < row + O::kPair && i < tile.rows; ++i) {
      if (kept == nullptr) finish_logits<T>(z + i * kTile, tile.columns, tile.inverse_temperature);
      T* out = O::kPair == 1 ? dz + i * kTile : gradient[i - row];
      row_gradient<T>(kept == nullptr ? z + i * kTile : kept + i * kTile, tile, gradients, i, out);
      if constexpr (O::kPair == 2) {
        const int64_t target = tile.targets[i] - tile.first_column;
        if (target >= 0 && target < tile.columns) lost[i] = O::lost(out[target]);
      }
    }
    if constexpr (O::kPair == 2) {
      O::narrow_rows(gradient[0], gradient[1], dz + row * kTile / 2, dz_pairs + row * kTile / 2);
    }
  }
}

template <typename O, typename T = typename O::Number>
constexpr TileKernels<T> kKernels = {
    kRowGroup,        kPanel<T>,     O::kPair,          &pack_transposed<O>, &pack_rows<O>,
    &forward_tile<O>, &join_tile<T>, &backward_tile<O>, &multiply_tiles<O>,  &multiply_tile_transposed<O>};

}  // namespace
}  // namespace earnest::logprob::EARNEST_TIER
