// SPDX-License-Identifier: Apache-2.0
// A matrix packed for kernels/linear, in float32 or bfloat16.
#pragma once

#include <memory>
#include <vector>

#include "csrc/engine/weights.h"

namespace earnest::engine {

class PackedMatrix : public Matrix {
 public:
  // weights: [rows, ...] each, of one size behind the first axis; biases: one for each, or none; an absent
  // one (no shape) is zero.
  PackedMatrix(std::vector<TensorView> weights, std::vector<TensorView> biases, Precision precision);

  int64_t inputs() const override { return inputs_; }
  int64_t outputs() const override { return outputs_; }
  Status multiply(const void* x, int64_t rows, void* y, Arena* arena) const override;
  Status refresh() override;
  size_t bytes() const override { return packed_bytes_ + bias_.size(); }

 private:
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };

  template <typename T>
  void lay_out(T* weight, T* bias) const;
  const void* in_place() const;

  std::vector<TensorView> weights_, biases_;
  Precision precision_;
  int64_t outputs_ = 0, inputs_ = 0;
  std::unique_ptr<void, Free> packed_;
  size_t packed_bytes_ = 0;
  std::vector<char> bias_;
};

}  // namespace earnest::engine
