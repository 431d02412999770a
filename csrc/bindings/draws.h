// SPDX-License-Identifier: Apache-2.0
// What a caller of Python asks to be drawn of a step's rows, all at one temperature.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/engine/device_draws.h"
#include "csrc/engine/sampler.h"

namespace earnest::bindings {

// The temperature, uniform numbers [rows] and what is drawn by them [rows].
using Draws = std::tuple<double, Input<double, 1>, Output<int32_t, 1>>;

class AskedDraws {
 public:
  // of: none where nothing is to be drawn.
  AskedDraws(const std::optional<Draws>& of, size_t rows, int64_t vocabulary)
      : of_(of), vocabulary_(vocabulary), sampler_(checked(of, vocabulary), vocabulary) {
    if (!of) return;
    const auto& [temperature, uniforms, tokens] = *of;
    if (uniforms.shape(0) != rows || tokens.shape(0) != rows)
      raise_if_error(
          invalid_argument("engine", "draws", "a uniform number and a token for each segment", "others"));
    for (size_t i = 0; i < rows; ++i) drawings_.push_back({&sampler_, uniforms.data()[i]});
  }
  AskedDraws(const AskedDraws&) = delete;
  AskedDraws& operator=(const AskedDraws&) = delete;

  std::span<engine::Drawing> rows() { return drawings_; }

  // The tokens, once the model has drawn those that it could; others from their logits [rows, vocabulary].
  Status finish(const float* logits) {
    engine::Sampler::Scratch scratch;
    const auto width = static_cast<size_t>(vocabulary_);
    for (size_t i = 0; i < drawings_.size(); ++i) {
      engine::Drawing& one = drawings_[i];
      if (!one.drawn)
        one.status = sampler_.draw({logits + i * width, width}, one.uniform, &scratch, &one.token);
      if (!one.status.ok()) return one.status;
      std::get<2>(*of_).data()[i] = one.token;
    }
    return {};
  }

 private:
  static engine::Sampling checked(const std::optional<Draws>& of, int64_t vocabulary) {
    engine::Sampling sampling;
    if (of) sampling.temperature = std::get<0>(*of);
    raise_if_error(check_sampling(sampling, vocabulary));
    return sampling;
  }

  const std::optional<Draws>& of_;
  int64_t vocabulary_;
  engine::Sampler sampler_;
  std::vector<engine::Drawing> drawings_;
};

}  // namespace earnest::bindings
