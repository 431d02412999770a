// SPDX-License-Identifier: Apache-2.0
// The window and the filters of tables.h for code that is written out over them, of numbers of bands that the
// compiler knows: std::exp and std::cos are not known to it. test_logmel_schedule.cc holds them to be the
// same floats.
#pragma once

#include "kernels/logmel/logmel.h"

namespace earnest::logmel {

// Of x from 0 to 7 by their series, whose terms fall below a double's last bit before the fortieth.
constexpr double exponential(double x) {
  double term = 1.0, sum = 1.0;
  for (int i = 1; i < 40; ++i) sum += term *= x / i;
  return sum;
}
constexpr double cosine(double x) {
  double term = 1.0, sum = 1.0;
  for (int i = 2; i < 80; i += 2) sum += term *= -x * x / (i * (i - 1));
  return sum;
}

// hann, even about the middle.
constexpr float window_at(int sample) {
  constexpr double kStep = 6.283185307179586477 / kWindow;
  return static_cast<float>(0.5 - 0.5 * cosine(kStep * (sample <= 200 ? sample : 400 - sample)));
}

template <int kMels>
struct Filters {
  int end[kMels + 1] = {};
  float falling[kBins] = {}, rising[kBins] = {};

  constexpr Filters() {
    int k = 0;  // the last bin, of 8000 Hz, is where the last filter ends
    for (int m = 0; m <= kMels; ++m) {
      for (; k < kBins - 1 && 40.0 * k < hz_of(m + 1); ++k) {
        if (m > 0) falling[k] = static_cast<float>(weight(m - 1, 40.0 * k));
        if (m < kMels) rising[k] = static_cast<float>(weight(m, 40.0 * k));
      }
      end[m] = k;
    }
  }

 private:
  // On Slaney's scale: linear below 1000 Hz, logarithmic above, 8000 Hz at peak kMels + 1.
  static constexpr double hz_of(int peak) {
    constexpr double kHighest = 45.245640471924965, kBreak = 15.0, kLogOf6_4 = 1.8562979903656263;
    const double mel = kHighest / (kMels + 1) * peak;
    if (mel < kBreak) return 200.0 / 3.0 * mel;
    return 1000.0 * exponential((mel - kBreak) * kLogOf6_4 / 27.0);
  }
  static constexpr double weight(int m, double hz) {
    const double low = hz_of(m), peak = hz_of(m + 1), high = hz_of(m + 2);
    const double up = (hz - low) / (peak - low), down = (high - hz) / (high - peak);
    const double height = up < down ? up : down;
    return height > 0.0 ? height * 2.0 / (high - low) : 0.0;
  }
};

}  // namespace earnest::logmel
