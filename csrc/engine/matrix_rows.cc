// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/matrix_rows.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/common/thread_pool.h"

namespace earnest::engine {
namespace {

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

template <typename T>
void write_weights(const std::vector<TensorView>& weights, T* out) {
  for (const TensorView& view : weights) {
    if (view.shape.size() == 3) {
      lay_taps_outside(view, out);
    } else {
      copy_numbers(view, out);
    }
    out += view.count();
  }
}

template <typename T>
void write_biases(const std::vector<TensorView>& weights, const std::vector<TensorView>& biases, T* out) {
  for (size_t i = 0; i < biases.size(); ++i) {
    const int64_t count = weights[i].shape[0];
    if (biases[i].shape.empty()) {
      std::memset(out, 0, static_cast<size_t>(count) * sizeof(T));
    } else {
      read(biases[i], 0, count, out);
    }
    out += count;
  }
}

}  // namespace

linear::Type type_of(Precision precision) {
  return precision == Precision::kFloat32 ? linear::Type::kFloat32 : linear::Type::kBFloat16;
}

MatrixRows::MatrixRows(std::vector<TensorView> weights, std::vector<TensorView> biases, Precision precision)
    : weights_(std::move(weights)), biases_(std::move(biases)), precision_(precision) {
  for (const TensorView& weight : weights_) {
    outputs_ += weight.shape[0];
    inputs_ = weight.count() / weight.shape[0];
  }
}

size_t MatrixRows::bytes() const {
  return static_cast<size_t>(outputs_) * static_cast<size_t>(inputs_) * size_of(precision_);
}

size_t MatrixRows::bias_bytes() const {
  return biases_.empty() ? 0 : static_cast<size_t>(outputs_) * size_of(precision_);
}

const void* MatrixRows::in_place() const {
  const TensorView& first = weights_[0];
  const bool lies_so = weights_.size() == 1 && first.shape.size() == 2 &&
                       first.type == stored_type(precision_) &&
                       reinterpret_cast<uintptr_t>(first.data) % size_of(precision_) == 0;
  return lies_so ? first.data : nullptr;
}

void MatrixRows::write_weight(void* weight) const {
  if (precision_ == Precision::kFloat32) return write_weights(weights_, static_cast<float*>(weight));
  write_weights(weights_, static_cast<BFloat16*>(weight));
}

void MatrixRows::write_bias(void* bias) const {
  if (precision_ == Precision::kFloat32) return write_biases(weights_, biases_, static_cast<float*>(bias));
  write_biases(weights_, biases_, static_cast<BFloat16*>(bias));
}

void MatrixRows::let_go() const {
  for (const TensorView& view : weights_) engine::let_go(view);
}

}  // namespace earnest::engine
