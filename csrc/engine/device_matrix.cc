// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/device_matrix.h"

#include <array>

namespace earnest::engine {
namespace {

constexpr size_t kMostPieces = 4;  // queries, keys and values are three

}  // namespace

DeviceMatrix::DeviceMatrix(std::vector<Piece> pieces, int64_t inputs, linear::Type type, Products products)
    : pieces_(std::move(pieces)),
      inputs_(inputs),
      type_(type),
      path_(products == Products::kVendor ? linear::CudaPath::kVendor : linear::CudaPath::kBest) {
  for (const Piece& piece : pieces_) outputs_ += piece.outputs;
}

Status DeviceMatrix::multiply(const void* x, int64_t rows, void* y, Arena* arena) const {
  const Arena::Scope scope(arena);
  std::array<linear::Part, kMostPieces> parts;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& piece = pieces_[i];
    parts.at(i) = {piece.weight->data(), piece.outputs, piece.bias == nullptr ? nullptr : piece.bias->data()};
  }
  linear::Product product;
  product.device = Device::kCuda;
  product.stream = arena->stream();
  product.type = type_;
  product.rows = rows;
  product.columns = outputs_;
  product.depth = inputs_;
  product.left = x;
  product.parts = parts.data();
  product.count = static_cast<int64_t>(pieces_.size());
  product.output = y;
  product.path = path_;
  return linear::run(product, arena->take<char>(static_cast<int64_t>(linear::workspace_size(product))));
}

}  // namespace earnest::engine
