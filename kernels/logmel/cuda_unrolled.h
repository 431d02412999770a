// SPDX-License-Identifier: Apache-2.0
// A tile with each warp's part of it written out, for numbers of bands that the compiler knows: bins, places
// and weights are then operands of the instructions that use them, where loops (cuda_tile.h) look them up.
// The same operations in the same order, so the bits are the same; more code instead, of which no two warps
// run the same.
#pragma once

#include <utility>

#include "kernels/logmel/constants.h"
#include "kernels/logmel/cuda_tile.h"

namespace earnest::logmel {

// Once: worked out anew for each band and bin, they are most of what a compiler does here.
template <int kMels>
constexpr Filters<kMels> kFilters;
constexpr BinPlaces kBinPlaces;

// call(kFirst), ..., call(kEnd - 1), each with a constant.
template <int kFirst, int kEnd, typename Call>
__device__ __forceinline__ void each(const Call& call) {
  if constexpr (kFirst < kEnd) {
    call(std::integral_constant<int, kFirst>());
    each<kFirst + 1, kEnd>(call);
  }
}

// call(warp) with a constant.
template <int kFirst, int kEnd, typename Call>
__device__ __forceinline__ void of_warp(int warp, const Call& call) {
  if constexpr (kEnd - kFirst == 1) {
    call(std::integral_constant<int, kFirst>());
  } else {
    constexpr int kMiddle = (kFirst + kEnd) / 2;
    if (warp < kMiddle) {
      of_warp<kFirst, kMiddle>(warp, call);
    } else {
      of_warp<kMiddle, kEnd>(warp, call);
    }
  }
}

template <int kMels, int kWarp>
__device__ __forceinline__ float bands_of(const Place& place) {
  constexpr int kBegin = kMels * kWarp / kWarpsOfTile, kEnd = kMels * (kWarp + 1) / kWarpsOfTile;
  const auto powers = simt::dynamic_shared<float>(0, kSpectrumFloats) + lane_index();
  const bool wanted = place.out != nullptr;
  float* out = place.out + int64_t{place.stride} * kBegin;
  float highest = -10.0f, sum = 0.0f, rising = 0.0f;
  each<kBegin, kEnd + 1>([&](auto m) {  // what falls from band m - 1, and what rises to m
    constexpr int kFrom = m == 0 ? 0 : kFilters<kMels>.end[m == 0 ? 0 : m - 1];
    sum = rising;
    rising = 0.0f;
    each<kFrom, kFilters<kMels>.end[m]>([&](auto k) {
      constexpr int kPlace = kBinPlaces.at[k];
      constexpr float kFalling = kFilters<kMels>.falling[k], kRising = kFilters<kMels>.rising[k];
      const float x = at_bytes(powers, kPlace);
      if constexpr (m > kBegin) sum = fmaf(x, kFalling, sum);
      if constexpr (m < kEnd) rising = fmaf(x, kRising, rising);
    });
    if (m == kBegin) return;
    const float value = log10_of(sum);
    highest = fmaxf(highest, value);
    if (wanted) *out = value;
    out = band_after(out, place.stride);
  });
  return wanted ? highest : -10.0f;
}

template <int kMels, bool kSamplesToo>
struct Unrolled {
  __device__ __forceinline__ static void transform(const CudaTables& tables, simt::Shared<float> frame) {
    if constexpr (kSamplesToo) {
      of_warp<0, kWarpsOfTile>(warp_index(), [&](auto warp) {
        first_pass(
            warp, [&](int r) { return at_bytes(frame, sample_place(r, warp)); },
            [&](int r) { return window_at(sample_of(r, warp)); });
      });
    } else {
      InLoops::transform(tables, frame);
    }
  }
  __device__ __forceinline__ static float features(const CudaTables&, const Place& place) {
    float highest = -10.0f;
    of_warp<0, kWarpsOfTile>(warp_index(), [&](auto w) { highest = bands_of<kMels, w>(place); });
    return highest;
  }
};

}  // namespace earnest::logmel
