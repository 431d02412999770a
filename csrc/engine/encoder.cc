// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/encoder.h"

#include <algorithm>
#include <string>
#include <vector>

#include "csrc/engine/attend.h"
#include "csrc/engine/gather_rows.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/parcel.h"
#include "csrc/engine/windows.h"
#include "kernels/frames/frames.h"

namespace earnest::engine {
namespace {

constexpr double kEps = 1e-5;  // of all norms; no published config says otherwise

template <typename T>
Status gelu(T* x, int64_t count, Device device) {
  frames::Gelu<T> job;
  job.count = count;
  job.x = job.y = x;
  return frames::run(job, device);
}

// x += y
template <typename T>
Status add(const T* y, int64_t count, T* x, Device device) {
  frames::Add<T> job;
  job.count = count;
  job.x = job.sum = x;
  job.y = y;
  return frames::run(job, device);
}

}  // namespace

// What a pass reads of the host, where it runs; the frames of samples are computed there.
template <typename T>
struct Encoder::Sent {
  int64_t frames = 0, rows = 0;
  std::vector<T> numbers;                     // of the mel frames, if these are given
  std::vector<int64_t> first, second, parts;  // rows of windows; of qkv, one part after another
  int32_t valid_rows = 0;
  const T* mel = nullptr;
  const int64_t *first_windows = nullptr, *second_windows = nullptr, *apart = nullptr;
  const int32_t* valid = nullptr;

  Sent(const EncoderConfig& config, const Sound& sound)
      : frames(sound.frames),
        rows(config.positions(frames)),
        numbers(static_cast<size_t>(sound.mel == nullptr ? 0 : frames * config.n_mels)),
        first(windows_of(frames, 1, frames)),
        second(windows_of(frames, 2, rows)),
        valid_rows(static_cast<int32_t>(config.valid_positions(frames))) {
    for (size_t i = 0; i < numbers.size(); ++i) narrow(sound.mel[i], &numbers[i]);
    for (int64_t i = 0; i < 3 * rows; ++i) parts.push_back(i % rows * 3 + i / rows);
  }

  Status send(const Sound& sound, int64_t n_mels, Arena* arena) {
    const float* pcm = nullptr;
    Parcel parcel;
    parcel.add(numbers, &mel);
    parcel.add(sound.pcm, sound.samples, &pcm);
    parcel.add(first, &first_windows);
    parcel.add(second, &second_windows);
    parcel.add(parts, &apart);
    parcel.add(&valid_rows, 1, &valid);
    EARNEST_RETURN_IF_ERROR(parcel.send("encoder", arena));
    if (sound.mel != nullptr) return {};
    T* const computed = arena->take<T>(frames * n_mels);
    mel = computed;
    return features_of(pcm, sound.samples, n_mels, computed, arena);
  }
};

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

Status Encoder::run(const Sound& sound, void* out, Arena* arena) const {
  if (sound.frames < 0 || sound.frames > 2 * config_.n_audio_ctx) {
    return invalid_argument("encoder", "mel",
                            "at most " + std::to_string(2 * config_.n_audio_ctx) + " frames",
                            std::to_string(sound.frames));
  }
  if (sound.frames > 0 && sound.mel == nullptr && sound.pcm == nullptr) {
    return invalid_argument("encoder", "mel", "features or samples", "neither");
  }
  if (precision_ == Precision::kFloat32) return run_as(sound, static_cast<float*>(out), arena);
  return run_as(sound, static_cast<BFloat16*>(out), arena);
}

template <typename T>
Status Encoder::run_as(const Sound& sound, T* out, Arena* arena) const {
  const int64_t width = config_.n_audio_state, rows = config_.positions(sound.frames);
  const int64_t kept = config_.kept_frames(sound.frames);
  if (kept == 0) return {};
  const Arena::Scope scope(arena);
  const Device device = arena->device();
  Sent<T> sent(config_, sound);
  EARNEST_RETURN_IF_ERROR(sent.send(sound, config_.n_mels, arena));
  T* x = arena->take<T>(rows * width);
  EARNEST_RETURN_IF_ERROR(convolve(sent, x, arena));
  EARNEST_RETURN_IF_ERROR(add(positions_->as<T>(), rows * width, x, device));
  T* y = arena->take<T>(rows * width);
  for (const Block& block : blocks_) {
    EARNEST_RETURN_IF_ERROR(normalise(block.attention_norm, x, rows, y, arena));
    EARNEST_RETURN_IF_ERROR(attend(block, sent, y, arena));
    EARNEST_RETURN_IF_ERROR(add(y, rows * width, x, device));
    EARNEST_RETURN_IF_ERROR(normalise(block.mlp_norm, x, rows, y, arena));
    EARNEST_RETURN_IF_ERROR(feed_forward(block, rows, y, arena));
    EARNEST_RETURN_IF_ERROR(add(y, rows * width, x, device));
  }
  if (config_.avg_pool) {
    frames::AveragePool<T> pool;
    pool.rows = kept;
    pool.width = width;
    pool.x = x;
    pool.y = y;
    EARNEST_RETURN_IF_ERROR(frames::run(pool, device));
  }
  return normalise(after_norm_, config_.avg_pool ? y : x, kept, out, arena);
}

// x = gelu(conv2(gelu(conv1(mel)))), the second of stride 2.
template <typename T>
Status Encoder::convolve(const Sent<T>& sent, T* x, Arena* arena) const {
  const int64_t width = config_.n_audio_state, n_mels = config_.n_mels;
  const int64_t frames = sent.frames, rows = sent.rows;
  const Device device = arena->device();
  const Arena::Scope scope(arena);
  T* windows = arena->take<T>(3 * std::max(frames * n_mels, rows * width));
  T* once = arena->take<T>(frames * width);
  EARNEST_RETURN_IF_ERROR(
      gather_rows<T>(device, {sent.mel, frames}, {}, n_mels, sent.first_windows, 3 * frames, windows));
  EARNEST_RETURN_IF_ERROR(conv1_->multiply(windows, frames, once, arena));
  EARNEST_RETURN_IF_ERROR(gelu(once, frames * width, device));
  EARNEST_RETURN_IF_ERROR(
      gather_rows<T>(device, {once, frames}, {}, width, sent.second_windows, 3 * rows, windows));
  EARNEST_RETURN_IF_ERROR(conv2_->multiply(windows, rows, x, arena));
  return gelu(x, rows * width, device);
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
  return frames::run(job, arena->device());
}

// x = out(attention(x))
template <typename T>
Status Encoder::attend(const Block& block, const Sent<T>& sent, T* x, Arena* arena) const {
  const int64_t width = config_.n_audio_state, rows = sent.rows;
  const Arena::Scope scope(arena);
  T* qkv = arena->take<T>(3 * rows * width);
  T* apart = arena->take<T>(3 * rows * width);
  EARNEST_RETURN_IF_ERROR(block.qkv->multiply(x, rows, qkv, arena));
  EARNEST_RETURN_IF_ERROR(
      gather_rows<T>(arena->device(), {qkv, 3 * rows}, {}, width, sent.apart, 3 * rows, apart));
  attention::Params params =
      attention_over<T>(config_.n_audio_head, config_.n_audio_head, config_.head_dim());
  params.sequences = 1;
  params.tokens_q = params.tokens_k = rows;
  params.seqused_k = sent.valid;
  params.q = apart;
  params.k = apart + rows * width;
  params.v = apart + 2 * rows * width;
  T* mixed = qkv;  // of which nothing is needed any more
  EARNEST_RETURN_IF_ERROR(engine::attend(params, mixed, arena));
  return block.out->multiply(mixed, rows, x, arena);
}

// x = mlp(x)
template <typename T>
Status Encoder::feed_forward(const Block& block, int64_t rows, T* x, Arena* arena) const {
  const Arena::Scope scope(arena);
  T* wide = arena->take<T>(rows * 4 * config_.n_audio_state);
  EARNEST_RETURN_IF_ERROR(block.widen->multiply(x, rows, wide, arena));
  EARNEST_RETURN_IF_ERROR(gelu(wide, rows * 4 * config_.n_audio_state, arena->device()));
  return block.narrow->multiply(wide, rows, x, arena);
}

}  // namespace earnest::engine
