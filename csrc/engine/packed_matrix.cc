// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/packed_matrix.h"

#include <memory>

#include "csrc/engine/guard.h"

namespace earnest::engine {

Status PackedMatrix::refresh() {
  linear::Pack pack;
  pack.type = type_of(rows_.precision());
  pack.columns = outputs();
  pack.depth = inputs();
  size_t bytes = 0;
  EARNEST_RETURN_IF_ERROR(linear::packed_size(pack, &bytes));
  std::unique_ptr<char[]> whole;
  pack.source = rows_.in_place();
  if (pack.source == nullptr) {
    whole = std::make_unique_for_overwrite<char[]>(rows_.bytes());
    rows_.write_weight(whole.get());
    pack.source = whole.get();
  }
  bias_.resize(rows_.bias_bytes());
  rows_.write_bias(bias_.data());
  if (packed_ == nullptr) {
    packed_ = memory_->take(bytes);
    packed_bytes_ = bytes;
  }
  EARNEST_RETURN_IF_ERROR(linear::run(pack, packed_));
  rows_.let_go();
  return {};
}

Status PackedMatrix::multiply(const void* x, int64_t rows, void* y, Arena* arena) const {
  const Arena::Scope scope(arena);
  linear::Product product;
  product.type = type_of(rows_.precision());
  product.rows = rows;
  product.columns = outputs();
  product.depth = inputs();
  product.left = x;
  product.packed = packed_;
  product.bias = bias_.empty() ? nullptr : bias_.data();
  product.output = y;
  return linear::run(product, arena->take<char>(static_cast<int64_t>(linear::workspace_size(product))));
}

}  // namespace earnest::engine
