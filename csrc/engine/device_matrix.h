// SPDX-License-Identifier: Apache-2.0
// A matrix in a GPU's memory for kernels/linear, which takes weights there as they lie: one below the other
// by name only. Who multiplies by it (products.h) is decided when it is made.
#pragma once

#include <utility>
#include <vector>

#include "csrc/engine/weights.h"
#include "kernels/linear/linear.h"

namespace earnest::engine {

class DeviceMatrix : public Matrix {
 public:
  struct Piece {
    const Array *weight = nullptr, *bias = nullptr;  // bias null: none
    int64_t outputs = 0;
  };
  DeviceMatrix(std::vector<Piece> pieces, int64_t inputs, linear::Type type, Products products);

  int64_t inputs() const override { return inputs_; }
  int64_t outputs() const override { return outputs_; }
  Status multiply(const void* x, int64_t rows, void* y, Arena* arena) const override;
  Status refresh() override { return {}; }     // the arrays are
  size_t bytes() const override { return 0; }  // of its own

 private:
  std::vector<Piece> pieces_;
  int64_t inputs_, outputs_ = 0;
  linear::Type type_;
  linear::CudaPath path_;
};

}  // namespace earnest::engine
