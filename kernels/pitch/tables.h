// SPDX-License-Identifier: Apache-2.0
// Constants of the filter, the transform and the correlation, computed in float64 and rounded once. Plain
// data: the files compiled for one instruction set see no library code that the linker could share with
// others.
#pragma once

#include <memory>

#include "kernels/pitch/pitch.h"

namespace earnest::pitch {

constexpr int kTaps = 6;    // of the half-band filter on each side, at odd distances 1, 3 .. 11
constexpr int kReach = 11;  // samples of 16 kHz that a sample of 8 kHz needs on each side
constexpr int kHalvedHop = 80;
constexpr int kRate = 8000;
constexpr int kMaxSize = 2048;  // of the transform; f0_min 20 Hz needs it
constexpr int kMaxWidth = 1200;
constexpr int kMaxLags = 416;  // more than 8000 / 20 + 2, and a multiple of every lane count
constexpr int kKept = 4;       // candidate periods of a frame
constexpr double kOctaveCost =
    0.04;                            // favours the higher of two candidates: a period's multiples fit as well
constexpr double kCorner = 2500.0;   // Hz; harmonics above it count less
constexpr float kRounding = 1e-12f;  // power of a bin, relative to the frame's, under which only rounding is
constexpr float kLeastPower = 1e-36f;

struct Tables {
  float f0_min;
  int width;            // samples of a window, a multiple of 16
  int size;             // of the real transform: 512, 1024 or 2048
  int first_lag, lags;  // searched: first_lag .. first_lag + lags - 1
  float taps[kTaps];    // at distance 1, 3 .. 11
  float window[kMaxWidth];
  float turn_256_re[256], turn_256_im[256];  // exp(-2 pi i b c / 256) at [16 c + b]
  float turn_re[kMaxSize],
      turn_im[kMaxSize];             // exp(-2 pi i k / n), k < n / 2, at [n / 2 + k], n a power of 2
  float weight[kMaxSize / 2 + 16];   // of bin k
  float unwindow[kMaxLags];          // 1 / what the window alone gives at a lag
  float long_period_cost[kMaxLags];  // of a lag
};

// Built when settings are first used; the last few are kept. Throws std::bad_alloc.
std::shared_ptr<const Tables> tables_for(const Settings& settings);

}  // namespace earnest::pitch
