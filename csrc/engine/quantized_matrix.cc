// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/quantized_matrix.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "csrc/engine/guard.h"
#include "csrc/engine/quantization.h"
#include "kernels/common/thread_pool.h"

namespace earnest::engine {
namespace {

// By all threads.
void copy_codes(const TensorView& view, size_t bytes, char* out) {
  constexpr size_t kPiece = size_t{1} << 18;
  const auto* from = static_cast<const char*>(view.data);
  parallel_for(static_cast<int64_t>((bytes + kPiece - 1) / kPiece), [=](int64_t piece) {
    const size_t first = static_cast<size_t>(piece) * kPiece;
    std::memcpy(out + first, from + first, std::min(kPiece, bytes - first));
  });
}

}  // namespace

QuantizedMatrix::QuantizedMatrix(std::vector<TensorView> weights,
                                 const std::vector<std::vector<int64_t>>& shapes,
                                 std::vector<TensorView> biases, quantized::Codes codes,
                                 quantized::Activations activations, quantized::Type type,
                                 WeightMemory* memory)
    : codes_(codes), activations_(activations), type_(type), memory_(memory) {
  for (size_t i = 0; i < weights.size(); ++i) {
    Piece piece;
    piece.weight = std::move(weights[i]);
    if (!biases.empty()) piece.bias = std::move(biases[i]);
    piece.outputs = shapes[i][0];
    outputs_ += shapes[i][0];
    inputs_ = shapes[i][1];
    pieces_.push_back(std::move(piece));
  }
  parts_.resize(pieces_.size());
}

Status QuantizedMatrix::refresh() {
  for (size_t i = 0; i < pieces_.size(); ++i) EARNEST_RETURN_IF_ERROR(refresh(&pieces_[i], &parts_[i]));
  return {};
}

// Codes of a file are copied too: on its pages of 4 KiB a step of decoding takes a fifth longer than on huge
// ones, and the file's are let go.
Status QuantizedMatrix::refresh(Piece* piece, quantized::Part* part) const {
  size_t bytes = 0;
  EARNEST_RETURN_IF_ERROR(quantized::packed_size({codes_, piece->outputs, inputs_}, &bytes));
  if (piece->packed == nullptr) {
    piece->packed = memory_->take(bytes);
    piece->packed_bytes = bytes;
  }
  if (piece->weight.type == StoredType::kBytes) {
    copy_codes(piece->weight, bytes, static_cast<char*>(piece->packed));
  } else {
    EARNEST_RETURN_IF_ERROR(pack_tensor(piece->weight, codes_, piece->packed));
  }
  let_go(piece->weight);
  part->outputs = piece->outputs;
  part->packed = piece->packed;
  if (piece->bias.shape.empty()) return {};
  const bool float32 = type_ == quantized::Type::kFloat32;
  piece->bias_copy.resize(static_cast<size_t>(piece->outputs) * (float32 ? 4 : 2));
  if (float32) {
    read(piece->bias, 0, piece->outputs, reinterpret_cast<float*>(piece->bias_copy.data()));
  } else {
    read(piece->bias, 0, piece->outputs, reinterpret_cast<BFloat16*>(piece->bias_copy.data()));
  }
  part->bias = piece->bias_copy.data();
  return {};
}

size_t QuantizedMatrix::bytes() const {
  size_t total = 0;
  for (const Piece& piece : pieces_) total += piece.packed_bytes + piece.bias_copy.size();
  return total;
}

Status QuantizedMatrix::multiply(const void* x, int64_t rows, void* y, Arena* arena) const {
  const Arena::Scope scope(arena);
  quantized::Product product;
  product.type = type_;
  product.codes = codes_;
  product.activations = activations_;
  product.rows = rows;
  product.inputs = inputs_;
  product.parts = parts_.data();
  product.count = static_cast<int64_t>(parts_.size());
  product.left = x;
  product.output = y;
  return quantized::run(product, arena->take<char>(static_cast<int64_t>(quantized::workspace_size(product))));
}

Status QuantizedMatrix::row(int64_t index, void* out) const {
  return quantized::unpack({codes_, outputs_, inputs_}, parts_[0].packed, index, 1, type_, out);
}

}  // namespace earnest::engine
