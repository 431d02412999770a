// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/spoken_clip.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "csrc/engine/dialogue.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/wav.h"

namespace earnest::engine {
namespace {

constexpr int64_t kSamplesPerToken = 1280;  // at 16 kHz: 12.5 tokens a second

// Features are never of no frames, so that no samples pass for them.
Digest digest_of(const Chunk& chunk) {
  Sha256 hash;
  hash.add(static_cast<uint64_t>(chunk.pcm.empty() ? chunk.frames : 0));
  hash.add(chunk.mel.data(), chunk.mel.size() * sizeof(float));
  hash.add(chunk.pcm.data(), chunk.pcm.size() * sizeof(float));
  return hash.finish();
}

Chunks& chunks_of(SessionState* session) {
  return std::get<Chunks>(session->open->parts[session->spoken_part]);
}

}  // namespace

SpokenClip::SpokenClip(std::shared_ptr<Engine> engine, std::shared_ptr<SessionState> state, int64_t rate,
                       int64_t channels)
    : engine_(std::move(engine)), state_(std::move(state)), rate_(rate), channels_(channels) {}

Status SpokenClip::create(const Session& session, std::string_view role, int64_t rate, int64_t channels,
                          std::unique_ptr<SpokenClip>* clip) {
  if (channels < 1 || channels > kMostChannels) {
    return invalid_argument("audio", "channels", "1 to " + std::to_string(kMostChannels),
                            std::to_string(channels));
  }
  EngineCore& core = session.engine()->core();
  return guarded("audio", [&]() -> Status {
    SessionState* state = session.state().get();
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state, false));
    if (role == "assistant") {
      return invalid_argument("audio", "role", "one that may speak: not assistant", std::string(role));
    }
    std::unique_ptr<SpokenClip> made(new SpokenClip(session.engine(), session.state(), rate, channels));
    EARNEST_RETURN_IF_ERROR(made->begin());
    EARNEST_RETURN_IF_ERROR(add_part(&core, state, role, Chunks()));
    state->spoken_part = state->open->parts.size() - 1;
    made->set_open(true);
    *clip = std::move(made);
    return {};
  });
}

SpokenClip::~SpokenClip() {
  if (!open_) return;
  (void)guarded("audio", [&] { return remove(); });
  set_open(false);
}

void SpokenClip::set_open(bool open) {
  EngineCore& core = engine_->core();
  const std::lock_guard<std::mutex> lock(core.mutex);
  open_ = state_->speaking = open;
  core.retire_if_abandoned(state_);
}

// Its part goes, and the message where it has no other.
Status SpokenClip::remove() {
  auto& parts = state_->open->parts;
  parts.erase(parts.begin() + static_cast<int64_t>(state_->spoken_part));
  {
    const std::lock_guard<std::mutex> lock(engine_->core().mutex);
    if (parts.empty()) state_->open.reset();
  }
  return refresh_certain(&engine_->core(), state_.get());
}

Status SpokenClip::begin() {
  frames_ = 0;
  EARNEST_RETURN_IF_ERROR(Resampler::create(rate_, &resampler_));
  const LoadedModel& loaded = engine_->model();
  return ClipFeatures::create(loaded.config().audio.n_mels, loaded.model().device(), &features_);
}

Status SpokenClip::check_piece(size_t samples) const {
  if (!open_) return invalid_argument("audio", "clip", "one that was not committed", "one that was");
  if (samples % static_cast<size_t>(channels_) != 0) {
    return invalid_argument("audio", "samples", "whole frames of " + std::to_string(channels_),
                            std::to_string(samples) + " samples");
  }
  const int64_t more = static_cast<int64_t>(samples) / channels_;
  const int64_t room = engine_->model().context() - state_->closed();
  const double seconds = static_cast<double>(frames_ + more) / static_cast<double>(rate_);
  if (seconds * kSampleRate / kSamplesPerToken <= static_cast<double>(room)) return {};
  return {StatusCode::kContextFull,
          "[audio] samples: expected at most " + std::to_string(room * kSamplesPerToken / kSampleRate) +
              " s of sound in the context that is left, got " + std::to_string(seconds) + " s"};
}

Status SpokenClip::push(std::span<const float> samples) {
  return guarded("audio", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_piece(samples.size()));
    if (!std::all_of(samples.begin(), samples.end(), [](float x) { return std::isfinite(x); })) {
      return {StatusCode::kAudioFormat, "[audio] samples: expected finite numbers, got NaN or infinity"};
    }
    return mix(samples, 1.0);
  });
}

Status SpokenClip::push(std::span<const int16_t> samples) {
  return guarded("audio", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_piece(samples.size()));
    return mix(samples, 0x1p-15);
  });
}

// The mean of the channels, a second at a time, so that a long piece needs no copy of its own size.
template <typename Sample>
Status SpokenClip::mix(std::span<const Sample> samples, double scale) {
  const auto channels = static_cast<size_t>(channels_);
  const size_t piece = static_cast<size_t>(rate_) * channels;
  for (size_t first = 0; first < samples.size(); first += piece) {
    const std::span<const Sample> part = samples.subspan(first, std::min(piece, samples.size() - first));
    mono_.resize(part.size() / channels);
    for (size_t i = 0; i < mono_.size(); ++i) {
      double sum = 0;
      for (size_t channel = 0; channel < channels; ++channel) sum += part[i * channels + channel];
      mono_[i] = static_cast<float>(sum * scale / static_cast<double>(channels));
    }
    resampled_.clear();
    EARNEST_RETURN_IF_ERROR(resampler_->push(mono_, &resampled_));
    frames_ += static_cast<int64_t>(mono_.size());
    EARNEST_RETURN_IF_ERROR(hear(false));
  }
  return {};
}

// What was resampled goes on to features; chunks that close go into the dialogue.
Status SpokenClip::hear(bool last) {
  std::vector<Chunk> closed;
  EARNEST_RETURN_IF_ERROR(
      features_->push(resampled_.data(), static_cast<int64_t>(resampled_.size()), &closed));
  if (last) EARNEST_RETURN_IF_ERROR(features_->finish(&closed));
  if (closed.empty()) return {};
  EngineCore& core = engine_->core();
  for (Chunk& chunk : closed) {
    auto heard = std::make_shared<HeardChunk>();
    heard->digest = digest_of(chunk);
    heard->frames = chunk.frames;
    heard->rows = engine_->model().config().audio.audio_tokens(chunk.frames);
    heard->heard = heard->rows == 0;
    heard->mel = std::move(chunk.mel);
    heard->pcm = std::move(chunk.pcm);
    const std::lock_guard<std::mutex> lock(core.mutex);
    chunks_of(state_.get()).push_back(core.known(std::move(heard)));
  }
  EARNEST_RETURN_IF_ERROR(refresh_certain(&core, state_.get()));
  const std::lock_guard<std::mutex> lock(core.mutex);
  core.read_ahead(state_);
  return {};
}

double SpokenClip::seconds() const { return static_cast<double>(frames_) / static_cast<double>(rate_); }

Status SpokenClip::clear() {
  return guarded("audio", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_piece(0));
    EARNEST_RETURN_IF_ERROR(begin());
    chunks_of(state_.get()).clear();
    return refresh_certain(&engine_->core(), state_.get());
  });
}

Status SpokenClip::commit() {
  return guarded("audio", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_piece(0));
    if (frames_ == 0) {
      EARNEST_RETURN_IF_ERROR(remove());
      set_open(false);
      return {};
    }
    const int64_t samples = std::max<int64_t>(1, (frames_ * kSampleRate + rate_ / 2) / rate_);
    if (engine_->model().config().audio.audio_tokens(mel_frames(samples)) == 0) {
      return {StatusCode::kAudioFormat, "[audio] samples: expected none or more than 20 ms, got " +
                                            std::to_string(1000 * seconds()) + " ms"};
    }
    resampled_.clear();
    EARNEST_RETURN_IF_ERROR(resampler_->finish(&resampled_));
    EARNEST_RETURN_IF_ERROR(hear(true));
    set_open(false);
    return {};
  });
}

}  // namespace earnest::engine
