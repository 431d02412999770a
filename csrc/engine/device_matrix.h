// SPDX-License-Identifier: Apache-2.0
// A matrix in a GPU's memory for kernels/linear, which takes its rows there as they are.
#pragma once

#include <utility>

#include "csrc/engine/device_memory.h"
#include "csrc/engine/matrix_rows.h"
#include "csrc/engine/weights.h"

namespace earnest::engine {

class DeviceMatrix : public Matrix {
 public:
  // array: the same rows, if they lie there already; null: the matrix has them itself.
  DeviceMatrix(MatrixRows rows, const Array* array) : rows_(std::move(rows)), array_(array) {}

  int64_t inputs() const override { return rows_.inputs(); }
  int64_t outputs() const override { return rows_.outputs(); }
  Status multiply(const void* x, int64_t rows, void* y, Arena* arena) const override;
  Status refresh() override;
  size_t bytes() const override { return (array_ == nullptr ? rows_.bytes() : 0) + rows_.bias_bytes(); }

 private:
  MatrixRows rows_;
  const Array* array_;
  DeviceMemory weight_, bias_;
};

}  // namespace earnest::engine
