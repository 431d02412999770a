// SPDX-License-Identifier: Apache-2.0
// A matrix packed for kernels/linear on the CPU, in float32 or bfloat16.
#pragma once

#include <utility>
#include <vector>

#include "csrc/engine/matrix_rows.h"
#include "csrc/engine/weight_memory.h"
#include "csrc/engine/weights.h"

namespace earnest::engine {

class PackedMatrix : public Matrix {
 public:
  PackedMatrix(MatrixRows rows, WeightMemory* memory) : rows_(std::move(rows)), memory_(memory) {}

  int64_t inputs() const override { return rows_.inputs(); }
  int64_t outputs() const override { return rows_.outputs(); }
  Status multiply(const void* x, int64_t rows, void* y, Arena* arena) const override;
  Status refresh() override;
  size_t bytes() const override { return packed_bytes_ + bias_.size(); }

 private:
  MatrixRows rows_;
  WeightMemory* memory_;
  void* packed_ = nullptr;
  size_t packed_bytes_ = 0;
  std::vector<char> bias_;
};

}  // namespace earnest::engine
