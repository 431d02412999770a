// SPDX-License-Identifier: Apache-2.0
// What a matrix is made from: the numbers of some weights as rows, one weight below the other, and their
// biases one behind the other.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/engine/tensor.h"
#include "csrc/engine/weights.h"
#include "kernels/linear/linear.h"

namespace earnest::engine {

linear::Type type_of(Precision precision);  // of products

class MatrixRows {
 public:
  // weights: [rows, ...] each, of one size behind the first axis, [out, in, taps] as [out, taps, in]; biases:
  // one for each, or none; an absent one (no shape) is zero. precision: that of products.
  MatrixRows(std::vector<TensorView> weights, std::vector<TensorView> biases, Precision precision);

  Precision precision() const { return precision_; }
  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }
  size_t bytes() const;       // of the numbers
  size_t bias_bytes() const;  // 0: no bias

  // The numbers themselves, where they lie as they are to be; else null.
  const void* in_place() const;

  void write_weight(void* weight) const;  // [outputs, inputs]
  void write_bias(void* bias) const;      // [outputs]
  void let_go() const;

 private:
  std::vector<TensorView> weights_, biases_;
  Precision precision_;
  int64_t outputs_ = 0, inputs_ = 0;
};

}  // namespace earnest::engine
