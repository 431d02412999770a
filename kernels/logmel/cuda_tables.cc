// SPDX-License-Identifier: Apache-2.0
#include "kernels/logmel/cuda_tables.h"

#include <algorithm>
#include <iterator>

namespace earnest::logmel {

CudaTables cuda_tables(const Tables& tables) {
  CudaTables result = {};
  for (int l = 0; l < 16; ++l) {
    for (int r = 0; r < 25; ++r) {
      result.samples[l][r] = {static_cast<float>(tables.window[r][l]), sample_place(r, l)};
    }
  }
  constexpr BinPlaces kPlaces;
  for (int k = 0; k < kBins; ++k)
    result.bins[k] = {tables.weights[k].falling, tables.weights[k].rising, kPlaces.at[k]};
  std::copy(std::begin(tables.end), std::end(tables.end), result.end);
  result.n_mels = tables.n_mels;
  return result;
}

}  // namespace earnest::logmel
