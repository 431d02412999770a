// SPDX-License-Identifier: Apache-2.0
#include <span>

#include "csrc/capi/call.h"
#include "csrc/capi/handles.h"
#include "csrc/capi/results.h"

namespace earnest::capi {
namespace {

constexpr char kOp[] = "audio";

template <typename Sample>
earnest_status push(earnest_audio* audio, const Sample* samples, size_t frames) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "audio", audio));
    EARNEST_RETURN_IF_FAILED(check_count(kOp, "frames", frames, audio->channels * sizeof(Sample)));
    if (frames == 0) return {};
    EARNEST_RETURN_IF_FAILED(required(kOp, "samples", samples));
    return audio->clip->push(std::span<const Sample>(samples, frames * audio->channels));
  });
}

}  // namespace
}  // namespace earnest::capi

using namespace earnest::capi;

earnest_status earnest_audio_create(earnest_session* session, const char* role, uint32_t sample_rate,
                                    uint32_t channels, earnest_audio** audio) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "audio", audio));
    *audio = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    EARNEST_RETURN_IF_FAILED(required(kOp, "role", role));
    auto handle = std::make_unique<earnest_audio>();
    handle->channels = channels;
    EARNEST_RETURN_IF_FAILED(
        earnest::engine::SpokenClip::create(*session->session, role, sample_rate, channels, &handle->clip));
    *audio = handle.release();
    return {};
  });
}

earnest_status earnest_audio_push_f32(earnest_audio* audio, const float* samples, size_t frames) {
  return push(audio, samples, frames);
}

earnest_status earnest_audio_push_s16(earnest_audio* audio, const int16_t* samples, size_t frames) {
  return push(audio, samples, frames);
}

double earnest_audio_seconds(const earnest_audio* audio) { return audio ? audio->clip->seconds() : 0.0; }

earnest_status earnest_audio_clear(earnest_audio* audio) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "audio", audio));
    return audio->clip->clear();
  });
}

earnest_status earnest_audio_commit(earnest_audio* audio) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "audio", audio));
    return audio->clip->commit();
  });
}

void earnest_audio_destroy(earnest_audio* audio) { delete audio; }
