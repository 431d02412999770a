// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/adaptor.h"

#include <vector>

#include "csrc/engine/gather_rows.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/parcel.h"
#include "csrc/engine/windows.h"
#include "kernels/frames/frames.h"

namespace earnest::engine {

Status Adaptor::create(const EncoderConfig& config, Weights* weights) {
  precision_ = weights->precision();
  width_ = config.n_audio_state;
  const auto matrix = [&](const std::string& name, const Matrix** made) {
    return weights->matrix({{name + ".weight"}, {name + ".bias"}}, made);
  };
  EARNEST_RETURN_IF_ERROR(matrix("adapter.conv", &conv_));
  EARNEST_RETURN_IF_ERROR(matrix("adapter.linear1", &linear1_));
  return matrix("adapter.linear2", &linear2_);
}

Status Adaptor::run(const void* frames, int64_t count, void* out, Arena* arena) const {
  if (precision_ == Precision::kFloat32) {
    return run_as(static_cast<const float*>(frames), count, static_cast<float*>(out), arena);
  }
  return run_as(static_cast<const BFloat16*>(frames), count, static_cast<BFloat16*>(out), arena);
}

template <typename T>
Status Adaptor::run_as(const T* frames, int64_t count, T* out, Arena* arena) const {
  const int64_t tokens = (count + 1) / 2, inner = linear1_->outputs();
  const Arena::Scope scope(arena);
  T* windows = arena->take<T>(tokens * 3 * width_);
  T* x = arena->take<T>(tokens * width_);
  T* wide = arena->take<T>(tokens * inner);
  const std::vector<int64_t> index = windows_of(count, 2, tokens);
  const int64_t* index_there = nullptr;
  Parcel parcel;
  parcel.add(index, &index_there);
  EARNEST_RETURN_IF_ERROR(parcel.send("adaptor", arena));
  EARNEST_RETURN_IF_ERROR(
      gather_rows<T>(arena->device(), {frames, count}, {}, width_, index_there, 3 * tokens, windows));
  EARNEST_RETURN_IF_ERROR(conv_->multiply(windows, tokens, x, arena));
  frames::Gelu<T> gelu;
  gelu.count = tokens * width_;
  gelu.x = gelu.y = x;
  EARNEST_RETURN_IF_ERROR(frames::run(gelu, arena->device()));
  EARNEST_RETURN_IF_ERROR(linear1_->multiply(x, tokens, wide, arena));
  frames::Relu<T> relu;
  relu.count = tokens * inner;
  relu.x = relu.y = wide;
  EARNEST_RETURN_IF_ERROR(frames::run(relu, arena->device()));
  return linear2_->multiply(wide, tokens, out, arena);
}

}  // namespace earnest::engine
