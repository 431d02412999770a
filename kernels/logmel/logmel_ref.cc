// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/logmel/logmel.h"
#include "kernels/logmel/signal.h"
#include "kernels/logmel/tables.h"

namespace earnest::logmel {

Status reference(const Params& params) {
  const int64_t length = params.samples + appended_zeros(params.padding);
  const Signal signal{params.pcm, 0, params.samples, length};
  const int64_t frames = frame_count(params.samples, params.padding);
  const double tau = 2.0 * std::acos(-1.0);
  for (int64_t t = 0; t < frames; ++t) {
    std::vector<double> power(kBins);
    for (int k = 0; k < kBins; ++k) {
      double re = 0.0, im = 0.0;
      for (int j = 0; j < kWindow; ++j) {
        const double hann = 0.5 - 0.5 * std::cos(tau * j / kWindow);
        const double x = hann * signal.at(kHop * t - kWindow / 2 + j);
        re += x * std::cos(tau * (j * k % kWindow) / kWindow);
        im -= x * std::sin(tau * (j * k % kWindow) / kWindow);
      }
      power[static_cast<size_t>(k)] = re * re + im * im;
    }
    for (int m = 0; m < params.n_mels; ++m) {
      double sum = 0.0;
      for (int k = 0; k < kBins; ++k)
        sum += slaney_weight(params.n_mels, m, k) * power[static_cast<size_t>(k)];
      params.out[m * frames + t] = static_cast<float>(std::log10(std::max(1e-10, sum)));
    }
  }
  return {};
}

}  // namespace earnest::logmel
