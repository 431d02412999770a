// SPDX-License-Identifier: Apache-2.0
// The constants of tables.h as a kernel takes them: by value, so that a launch needs no copy and no state,
// and every lane of a warp reads the same one at a time from the constant bank.
#pragma once

#include <cstdint>

#include "kernels/logmel/logmel.h"
#include "kernels/logmel/schedule.h"
#include "kernels/logmel/tables.h"

namespace earnest::logmel {

constexpr int kHopStride = kHop + 1;  // frames, one in each lane, begin in different banks

struct CudaTables {
  struct Sample {
    float weight;   // of the window
    int32_t place;  // in bytes after the frame's first, where hops are kHopStride apart
  };
  struct alignas(16) Bin {
    float falling, rising;  // as in Tables
    int32_t place;          // in bytes, where the second pass leaves the powers of all lanes
  };
  Sample samples[16][25];  // [l][r]
  Bin bins[kBins];
  int32_t end[kMaxMels + 1];  // as in Tables
  int32_t n_mels;
};

// Numbers of the 32 lanes lie in rows. Row 0 of the transform, real, has 16 of them, one for each l; every
// other twice as many, of which the first 16 are used again for its powers, one for each d.
constexpr int spectrum_row(int row) { return row == 0 ? 0 : 16 + 32 * (row - 1); }

constexpr int sample_place(int r, int l) {
  return static_cast<int>(sizeof(float)) * (sample_of(r, l) / kHop * kHopStride + sample_of(r, l) % kHop);
}

// Of a bin that is in two columns of row 0 the second one's place.
struct BinPlaces {
  int32_t at[kBins] = {};
  constexpr BinPlaces() {
    for (int row = 0; row < kRows; ++row)
      for (int d = 0; d < 16; ++d)
        at[bin_of(row, d)] = static_cast<int>(sizeof(float)) * kFramesOfTile * (spectrum_row(row) + d);
  }
};

CudaTables cuda_tables(const Tables& tables);

}  // namespace earnest::logmel
