// SPDX-License-Identifier: Apache-2.0
// A matrix in int8 or int4 for kernels/quantized: quantised from plain tensors, or as a saved checkpoint has
// it; in the host's memory or a GPU's.
#pragma once

#include <vector>

#include "csrc/engine/device_memory.h"
#include "csrc/engine/weight_memory.h"
#include "csrc/engine/weights.h"
#include "kernels/quantized/quantized.h"

namespace earnest::engine {

class QuantizedMatrix : public Matrix {
 public:
  // weights: [rows, inputs] each, or bytes of that shape as saved; shapes: [rows, inputs] of each. biases:
  // one for each, or none; an absent one (no shape) is none. type: of x and y. memory: on the CPU.
  QuantizedMatrix(std::vector<TensorView> weights, const std::vector<std::vector<int64_t>>& shapes,
                  std::vector<TensorView> biases, quantized::Codes codes, quantized::Activations activations,
                  quantized::Type type, WeightMemory* memory, Device device);

  int64_t inputs() const override { return inputs_; }
  int64_t outputs() const override { return outputs_; }
  Status multiply(const void* x, int64_t rows, void* y, Arena* arena) const override;
  Status refresh() override;
  size_t bytes() const override;

  // One row of a matrix on the CPU that has one part, in its precision.
  Status row(int64_t index, void* out) const;

 private:
  struct Piece {
    TensorView weight, bias;
    int64_t outputs = 0;
    void* packed = nullptr;
    size_t packed_bytes = 0;
    std::vector<char> bias_copy;
    DeviceMemory packed_there, bias_there;
  };

  Status refresh(Piece* piece, quantized::Part* part) const;
  Status pack(const Piece& piece, void* packed) const;
  Status send(Piece* piece, quantized::Part* part) const;

  std::vector<Piece> pieces_;
  std::vector<quantized::Part> parts_;
  quantized::Codes codes_;
  quantized::Activations activations_;
  quantized::Type type_;
  int64_t outputs_ = 0, inputs_ = 0;
  WeightMemory* memory_;
  Device device_;
};

}  // namespace earnest::engine
