// SPDX-License-Identifier: Apache-2.0
// A matrix packed for kernels/linear, in float32 or bfloat16.
#pragma once

#include <vector>

#include "csrc/engine/weight_memory.h"
#include "csrc/engine/weights.h"

namespace earnest::engine {

class PackedMatrix : public Matrix {
 public:
  // weights: [rows, ...] each, of one size behind the first axis; biases: one for each, or none; an absent
  // one (no shape) is zero.
  PackedMatrix(std::vector<TensorView> weights, std::vector<TensorView> biases, Precision precision,
               WeightMemory* memory);

  int64_t inputs() const override { return inputs_; }
  int64_t outputs() const override { return outputs_; }
  Status multiply(const void* x, int64_t rows, void* y, Arena* arena) const override;
  Status refresh() override;
  size_t bytes() const override { return packed_bytes_ + bias_.size(); }

 private:
  template <typename T>
  void lay_out(T* weight, T* bias) const;
  const void* in_place() const;

  std::vector<TensorView> weights_, biases_;
  Precision precision_;
  int64_t outputs_ = 0, inputs_ = 0;
  WeightMemory* memory_;
  void* packed_ = nullptr;
  size_t packed_bytes_ = 0;
  std::vector<char> bias_;
};

}  // namespace earnest::engine
