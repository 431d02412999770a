// SPDX-License-Identifier: Apache-2.0
#include "kernels/pitch/path.h"

#include <algorithm>
#include <cmath>

namespace earnest::pitch {
namespace {

constexpr float kLeapCost = 0.35f;    // of one octave between neighbouring frames
constexpr float kSwitchCost = 0.14f;  // of a change between voiced and unvoiced
constexpr float kNever = -1e9f;
constexpr float kDecay = 0.99930709f;  // of the loudest energy, a frame: halved in ten seconds

}  // namespace

PathSearch::PathSearch(const Settings& settings)
    : octave_offset_(std::log2(settings.f0_min)),
      voicing_threshold_(settings.voicing_threshold),
      silence_threshold_(settings.silence_threshold) {}

// Praat's rule: what is quiet against the loudest (here: so far) tends to unvoiced however periodic it is.
float PathSearch::unvoiced_strength(float energy) {
  loudest_ = std::max(energy, loudest_ * kDecay);
  const float relative = loudest_ > 0.0f ? std::sqrt(energy / loudest_) : 0.0f;
  const float quiet = 2.0f - relative * (1.0f + voicing_threshold_) / std::max(silence_threshold_, 1e-9f);
  return voicing_threshold_ + std::max(quiet, 0.0f);
}

bool PathSearch::push(const Candidates& candidates, float* f0) {
  std::array<float, kStates> local;
  std::array<float, kKept> octaves;
  Step& step = at(pushed_);
  for (size_t k = 0; k < kKept; ++k) {
    const float hz = candidates.f0[k];
    step.f0[k] = hz;
    octaves[k] = hz > 0.0f ? std::log2(hz) : 0.0f;
    const float gain = static_cast<float>(kOctaveCost) * (octaves[k] - octave_offset_);
    local[k] = hz > 0.0f ? candidates.strength[k] + gain : kNever;
  }
  local[kUnvoiced] = unvoiced_strength(candidates.energy);
  extend(local, octaves, &step);
  octaves_ = octaves;
  ++pushed_;
  choose();
  if (pushed_ <= kLookahead) return false;
  *f0 = decided(pushed_ - 1 - kLookahead);
  return true;
}

void PathSearch::extend(const std::array<float, kStates>& local, const std::array<float, kKept>& octaves,
                        Step* step) {
  if (pushed_ == 0) {
    score_ = local;
    return;
  }
  // Only differences of scores matter; the best is kept at 0, so that a long stream loses no precision.
  const float best = *std::max_element(score_.begin(), score_.end());
  std::array<float, kStates> next;
  for (size_t to = 0; to < kStates; ++to) {
    float highest = kNever * 4;
    int8_t from = 0;
    for (size_t k = 0; k < kStates; ++k) {
      float cost = 0.0f;
      if (k < kKept && to < kKept) {
        cost = kLeapCost * std::abs(octaves_[k] - octaves[to]);
      } else if (k != to) {
        cost = kSwitchCost;
      }
      const float through = score_[k] - best - cost;
      from = through > highest ? static_cast<int8_t>(k) : from;
      highest = std::max(through, highest);
    }
    step->came_from[to] = from;
    next[to] = highest + local[to];
  }
  score_ = next;
}

// The best path ends in the best state of the last frame; going back, it joins the one chosen before.
void PathSearch::choose() {
  int64_t frame = pushed_ - 1;
  at(frame).chosen = static_cast<int8_t>(std::max_element(score_.begin(), score_.end()) - score_.begin());
  for (; frame > std::max<int64_t>(0, pushed_ - 1 - kLookahead); --frame) {
    const int8_t before = at(frame).came_from[static_cast<size_t>(at(frame).chosen)];
    if (frame < pushed_ - 1 && at(frame - 1).chosen == before) break;
    at(frame - 1).chosen = before;
  }
}

float PathSearch::decided(int64_t frame) const {
  const Step& step = steps_[static_cast<size_t>(frame % kHeld)];
  return step.chosen == kUnvoiced ? 0.0f : step.f0[static_cast<size_t>(step.chosen)];
}

int PathSearch::finish(float* f0) const {
  const auto left = static_cast<int>(std::min<int64_t>(pushed_, kLookahead));
  for (int i = 0; i < left; ++i) f0[i] = decided(pushed_ - left + i);
  return left;
}

}  // namespace earnest::pitch
