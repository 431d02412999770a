// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "csrc/engine/guard.h"
#include "kernels/common/thread_pool.h"
#include "kernels/linear/linear.h"

namespace earnest::engine {
namespace {

linear::Type type_of(Precision precision) {
  return precision == Precision::kFloat32 ? linear::Type::kFloat32 : linear::Type::kBFloat16;
}

StoredType stored_type(Precision precision) {
  return precision == Precision::kFloat32 ? StoredType::kFloat32 : StoredType::kBFloat16;
}

// [out, in, taps] -> [out, taps, in]: then a window of frames, one after another, is a row of the product.
template <typename T>
void lay_taps_outside(const TensorView& view, T* out) {
  const int64_t in = view.shape[1], taps = view.shape[2];
  std::vector<T> row(static_cast<size_t>(in * taps));
  for (int64_t i = 0; i < view.shape[0]; ++i, out += in * taps) {
    read(view, i * in * taps, in * taps, row.data());
    for (int64_t j = 0; j < in; ++j) {
      for (int64_t tap = 0; tap < taps; ++tap) out[tap * in + j] = row[static_cast<size_t>(j * taps + tap)];
    }
  }
}

// The numbers as they are, by all threads.
template <typename T>
void copy_numbers(const TensorView& view, T* out) {
  constexpr int64_t kPiece = int64_t{1} << 16;
  const int64_t count = view.count();
  parallel_for((count + kPiece - 1) / kPiece, [&](int64_t piece) {
    const int64_t first = piece * kPiece;
    read(view, first, std::min(kPiece, count - first), out + first);
  });
}

}  // namespace

PackedMatrix::PackedMatrix(std::vector<TensorView> weights, std::vector<TensorView> biases,
                           Precision precision, WeightMemory* memory)
    : weights_(std::move(weights)), biases_(std::move(biases)), precision_(precision), memory_(memory) {
  for (const TensorView& weight : weights_) {
    outputs_ += weight.shape[0];
    inputs_ = weight.count() / weight.shape[0];
  }
}

// The numbers themselves, where they lie as the kernel wants them.
const void* PackedMatrix::in_place() const {
  const TensorView& first = weights_[0];
  const bool lies_so = weights_.size() == 1 && first.shape.size() == 2 &&
                       first.type == stored_type(precision_) &&
                       reinterpret_cast<uintptr_t>(first.data) % size_of(precision_) == 0;
  return lies_so ? first.data : nullptr;
}

template <typename T>
void PackedMatrix::lay_out(T* weight, T* bias) const {
  for (size_t i = 0; i < weights_.size(); ++i) {
    const TensorView& view = weights_[i];
    if (weight != nullptr) {
      if (view.shape.size() == 3) {
        lay_taps_outside(view, weight);
      } else {
        copy_numbers(view, weight);
      }
      weight += view.count();
    }
    if (biases_.empty()) continue;
    if (biases_[i].shape.empty()) {
      std::memset(bias, 0, static_cast<size_t>(view.shape[0]) * sizeof(T));
    } else {
      read(biases_[i], 0, view.shape[0], bias);
    }
    bias += view.shape[0];
  }
}

Status PackedMatrix::refresh() {
  linear::Pack pack;
  pack.type = type_of(precision_);
  pack.columns = outputs_;
  pack.depth = inputs_;
  const size_t size = size_of(precision_);
  size_t bytes = 0;
  EARNEST_RETURN_IF_ERROR(linear::packed_size(pack, &bytes));
  std::unique_ptr<char[]> whole;
  pack.source = in_place();
  if (pack.source == nullptr) {
    const size_t count = static_cast<size_t>(outputs_) * static_cast<size_t>(inputs_);
    whole = std::make_unique_for_overwrite<char[]>(count * size);
    pack.source = whole.get();
  }
  if (!biases_.empty()) bias_.resize(static_cast<size_t>(outputs_) * size);
  void* weight = whole.get();
  if (precision_ == Precision::kFloat32) {
    lay_out(static_cast<float*>(weight), reinterpret_cast<float*>(bias_.data()));
  } else {
    lay_out(static_cast<BFloat16*>(weight), reinterpret_cast<BFloat16*>(bias_.data()));
  }
  if (packed_ == nullptr) {
    packed_ = memory_->take(bytes);
    packed_bytes_ = bytes;
  }
  EARNEST_RETURN_IF_ERROR(linear::run(pack, packed_));
  for (const TensorView& view : weights_) let_go(view);
  return {};
}

Status PackedMatrix::multiply(const void* x, int64_t rows, void* y, Arena* arena) const {
  const Arena::Scope scope(arena);
  linear::Product product;
  product.type = type_of(precision_);
  product.rows = rows;
  product.columns = outputs_;
  product.depth = inputs_;
  product.left = x;
  product.packed = packed_;
  product.bias = bias_.empty() ? nullptr : bias_.data();
  product.output = y;
  return linear::run(product, arena->take<char>(static_cast<int64_t>(linear::workspace_size(product))));
}

}  // namespace earnest::engine
