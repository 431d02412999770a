// SPDX-License-Identifier: Apache-2.0
// Any rate to 16 kHz while the samples arrive, in pieces of any size, the same result.
//
//   y_n = sum_j h(n M / L - j) x_j      L / M = 16000 / rate, x_j = 0 outside of the clip
//   h     a sinc cut at the lower of the two Nyquist frequencies, less a transition of 9%, under a Kaiser
//         window of 120 dB (J. F. Kaiser, "Nonrecursive digital filter design", 1974)
//
// Output n is heard at the time of input n M / L: no delay. A clip of S samples gives round(S L / M), and one
// at least. h is tabled for every phase that the ratio has, up to 1280; of ratios with more, two neighbouring
// phases are mixed (wrong by less than the window's -120 dB).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "csrc/engine/features.h"
#include "kernels/common/status.h"

namespace earnest::engine {

constexpr int64_t kLowestRate = 1000, kHighestRate = 192000;

class Resampler {
 public:
  static Status create(int64_t rate, std::unique_ptr<Resampler>* resampler);

  // Appends to `output` what the samples so far decide; finish: the rest. Nothing may be pushed after it.
  Status push(std::span<const float> samples, std::vector<float>* output);
  Status finish(std::vector<float>* output);

  int64_t pushed() const { return pushed_; }

 private:
  Resampler(int64_t rate, int64_t step, int64_t steps);
  void drain(int64_t outputs, std::vector<float>* output);
  float at(int64_t output) const;

  const int64_t step_, steps_;  // M and L, without common divisors
  int64_t half_ = 0;            // h reaches so many samples to either side
  int64_t phases_ = 0;
  std::vector<float> filter_;  // [phases + 1, 2 half]
  std::vector<float> held_;    // samples from index first_ on
  int64_t first_ = 0, pushed_ = 0, next_ = 0;
  bool finished_ = false;
};

}  // namespace earnest::engine
