// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/device_matrix.h"

#include <memory>

#include "csrc/engine/guard.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "load";

// Rows or biases, written by the host and copied; the place is kept from one time to the next.
template <typename Write>
Status write_there(size_t bytes, const void* in_place, const Write& write, DeviceMemory* there) {
  std::unique_ptr<char[]> whole;
  if (in_place == nullptr) {
    whole = std::make_unique_for_overwrite<char[]>(bytes);
    write(whole.get());
  }
  if (*there == nullptr) EARNEST_RETURN_IF_ERROR(allocate(kOp, bytes, there));
  return copy(kOp, Device::kCuda, there->get(), in_place == nullptr ? whole.get() : in_place, bytes);
}

}  // namespace

Status DeviceMatrix::refresh() {
  if (rows_.bias_bytes() > 0) {
    EARNEST_RETURN_IF_ERROR(
        write_there(rows_.bias_bytes(), nullptr, [&](void* bias) { rows_.write_bias(bias); }, &bias_));
  }
  if (array_ != nullptr) return {};
  EARNEST_RETURN_IF_ERROR(write_there(
      rows_.bytes(), rows_.in_place(), [&](void* weight) { rows_.write_weight(weight); }, &weight_));
  rows_.let_go();
  return {};
}

Status DeviceMatrix::multiply(const void* x, int64_t rows, void* y, Arena* arena) const {
  const Arena::Scope scope(arena);
  linear::Product product;
  product.device = Device::kCuda;
  product.type = type_of(rows_.precision());
  product.rows = rows;
  product.columns = outputs();
  product.depth = inputs();
  product.left = x;
  product.packed = array_ == nullptr ? weight_.get() : array_->data();
  product.bias = bias_.get();
  product.output = y;
  return linear::run(product, arena->take<char>(static_cast<int64_t>(linear::workspace_size(product))));
}

}  // namespace earnest::engine
