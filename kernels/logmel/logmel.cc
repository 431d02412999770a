// SPDX-License-Identifier: Apache-2.0
#include "kernels/logmel/logmel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/logmel/logmel_backend.h"
#include "kernels/logmel/logmel_cuda.h"
#include "kernels/logmel/signal.h"

namespace earnest::logmel {
namespace {

constexpr int64_t kFramesPerTask =
    256;  // a multiple of every back end's lanes, and work enough to wake a thread for

constexpr int64_t kMostAlone = 2;  // more frames than these are computed faster as a tile

Status choose(Device device, const Backend** backend) {
  if (device == Device::kCuda) return unsupported_cuda();
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier, CpuTier::kAvx512); !status.ok()) return status;
  *backend = &scalar::kBackend;
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx2) *backend = &avx2::kBackend;
  if (tier == CpuTier::kAvx512) *backend = &avx512::kBackend;
#endif
  return {};
}

// `before` samples of the same stream came earlier.
Status check_pointer(const float* pcm, int64_t samples, int64_t before) {
  if (samples < 0 || (samples > 0 && pcm == nullptr))
    return invalid_argument("logmel", "pcm", "samples", "a null pointer or a negative number of them");
  if (samples <= kMaxSamples - before) return {};
  return invalid_argument("logmel", "pcm", "at most 2^40 samples in all",
                          std::to_string(samples) + " after " + std::to_string(before));
}

// `before` samples of the same stream were checked earlier; the place of a bad one counts from the stream's
// start.
Status check_samples(const Backend& backend, const float* pcm, int64_t samples, int64_t before) {
  if (Status status = check_pointer(pcm, samples, before); !status.ok()) return status;
  if (backend.in_range(pcm, samples)) return {};
  const float* wrong =
      std::find_if(pcm, pcm + samples, [](float x) { return !(std::abs(x) <= kMaxMagnitude); });
  const std::string place = " at sample " + std::to_string(before + (wrong - pcm));
  const std::string value = std::isnan(*wrong) ? "nan" : std::isinf(*wrong) ? "inf" : std::to_string(*wrong);
  return invalid_argument("logmel", "pcm", "finite samples of magnitude at most 1e15", value + place);
}

Status out_of_memory() { return {StatusCode::kOutOfMemory, "[logmel] memory: expected some left, got none"}; }

// Frames [begin, end) to columns 0 .. of out.
void compute(const Backend& backend, const Tables& tables, const Signal& signal, int64_t begin, int64_t end,
             float* out, int64_t stride) {
  alignas(64) float scratch[kHop * (kMaxLanes - 1) + kWindow];
  const int lanes = backend.lanes;
  int64_t t = begin;
  while (end - t > kMostAlone) {
    const int count = static_cast<int>(std::min<int64_t>(lanes, end - t));
    const float* samples = signal.frames(t, count, 2 * count > lanes ? lanes : lanes / 2, scratch);
    backend.tile(tables, samples, count, out + (t - begin), stride);
    t += count;
  }
  for (; t < end; ++t) backend.one_frame(tables, signal.frames(t, 1, 1, scratch), out + (t - begin), stride);
}

}  // namespace

int64_t frame_count(int64_t samples, Padding padding) { return frames_in(samples, padding); }

Status check_n_mels(int64_t n_mels) {
  if (n_mels >= 1 && n_mels <= kMaxMels) return {};
  return invalid_argument("logmel", "n_mels", "1 to 256", std::to_string(n_mels));
}

Status check_samples(const float* pcm, int64_t samples, int64_t before) {
  const Backend* backend = nullptr;
  if (Status status = choose(Device::kCpu, &backend); !status.ok()) return status;
  return check_samples(*backend, pcm, samples, before);
}

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) return which_cuda(name);
  const Backend* backend = nullptr;
  if (Status status = choose(device, &backend); !status.ok()) return status;
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier, CpuTier::kAvx512); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

Status run(const Params& params) {
  const Backend* backend = nullptr;
  if (Status status = choose(params.device, &backend); !status.ok()) return status;
  if (Status status = check_n_mels(params.n_mels); !status.ok()) return status;
  if (params.samples == 0) return invalid_argument("logmel", "pcm", "at least one sample", "none");
  if (Status status = check_pointer(params.pcm, params.samples, 0); !status.ok()) return status;
  const int64_t frames = frame_count(params.samples, params.padding);
  if (frames == 0) return check_samples(*backend, params.pcm, params.samples, 0);
  if (params.out == nullptr)
    return invalid_argument("logmel", "out", "memory for the frames", "a null pointer");
  const Tables* tables = tables_for(params.n_mels);
  if (tables == nullptr) return out_of_memory();
  const Signal signal{params.pcm, 0, params.samples, params.samples + appended_zeros(params.padding)};
  const int64_t tasks = (frames + kFramesPerTask - 1) / kFramesPerTask;
  std::atomic<bool> fine{true};
  parallel_for(tasks, [&](int64_t task) {
    const int64_t begin = task * kFramesPerTask;
    const int64_t end = std::min(frames, begin + kFramesPerTask);
    // The samples are checked here, shortly before they are used, so that they cross memory once.
    const int64_t first = std::min(params.samples, kHop * begin);
    const int64_t last = task + 1 < tasks ? std::min(params.samples, kHop * end) : params.samples;
    if (!backend->in_range(params.pcm + first, last - first)) fine = false;
    compute(*backend, *tables, signal, begin, end, params.out + begin, frames);
  });
  return fine ? Status() : check_samples(*backend, params.pcm, params.samples, 0);
}

Status normalize(Device device, const float* raw, int64_t count, float* out) {
  const Backend* backend = nullptr;
  if (Status status = choose(device, &backend); !status.ok()) return status;
  if (count < 0 || (count > 0 && (raw == nullptr || out == nullptr))) {
    return invalid_argument("logmel", "raw", "features", "a null pointer or a negative number of them");
  }
  if (count > 0) backend->normalize(raw, count, out);
  return {};
}

Status Stream::create(Device device, int n_mels, Padding padding, std::unique_ptr<Stream>* stream) {
  const Backend* backend = nullptr;
  if (Status status = choose(device, &backend); !status.ok()) return status;
  if (Status status = check_n_mels(n_mels); !status.ok()) return status;
  stream->reset(new (std::nothrow) Stream(n_mels, padding));
  if (*stream == nullptr || tables_for(n_mels) == nullptr) return out_of_memory();
  return {};
}

Status Stream::push(const float* pcm, int64_t samples) {
  const Backend* backend = nullptr;
  if (Status status = choose(Device::kCpu, &backend); !status.ok()) return status;
  if (finished_) return invalid_argument("logmel", "push", "a stream that is not finished", "one that is");
  if (Status status = check_samples(*backend, pcm, samples, pushed_); !status.ok()) return status;
  try {
    // What no later frame needs goes first, so that a stream that is read holds little.
    const int64_t needed = std::max<int64_t>(0, kHop * next_ - kWindow / 2);
    if (const int64_t unused = std::min(needed, pushed_) - first_; unused > 0) {
      held_.erase(held_.begin(), held_.begin() + unused);
      first_ += unused;
    }
    held_.insert(held_.end(), pcm, pcm + samples);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  pushed_ += samples;
  return {};
}

Status Stream::finish() {
  if (finished_) return invalid_argument("logmel", "finish", "a stream that is not finished", "one that is");
  if (pushed_ == 0) return invalid_argument("logmel", "pcm", "at least one sample", "none");
  finished_ = true;
  return {};
}

int64_t Stream::ready(int64_t more) const {
  const int64_t samples = pushed_ + std::min(more, kMaxSamples - pushed_);
  if (finished_) return frame_count(samples, padding_) - next_;
  return whole_frames(samples) - next_;
}

Status Stream::read(int64_t frames, float* out) {
  const Backend* backend = nullptr;
  if (Status status = choose(Device::kCpu, &backend); !status.ok()) return status;
  if (frames < 0 || frames > ready()) {
    const std::string expected = "at most the " + std::to_string(ready()) + " that are ready";
    return invalid_argument("logmel", "frames", expected, std::to_string(frames));
  }
  if (frames == 0) return {};
  if (out == nullptr) return invalid_argument("logmel", "out", "memory for the frames", "a null pointer");
  const Signal signal{held_.data(), first_, pushed_, pushed_ + (finished_ ? appended_zeros(padding_) : 0)};
  compute(*backend, *tables_for(n_mels_), signal, next_, next_ + frames, out, frames);
  next_ += frames;
  return {};
}

}  // namespace earnest::logmel
