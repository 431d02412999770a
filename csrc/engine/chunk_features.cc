// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/chunk_features.h"

#include "csrc/engine/device_memory.h"
#include "csrc/engine/guard.h"
#include "kernels/common/bfloat16.h"
#include "kernels/frames/frames.h"
#include "kernels/logmel/logmel_batch.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "features";

Status compute_on_cpu(const float* pcm, int64_t samples, int n_mels, float* bands) {
  logmel::Params params;
  params.pcm = pcm;
  params.samples = samples;
  params.n_mels = n_mels;
  params.padding = logmel::Padding::kStepAudio;
  params.out = bands;
  EARNEST_RETURN_IF_ERROR(logmel::run(params));
  return logmel::normalize(Device::kCpu, bands, mel_frames(samples) * n_mels, bands);
}

// One clip, as `earnest.model.features.hear` has them on cuda: bits do not depend on the batch.
Status launch(const float* pcm, int64_t samples, int n_mels, float* bands, Arena* arena,
              logmel::Clips* clips) {
  clips->pcm = pcm;
  clips->clips = 1;
  clips->samples = samples;
  clips->frames = mel_frames(samples);
  clips->n_mels = n_mels;
  clips->padding = logmel::Padding::kStepAudio;
  clips->out = bands;
  clips->stream = arena->stream();
  const int64_t bytes = logmel::workspace_size(1);
  clips->workspace = arena->take<char>(bytes);
  clips->fault = arena->take<FaultWord>(1);
  EARNEST_RETURN_IF_ERROR(
      fill(kOp, Device::kCuda, clips->workspace, 0, static_cast<size_t>(bytes), clips->stream));
  EARNEST_RETURN_IF_ERROR(fill(kOp, Device::kCuda, clips->fault, 0xff, sizeof *clips->fault, clips->stream));
  return logmel::run(*clips);
}

}  // namespace

template <typename T>
Status features_of(const float* pcm, int64_t samples, int64_t n_mels, T* mel, Arena* arena) {
  EARNEST_RETURN_IF_ERROR(logmel::check_n_mels(n_mels));
  const Arena::Scope scope(arena);
  const bool on_gpu = arena->device() == Device::kCuda;
  const auto bands = static_cast<int>(n_mels);
  frames::Transpose<T> job;
  job.rows = mel_frames(samples);
  job.width = n_mels;
  job.y = mel;
  job.stream = arena->stream();
  float* const computed = arena->take<float>(job.rows * job.width);
  job.x = computed;
  logmel::Clips clips;
  EARNEST_RETURN_IF_ERROR(on_gpu ? launch(pcm, samples, bands, computed, arena, &clips)
                                 : compute_on_cpu(pcm, samples, bands, computed));
  EARNEST_RETURN_IF_ERROR(frames::run(job, arena->device()));
  return on_gpu ? logmel::fault(clips) : Status();
}

template Status features_of(const float*, int64_t, int64_t, float*, Arena*);
template Status features_of(const float*, int64_t, int64_t, BFloat16*, Arena*);

}  // namespace earnest::engine
