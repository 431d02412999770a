// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/resampler.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <string>

namespace earnest::engine {
namespace {

constexpr int64_t kMostPhases = 1280;
constexpr double kStopband = 120.0, kTransition = 0.09;  // decibels; share of the lower Nyquist frequency
constexpr int64_t kMostSamples = int64_t{1} << 40;

constexpr double kShape = 0.1102 * (kStopband - 8.7);  // of the window, by Kaiser's formula

// Kaiser's formula for the length of the filter, to either side, in samples of the lower rate.
double reach_of() { return (kStopband - 7.95) / (2.285 * std::numbers::pi * kTransition) / 2; }

// h, up to a factor, at `x` input samples from its middle; `cutoff` in half cycles a sample.
double impulse(double x, double cutoff, double reach) {
  const double at = x / reach;
  if (std::abs(at) >= 1) return 0;
  const double angle = std::numbers::pi * x * cutoff;
  const double sinc = std::abs(angle) < 1e-12 ? 1 : std::sin(angle) / angle;
  return sinc * std::cyl_bessel_i(0, kShape * std::sqrt(1 - at * at));
}

// Eight sums side by side, so that plain vectors can do it, added in one order.
float dot(const float* a, const float* b, int64_t count) {
  float sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) sums[i % 8] += a[i] * b[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace

Status Resampler::create(int64_t rate, std::unique_ptr<Resampler>* resampler) {
  if (rate < kLowestRate || rate > kHighestRate) {
    return invalid_argument("audio", "rate",
                            std::to_string(kLowestRate) + " to " + std::to_string(kHighestRate) + " Hz",
                            std::to_string(rate));
  }
  const int64_t common = std::gcd(rate, kSampleRate);
  resampler->reset(new Resampler(rate, rate / common, kSampleRate / common));
  return {};
}

Resampler::Resampler(int64_t rate, int64_t step, int64_t steps) : step_(step), steps_(steps) {
  if (rate == kSampleRate) return;
  const double lower = std::min(1.0, static_cast<double>(kSampleRate) / static_cast<double>(rate));
  const double reach = reach_of() / lower, cutoff = lower * (1 - kTransition / 2);
  half_ = static_cast<int64_t>(std::ceil(reach)) + 1;
  phases_ = std::min(steps, kMostPhases);
  filter_.resize(static_cast<size_t>((phases_ + 1) * 2 * half_));
  for (int64_t phase = 0; phase <= phases_; ++phase) {
    float* row = filter_.data() + phase * 2 * half_;
    const double offset = static_cast<double>(phase) / static_cast<double>(phases_);
    std::vector<double> exact(static_cast<size_t>(2 * half_));
    for (size_t j = 0; j < exact.size(); ++j) {
      exact[j] = impulse(static_cast<double>(half_ - 1) - static_cast<double>(j) + offset, cutoff, reach);
    }
    const double sum = std::accumulate(exact.begin(), exact.end(), 0.0);  // a constant stays that constant
    for (size_t j = 0; j < exact.size(); ++j) row[j] = static_cast<float>(exact[j] / sum);
  }
  held_.assign(static_cast<size_t>(half_), 0.0F);  // the silence before
  first_ = -half_;
}

Status Resampler::push(std::span<const float> samples, std::vector<float>* output) {
  const auto count = static_cast<int64_t>(samples.size());
  if (finished_) return invalid_argument("audio", "push", "samples before the end", "samples after it");
  if (pushed_ > kMostSamples - count) {
    return invalid_argument("audio", "samples", "at most " + std::to_string(kMostSamples), "more");
  }
  for (const float sample : samples) {
    if (!std::isfinite(sample))
      return invalid_argument("audio", "samples", "finite numbers", "NaN or infinity");
  }
  pushed_ += count;
  if (half_ == 0) {
    output->insert(output->end(), samples.begin(), samples.end());
    return {};
  }
  held_.insert(held_.end(), samples.begin(), samples.end());
  // Output n needs the samples up to floor(n M / L) + half.
  const int64_t known = pushed_ - half_;
  drain(known <= 0 ? 0 : (known * steps_ + step_ - 1) / step_, output);
  return {};
}

Status Resampler::finish(std::vector<float>* output) {
  if (finished_ || pushed_ == 0) {
    return invalid_argument("audio", "finish", "at least one sample, and one finish",
                            finished_ ? "a second" : "none");
  }
  finished_ = true;
  if (half_ == 0) return {};
  held_.insert(held_.end(), static_cast<size_t>(2 * half_), 0.0F);  // the silence after
  drain(std::max<int64_t>(1, (pushed_ * steps_ + step_ / 2) / step_), output);
  return {};
}

// Gives the outputs before index `outputs`, then forgets the samples that no later one needs.
void Resampler::drain(int64_t outputs, std::vector<float>* output) {
  for (; next_ < outputs; ++next_) output->push_back(at(next_));
  const int64_t needed = next_ * step_ / steps_ - half_ + 1;
  const int64_t spare = std::min(needed - first_, static_cast<int64_t>(held_.size()));
  if (spare > static_cast<int64_t>(held_.size()) / 2) {  // moving the rest costs no more than what left
    held_.erase(held_.begin(), held_.begin() + spare);
    first_ += spare;
  }
}

float Resampler::at(int64_t output) const {
  const int64_t place = output * step_, whole = place / steps_, rest = place % steps_;
  const float* samples = held_.data() + (whole - half_ + 1 - first_);
  const int64_t width = 2 * half_, phase = rest * phases_ / steps_;
  const float near = dot(samples, filter_.data() + phase * width, width);
  if (phases_ == steps_) return near;
  const float far = dot(samples, filter_.data() + (phase + 1) * width, width);
  const auto share =
      static_cast<float>(static_cast<double>(rest * phases_ % steps_) / static_cast<double>(steps_));
  return near + share * (far - near);
}

}  // namespace earnest::engine
