// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/features.h"

#include <algorithm>
#include <utility>

#include "csrc/engine/guard.h"
#include "kernels/frames/frames.h"

namespace earnest::engine {
namespace {

// [n_mels, frames] at `from` to rows of frames at `to`.
Status transpose(const float* from, int64_t n_mels, int64_t frames, float* to) {
  frames::Transpose<float> job;
  job.rows = frames;
  job.width = n_mels;
  job.x = from;
  job.y = to;
  return frames::run(job);
}

}  // namespace

int64_t mel_frames(int64_t samples) { return logmel::frame_count(samples, logmel::Padding::kStepAudio); }

std::vector<int64_t> chunk_sizes(int64_t samples) {
  std::vector<int64_t> sizes;
  if (samples > 0 && samples <= kMaxChunkSamples) sizes.push_back(samples);
  for (int64_t start = 0; samples > kMaxChunkSamples && start < samples; start += kChunkSamples) {
    sizes.push_back(std::min(kChunkSamples, samples - start));
  }
  return sizes;
}

Status ClipFeatures::create(int64_t n_mels, Device device, std::unique_ptr<ClipFeatures>* features) {
  return guarded("features", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(logmel::check_n_mels(n_mels));
    std::unique_ptr<ClipFeatures> made(new ClipFeatures(n_mels, device));
    EARNEST_RETURN_IF_ERROR(made->begin());
    *features = std::move(made);
    return {};
  });
}

Status ClipFeatures::begin() {
  pcm_.clear();
  raw_.clear();
  // Room for the longest chunk, so that small pushes do not copy all there is each time.
  pcm_.reserve(static_cast<size_t>(kMaxChunkSamples + 1));
  if (device_ == Device::kCuda) return {};
  EARNEST_RETURN_IF_ERROR(
      logmel::Stream::create(Device::kCpu, static_cast<int>(n_mels_), logmel::Padding::kStepAudio, &stream_));
  raw_.reserve(static_cast<size_t>(mel_frames(kMaxChunkSamples + 1) * n_mels_));
  return {};
}

Status ClipFeatures::push(const float* pcm, int64_t samples, std::vector<Chunk>* closed) {
  if (samples < 0 || (samples > 0 && pcm == nullptr))
    return invalid_argument("features", "pcm", "samples", "a null pointer or a negative number of them");
  return guarded("features", [&]() -> Status {
    while (samples > 0) {
      // One sample beyond the longest single chunk shows that the clip has to be split.
      const int64_t limit = split_ ? kChunkSamples : kMaxChunkSamples + 1;
      const size_t before = pcm_.size();
      const int64_t count = std::min(samples, limit - static_cast<int64_t>(before));
      EARNEST_RETURN_IF_ERROR(take(pcm, count));
      if (static_cast<int64_t>(pcm_.size()) == limit) {
        const Status status = guarded("features", [&] { return split_ ? close(closed) : split(closed); });
        if (!status.ok() && device_ == Device::kCuda) pcm_.resize(before);  // nothing was made of them yet
        EARNEST_RETURN_IF_ERROR(status);
      }
      pcm += count;
      samples -= count;
      pushed_ += count;
    }
    return {};
  });
}

Status ClipFeatures::finish(std::vector<Chunk>* closed) {
  return guarded("features", [&]() -> Status {
    if (!pcm_.empty()) EARNEST_RETURN_IF_ERROR(close(closed));
    split_ = false;
    pushed_ = 0;
    return {};
  });
}

Status ClipFeatures::take(const float* pcm, int64_t samples) {
  if (device_ == Device::kCuda) {
    EARNEST_RETURN_IF_ERROR(logmel::check_samples(pcm, samples, static_cast<int64_t>(pcm_.size())));
    pcm_.insert(pcm_.end(), pcm, pcm + samples);
    return {};
  }
  EARNEST_RETURN_IF_ERROR(stream_->push(pcm, samples));
  pcm_.insert(pcm_.end(), pcm, pcm + samples);
  return read_ready();
}

Status ClipFeatures::read_ready() {
  const int64_t frames = stream_->ready();
  if (frames == 0) return {};
  const size_t old = raw_.size(), more = static_cast<size_t>(frames * n_mels_);
  read_.resize(more);
  raw_.resize(old + more);
  EARNEST_RETURN_IF_ERROR(stream_->read(frames, read_.data()));
  return transpose(read_.data(), n_mels_, frames, raw_.data() + old);
}

// The open chunk ends here.
Status ClipFeatures::close(std::vector<Chunk>* closed) {
  if (device_ == Device::kCuda) return hand_on(static_cast<int64_t>(pcm_.size()), closed);
  EARNEST_RETURN_IF_ERROR(stream_->finish());
  EARNEST_RETURN_IF_ERROR(read_ready());
  Chunk chunk;
  chunk.samples = static_cast<int64_t>(pcm_.size());
  chunk.frames = mel_frames(chunk.samples);
  chunk.mel = std::move(raw_);
  EARNEST_RETURN_IF_ERROR(normalise(&chunk));
  closed->push_back(std::move(chunk));
  return begin();
}

// The clip turns out to be longer than one chunk: the first 25 s are one, and what is beyond begins the next.
Status ClipFeatures::split(std::vector<Chunk>* closed) {
  if (device_ == Device::kCuda) {
    EARNEST_RETURN_IF_ERROR(hand_on(kChunkSamples, closed));
    split_ = true;
    return {};
  }
  Chunk chunk;
  chunk.samples = kChunkSamples;
  chunk.frames = mel_frames(kChunkSamples);
  chunk.mel.resize(static_cast<size_t>(chunk.frames * n_mels_));
  read_.resize(chunk.mel.size());
  logmel::Params params;
  params.pcm = pcm_.data();
  params.samples = chunk.samples;
  params.n_mels = static_cast<int>(n_mels_);
  params.padding = logmel::Padding::kStepAudio;
  params.out = read_.data();
  EARNEST_RETURN_IF_ERROR(logmel::run(params));
  EARNEST_RETURN_IF_ERROR(transpose(read_.data(), n_mels_, chunk.frames, chunk.mel.data()));
  EARNEST_RETURN_IF_ERROR(normalise(&chunk));
  closed->push_back(std::move(chunk));
  const std::vector<float> rest(pcm_.begin() + kChunkSamples, pcm_.end());
  EARNEST_RETURN_IF_ERROR(begin());
  split_ = true;
  return take(rest.data(), static_cast<int64_t>(rest.size()));
}

// The first samples of the open chunk are one, and what is beyond begins the next. Memory is asked for before
// anything changes.
Status ClipFeatures::hand_on(int64_t samples, std::vector<Chunk>* closed) {
  PageVector<float> rest;
  rest.reserve(pcm_.capacity());
  rest.assign(pcm_.begin() + samples, pcm_.end());
  closed->reserve(closed->size() + 1);
  pcm_.resize(static_cast<size_t>(samples));
  Chunk chunk;
  chunk.samples = samples;
  chunk.frames = mel_frames(samples);
  chunk.pcm = std::move(pcm_);
  closed->push_back(std::move(chunk));
  pcm_ = std::move(rest);
  return {};
}

Status ClipFeatures::normalise(Chunk* chunk) const {
  float* mel = chunk->mel.data();
  return logmel::normalize(Device::kCpu, mel, chunk->frames * n_mels_, mel);
}

}  // namespace earnest::engine
