// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/encoder.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "csrc/engine/attend.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/windows.h"
#include "kernels/frames/frames.h"

namespace earnest::engine {
namespace {

constexpr double kEps = 1e-5;  // of all norms; no published config says otherwise

template <typename T>
Status gelu(T* x, int64_t count) {
  frames::Gelu<T> job;
  job.count = count;
  job.x = job.y = x;
  return frames::run(job);
}

// x += y
template <typename T>
Status add(const T* y, int64_t count, T* x) {
  frames::Add<T> job;
  job.count = count;
  job.x = job.sum = x;
  job.y = y;
  return frames::run(job);
}

}  // namespace

Status Encoder::create(const EncoderConfig& config, Weights* weights) {
  config_ = config;
  precision_ = weights->precision();
  const auto matrix = [&](const std::string& name, const Matrix** made) {
    return weights->matrix({{name + ".weight"}, {name + ".bias"}}, made);
  };
  const auto norm = [&](const std::string& name, Norm* made) -> Status {
    EARNEST_RETURN_IF_ERROR(weights->array(name + ".weight", &made->weight));
    return weights->array(name + ".bias", &made->bias);
  };
  EARNEST_RETURN_IF_ERROR(matrix("encoder.conv1", &conv1_));
  EARNEST_RETURN_IF_ERROR(matrix("encoder.conv2", &conv2_));
  EARNEST_RETURN_IF_ERROR(weights->array("encoder.positional_embedding.weight", &positions_));
  for (int64_t i = 0; i < config.n_audio_layer; ++i) {
    const std::string name = "encoder.blocks." + std::to_string(i) + ".", attn = name + "attn.";
    Block block;
    EARNEST_RETURN_IF_ERROR(norm(name + "attn_ln", &block.attention_norm));
    EARNEST_RETURN_IF_ERROR(norm(name + "mlp_ln", &block.mlp_norm));
    const MatrixNames qkv = {{attn + "query.weight", attn + "key.weight", attn + "value.weight"},
                             {attn + "query.bias", "", attn + "value.bias"}};
    EARNEST_RETURN_IF_ERROR(weights->matrix(qkv, &block.qkv));
    EARNEST_RETURN_IF_ERROR(matrix(attn + "out", &block.out));
    EARNEST_RETURN_IF_ERROR(matrix(name + "mlp.0", &block.widen));
    EARNEST_RETURN_IF_ERROR(matrix(name + "mlp.2", &block.narrow));
    blocks_.push_back(block);
  }
  return norm("encoder.after_norm", &after_norm_);
}

Status Encoder::run(const float* mel, int64_t frames, void* out, Arena* arena) const {
  if (frames < 0 || frames > 2 * config_.n_audio_ctx) {
    return invalid_argument("encoder", "mel",
                            "at most " + std::to_string(2 * config_.n_audio_ctx) + " frames",
                            std::to_string(frames));
  }
  if (precision_ == Precision::kFloat32) return run_as(mel, frames, static_cast<float*>(out), arena);
  return run_as(mel, frames, static_cast<BFloat16*>(out), arena);
}

template <typename T>
Status Encoder::run_as(const float* mel, int64_t frames, T* out, Arena* arena) const {
  const int64_t width = config_.n_audio_state, rows = config_.positions(frames);
  const int64_t kept = config_.kept_frames(frames);
  if (kept == 0) return {};
  const Arena::Scope scope(arena);
  T* x = arena->take<T>(rows * width);
  EARNEST_RETURN_IF_ERROR(convolve(mel, frames, x, arena));
  EARNEST_RETURN_IF_ERROR(add(positions_->as<T>(), rows * width, x));
  const auto valid = static_cast<int32_t>(config_.valid_positions(frames));
  T* y = arena->take<T>(rows * width);
  for (const Block& block : blocks_) {
    EARNEST_RETURN_IF_ERROR(normalise(block.attention_norm, x, rows, y, arena));
    EARNEST_RETURN_IF_ERROR(attend(block, rows, valid, y, arena));
    EARNEST_RETURN_IF_ERROR(add(y, rows * width, x));
    EARNEST_RETURN_IF_ERROR(normalise(block.mlp_norm, x, rows, y, arena));
    EARNEST_RETURN_IF_ERROR(feed_forward(block, rows, y, arena));
    EARNEST_RETURN_IF_ERROR(add(y, rows * width, x));
  }
  if (config_.avg_pool) {
    frames::AveragePool<T> pool;
    pool.rows = kept;
    pool.width = width;
    pool.x = x;
    pool.y = y;
    EARNEST_RETURN_IF_ERROR(frames::run(pool));
  }
  return normalise(after_norm_, config_.avg_pool ? y : x, kept, out, arena);
}

// x = gelu(conv2(gelu(conv1(mel)))), the second of stride 2.
template <typename T>
Status Encoder::convolve(const float* mel, int64_t frames, T* x, Arena* arena) const {
  const int64_t width = config_.n_audio_state, n_mels = config_.n_mels, rows = config_.positions(frames);
  const Arena::Scope scope(arena);
  T* heard = arena->take<T>(frames * n_mels);
  for (int64_t i = 0; i < frames * n_mels; ++i) narrow(mel[i], heard + i);
  T* windows = arena->take<T>(3 * std::max(frames * n_mels, rows * width));
  T* once = arena->take<T>(frames * width);
  gather_windows(heard, frames, n_mels, 1, frames, windows);
  EARNEST_RETURN_IF_ERROR(conv1_->multiply(windows, frames, once, arena));
  EARNEST_RETURN_IF_ERROR(gelu(once, frames * width));
  gather_windows(once, frames, width, 2, rows, windows);
  EARNEST_RETURN_IF_ERROR(conv2_->multiply(windows, rows, x, arena));
  return gelu(x, rows * width);
}

template <typename T>
Status Encoder::normalise(const Norm& norm, const T* x, int64_t rows, T* y, Arena* arena) const {
  const Arena::Scope scope(arena);
  frames::LayerNorm<T> job;
  job.rows = rows;
  job.width = config_.n_audio_state;
  job.eps = kEps;
  job.x = x;
  job.weight = norm.weight->template as<T>();
  job.bias = norm.bias->template as<T>();
  job.y = y;
  job.mean = arena->take<float>(rows);
  job.inverse = arena->take<float>(rows);
  return frames::run(job);
}

// x = out(attention(x))
template <typename T>
Status Encoder::attend(const Block& block, int64_t rows, int32_t valid, T* x, Arena* arena) const {
  const int64_t width = config_.n_audio_state;
  const Arena::Scope scope(arena);
  T* qkv = arena->take<T>(3 * rows * width);
  T* apart = arena->take<T>(3 * rows * width);
  EARNEST_RETURN_IF_ERROR(block.qkv->multiply(x, rows, qkv, arena));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t part = 0; part < 3; ++part) {
      std::memcpy(apart + (part * rows + i) * width, qkv + (3 * i + part) * width,
                  static_cast<size_t>(width) * sizeof(T));
    }
  }
  attention::Params params =
      attention_over<T>(config_.n_audio_head, config_.n_audio_head, config_.head_dim());
  params.sequences = 1;
  params.tokens_q = params.tokens_k = rows;
  params.seqused_k = &valid;
  params.q = apart;
  params.k = apart + rows * width;
  params.v = apart + 2 * rows * width;
  T* mixed = qkv;  // of which nothing is needed any more
  EARNEST_RETURN_IF_ERROR(attention::forward(params, {mixed, nullptr}));
  return block.out->multiply(mixed, rows, x, arena);
}

// x = mlp(x)
template <typename T>
Status Encoder::feed_forward(const Block& block, int64_t rows, T* x, Arena* arena) const {
  const Arena::Scope scope(arena);
  T* wide = arena->take<T>(rows * 4 * config_.n_audio_state);
  EARNEST_RETURN_IF_ERROR(block.widen->multiply(x, rows, wide, arena));
  EARNEST_RETURN_IF_ERROR(gelu(wide, rows * 4 * config_.n_audio_state));
  return block.narrow->multiply(wide, rows, x, arena);
}

}  // namespace earnest::engine
