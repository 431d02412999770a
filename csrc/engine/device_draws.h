// SPDX-License-Identifier: Apache-2.0
// Tokens of many rows, drawn on the GPU where their logits are (kernels/sampling/draws.h): those of
// samplers that take no penalties off and cut nothing off. Logits of other rows come home and are drawn from
// there. The same tokens either way.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/sampler.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/status.h"
#include "kernels/sampling/draws.h"

namespace earnest::engine {

// How the next token of a row is drawn, and what became of it.
struct Drawing {
  const Sampler* sampler = nullptr;
  double uniform = 0;
  bool drawn = false;  // out: status and token are there; else the row's logits are
  Status status = {};
  int32_t token = 0;
};

class DeviceDraws {
 public:
  // Sends what the kernels read of these rows, or of none; may throw std::bad_alloc, as below. The arena is
  // the GPU's.
  Status send(std::span<const Drawing> rows, Arena* arena);

  // Puts the draws on the default stream, behind what makes logits [rows, vocabulary], which lose what is
  // suppressed; tokens [rows] lie on the GPU as well.
  Status launch(BFloat16* logits, int64_t vocabulary, int32_t* tokens, Arena* arena);

  // From tokens that have come home.
  void take(const int32_t* tokens, std::span<Drawing> rows) const;

  // Logits [rows, vocabulary] of the rows that are not drawn there, neighbours in one copy, by way of
  // `rounded`, of the same shape in memory of the host.
  Status bring(const BFloat16* there, int64_t rows, int64_t vocabulary, BFloat16* rounded,
               float* logits) const;

  bool any() const { return job_.rows > 0; }

 private:
  bool has(int64_t row) const { return any() && there_[static_cast<size_t>(row)]; }

  sampling::Draws job_;
  std::vector<bool> there_;
  std::vector<double> temperatures_, uniforms_;
  std::vector<sampling::Suppressed> suppressed_;
};

}  // namespace earnest::engine
