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

// Where all logits are -inf, all sums are 0.
template <typename T>
EARNEST_INLINE TileSums<T> tile_sums(const T* z, int64_t columns, T max) {
  const T finite = max == -static_cast<T>(INFINITY) ? 0 : max;
  Vec<T> sum = {}, product = {};
  for (int64_t j = 0; j < columns; j += kLanes<T>) {
    const Vec<T> zero = {}, difference = load(z + j) - finite, e = exp_of<T>(difference);
    sum += e;
    product += difference < Exp<T>::kLowest ? zero : difference * e;
  }
  return {max, sum_lanes<T>(sum), sum_lanes<T>(product)};
}

template <typename O, typename T = typename O::Number>
void forward_tile(const LogitTile<T>& tile, T* kept, TileSums<T>* sums, T* target_logits) {
  alignas(64) T scratch[kRowBlock * kTile];
  T* z = kept == nullptr ? scratch : kept;
  dot_products<O>(tile, z);
  for (int64_t row = 0; row < tile.rows; row += kRowGroup) {
    const int64_t rows = tile.rows - row < kRowGroup ? tile.rows - row : kRowGroup;
    Vec<T> largest[kRowGroup];
    for (int64_t i = 0; i < rows; ++i) {
      largest[i] = finish_logits<T>(z + (row + i) * kTile, tile.columns, tile.inverse_temperature);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const T* logits = z + (row + i) * kTile;
      sums[row + i] = tile_sums<T>(logits, tile.columns, max_lanes<T>(largest[i]));
      const int64_t target = tile.targets[row + i] - tile.first_column;
      if (target >= 0 && target < tile.columns) target_logits[row + i] = logits[target];
    }
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
constexpr TileKernels<T> kKernels = {kRowGroup,           kPanel<T>,          O::kPair,
                                     &pack_transposed<O>, &pack_rows<O>,      &forward_tile<O>,
                                     &backward_tile<O>,   &multiply_tiles<O>, &multiply_tile_transposed<O>};

}  // namespace
}  // namespace earnest::logprob::EARNEST_TIER
