// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/quantized_matrix.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "csrc/engine/guard.h"
#include "csrc/engine/quantization.h"
#include "kernels/common/thread_pool.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "load";

// By all threads.
void copy_codes(const TensorView& view, size_t bytes, char* out) {
  constexpr size_t kPiece = size_t{1} << 18;
  const auto* from = static_cast<const char*>(view.data);
  parallel_for(static_cast<int64_t>((bytes + kPiece - 1) / kPiece), [=](int64_t piece) {
    const size_t first = static_cast<size_t>(piece) * kPiece;
    std::memcpy(out + first, from + first, std::min(kPiece, bytes - first));
  });
}

Status read_bias(quantized::Type type, int64_t count, const TensorView& bias, std::vector<char>* copy) {
  const bool float32 = type == quantized::Type::kFloat32;
  TensorView here;
  std::unique_ptr<char[]> memory;
  EARNEST_RETURN_IF_ERROR(bring_here(kOp, bias, &memory, &here));
  copy->resize(static_cast<size_t>(count) * (float32 ? 4 : 2));
  if (float32) {
    read(here, 0, count, reinterpret_cast<float*>(copy->data()));
  } else {
    read(here, 0, count, reinterpret_cast<BFloat16*>(copy->data()));
  }
  return {};
}

}  // namespace

QuantizedMatrix::QuantizedMatrix(std::vector<TensorView> weights,
                                 const std::vector<std::vector<int64_t>>& shapes,
                                 std::vector<TensorView> biases, quantized::Codes codes,
                                 quantized::Activations activations, quantized::Type type,
                                 WeightMemory* memory, Device device)
    : codes_(codes),
      activations_(device == Device::kCpu ? activations : quantized::Activations::kExact),
      type_(type),
      memory_(memory),
      device_(device) {
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
  EARNEST_RETURN_IF_ERROR(quantized::packed_size({codes_, piece->outputs, inputs_}, &piece->packed_bytes));
  if (device_ == Device::kCpu) {
    if (piece->packed == nullptr) piece->packed = memory_->take(piece->packed_bytes);
    EARNEST_RETURN_IF_ERROR(pack(*piece, piece->packed));
  }
  part->outputs = piece->outputs;
  part->packed = piece->packed;
  if (!piece->bias.shape.empty())
    EARNEST_RETURN_IF_ERROR(read_bias(type_, piece->outputs, piece->bias, &piece->bias_copy));
  part->bias = piece->bias_copy.empty() ? nullptr : piece->bias_copy.data();
  if (device_ == Device::kCuda) EARNEST_RETURN_IF_ERROR(send(piece, part));
  let_go(piece->weight);
  return {};
}

// One matrix at a time is in the host's memory where a trainer's lie on a GPU: the codes are made here, the
// same bytes as of a file.
Status QuantizedMatrix::pack(const Piece& piece, void* packed) const {
  if (piece.weight.type != StoredType::kBytes) {
    TensorView here;
    std::unique_ptr<char[]> memory;
    EARNEST_RETURN_IF_ERROR(bring_here(kOp, piece.weight, &memory, &here));
    return pack_tensor(here, codes_, packed);
  }
  copy_codes(piece.weight, piece.packed_bytes, static_cast<char*>(packed));
  return {};
}

// Codes and bias to a GPU, where they keep their place from one time to the next.
Status QuantizedMatrix::send(Piece* piece, quantized::Part* part) const {
  const auto packed = std::make_unique_for_overwrite<char[]>(piece->packed_bytes);
  EARNEST_RETURN_IF_ERROR(pack(*piece, packed.get()));
  if (piece->packed_there == nullptr)
    EARNEST_RETURN_IF_ERROR(allocate(kOp, piece->packed_bytes, &piece->packed_there));
  EARNEST_RETURN_IF_ERROR(copy(kOp, device_, piece->packed_there.get(), packed.get(), piece->packed_bytes));
  part->packed = piece->packed_there.get();
  const std::vector<char>& bias = piece->bias_copy;
  if (bias.empty()) return {};
  if (piece->bias_there == nullptr) EARNEST_RETURN_IF_ERROR(allocate(kOp, bias.size(), &piece->bias_there));
  part->bias = piece->bias_there.get();
  return copy(kOp, device_, piece->bias_there.get(), bias.data(), bias.size());
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
  product.device = device_;
  product.stream = arena->stream();
  return quantized::run(product, arena->take<char>(static_cast<int64_t>(quantized::workspace_size(product))));
}

Status QuantizedMatrix::row(int64_t index, void* out) const {
  return quantized::unpack({codes_, outputs_, inputs_}, parts_[0].packed, index, 1, type_, out);
}

}  // namespace earnest::engine
