// SPDX-License-Identifier: Apache-2.0
// The path through the candidates of the frames, decided kLookahead frames later (Viterbi search with a
// bounded delay): the greatest sum of the candidates' heights, less what leaps in pitch and changes of
// voicing cost.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/pitch/pitch_backend.h"

namespace earnest::pitch {

class PathSearch {
 public:
  explicit PathSearch(const Settings& settings);

  // The candidates of the next frame; true if a frame was decided by it: *f0 is that of frame pushed - 1 -
  // kLookahead, 0 where unvoiced.
  bool push(const Candidates& candidates, float* f0);

  // After the last frame: the f0 of those not decided yet, at most kLookahead of them; returns how many.
  int finish(float* f0) const;

 private:
  static constexpr int kUnvoiced = kKept, kStates = kKept + 1;
  static constexpr int kHeld = kLookahead + 1;

  struct Step {
    std::array<float, kKept> f0;
    std::array<int8_t, kStates> came_from;
    int8_t chosen;  // by the best path so far
  };

  float unvoiced_strength(float energy);
  void extend(const std::array<float, kStates>& local, const std::array<float, kKept>& octaves, Step* step);
  void choose();
  Step& at(int64_t frame) { return steps_[static_cast<size_t>(frame % kHeld)]; }
  float decided(int64_t frame) const;

  const float octave_offset_, voicing_threshold_, silence_threshold_;
  float loudest_ = 0.0f;  // energy
  int64_t pushed_ = 0;
  std::array<float, kStates> score_{};
  std::array<float, kKept> octaves_{};  // of the last frame's candidates
  std::array<Step, kHeld> steps_{};
};

}  // namespace earnest::pitch
