// SPDX-License-Identifier: Apache-2.0
#include "kernels/pitch/pitch.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/pitch/checks.h"
#include "kernels/pitch/clip.h"
#include "kernels/pitch/path.h"
#include "kernels/pitch/pitch_cuda.h"

namespace earnest::pitch {
namespace {

constexpr int64_t kFramesPerTask = 64;

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

Status check_samples(const Backend& backend, const float* pcm, int64_t samples, int64_t before) {
  if (samples < 0 || (samples > 0 && pcm == nullptr)) {
    return invalid_argument("pitch", "pcm", "samples", "a null pointer or a negative number of them");
  }
  if (Status status = check_count(samples, before); !status.ok()) return status;
  return backend.in_range(pcm, samples) ? Status() : bad_sample(pcm, samples, before);
}

// Calls task(begin, end) for pieces of `size` of [0, count).
template <typename Task>
void in_pieces(int64_t count, int64_t size, const Task& task) {
  parallel_for((count + size - 1) / size,
               [&](int64_t i) { task(i * size, std::min(count, (i + 1) * size)); });
}

void track(const Backend& backend, const Params& params, int64_t frames) {
  const std::shared_ptr<const Tables> shared = tables_for(params.settings);
  const Tables& tables = *shared;
  const Raw raw{params.pcm, 0, params.samples, true};
  std::vector<float> filtered(static_cast<size_t>(halved_count(raw)));
  const Halved halved{filtered.data(), 0, static_cast<int64_t>(filtered.size())};
  in_pieces(halved.samples, kHalvedBlock * 32, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kHalvedBlock) {
      halve_block(backend, tables, raw, at, std::min(at + kHalvedBlock, end), filtered.data() + at);
    }
  });
  std::vector<Candidates> candidates(static_cast<size_t>(frames));
  in_pieces(frames, kFramesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      Candidates& here = candidates[static_cast<size_t>(t)];
      compute_frame(backend, tables, raw, halved, t, &here);
      params.voicing[t] = here.voicing;
      params.energy[t] = here.energy;
    }
  });
  PathSearch path(params.settings);
  float* f0 = params.f0;
  for (const Candidates& frame : candidates) f0 += path.push(frame, f0) ? 1 : 0;
  path.finish(f0);
}

}  // namespace

int64_t frame_count(int64_t samples) { return samples / kHop; }

Status which(Device device, std::string* name) {
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
  if (Status status = check(params); !status.ok()) return status;
  if (Status status = check_samples(*backend, params.pcm, params.samples, 0); !status.ok()) return status;
  const int64_t frames = frame_count(params.samples);
  if (frames == 0) return {};
  try {
    track(*backend, params, frames);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  return {};
}

// Frames are computed when their samples are in, and wait for the path's decision.
struct Stream::State {
  explicit State(const Settings& settings) : shared(tables_for(settings)), tables(*shared), path(settings) {}

  const std::shared_ptr<const Tables> shared;
  const Tables& tables;
  PathSearch path;
  std::vector<float> raw, halved;  // from raw_first and halved_first on: all that is still needed
  int64_t raw_first = 0, halved_first = 0;
  int64_t pushed = 0;    // samples so far
  int64_t computed = 0;  // frames
  bool finished = false;
  std::vector<float> f0, voicing, energy;  // not read yet; f0 only of decided frames

  int64_t halved_end() const { return halved_first + static_cast<int64_t>(halved.size()); }
  void drop_unneeded();
  void reserve(int64_t samples);
  void advance(const Backend& backend);
};

void Stream::State::drop_unneeded() {
  const int64_t wanted = std::max<int64_t>(kHalvedHop * computed - tables.width / 2, halved_first);
  const int64_t next_halved = std::min(wanted, halved_end());
  halved.erase(halved.begin(), halved.begin() + (next_halved - halved_first));
  halved_first = next_halved;
  // The last sample stays: it goes on beyond the end.
  const int64_t needed = std::min({2 * halved_end() - kReach, kHop * (computed - 1), pushed - 1});
  const int64_t next_raw = std::max(needed, raw_first);
  raw.erase(raw.begin(), raw.begin() + (next_raw - raw_first));
  raw_first = next_raw;
}

// All memory that the next `samples` samples and the end can need, so that nothing fails halfway.
void Stream::State::reserve(int64_t samples) {
  const auto more = [](std::vector<float>* values, int64_t count) {
    const size_t wanted = values->size() + static_cast<size_t>(count);
    if (wanted > values->capacity()) values->reserve(std::max(wanted, 2 * values->capacity()));
  };
  more(&raw, samples);
  more(&halved, samples / 2 + 2 * kReach);
  const int64_t frames = samples / kHop + tables.width / kHalvedHop + kLookahead + 4;
  for (std::vector<float>* values : {&f0, &voicing, &energy}) more(values, frames);
}

void Stream::State::advance(const Backend& backend) {
  const Raw so_far{raw.data(), raw_first, pushed, finished};
  const int64_t end = halved_count(so_far);
  for (int64_t at = halved_end(); at < end;) {
    const int64_t stop = std::min(at + kHalvedBlock, end);
    halved.resize(static_cast<size_t>(stop - halved_first));
    halve_block(backend, tables, so_far, at, stop, halved.data() + (at - halved_first));
    at = stop;
  }
  const Halved filtered{halved.data(), halved_first, halved_end()};
  for (; computed < frame_count(pushed) && covers(tables, filtered.samples, finished, computed); ++computed) {
    Candidates candidates;
    compute_frame(backend, tables, so_far, filtered, computed, &candidates);
    voicing.push_back(candidates.voicing);
    energy.push_back(candidates.energy);
    if (float hz; path.push(candidates, &hz)) f0.push_back(hz);
  }
  if (finished) {
    float rest[kLookahead];
    f0.insert(f0.end(), rest, rest + path.finish(rest));
  }
}

Stream::Stream(std::unique_ptr<State> state) : state_(std::move(state)) {}
Stream::~Stream() = default;

Status Stream::create(Device device, const Settings& settings, std::unique_ptr<Stream>* stream) {
  const Backend* backend = nullptr;
  if (Status status = choose(device, &backend); !status.ok()) return status;
  if (Status status = check(settings); !status.ok()) return status;
  try {
    stream->reset(new Stream(std::make_unique<State>(settings)));
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  return {};
}

Status Stream::push(const float* pcm, int64_t samples) {
  const Backend* backend = nullptr;
  if (Status status = choose(Device::kCpu, &backend); !status.ok()) return status;
  if (state_->finished)
    return invalid_argument("pitch", "push", "a stream that is not finished", "one that is");
  if (Status status = check_samples(*backend, pcm, samples, state_->pushed); !status.ok()) return status;
  if (samples == 0) return {};
  try {
    state_->drop_unneeded();
    state_->reserve(samples);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  state_->raw.insert(state_->raw.end(), pcm, pcm + samples);
  state_->pushed += samples;
  state_->advance(*backend);
  return {};
}

Status Stream::finish() {
  const Backend* backend = nullptr;
  if (Status status = choose(Device::kCpu, &backend); !status.ok()) return status;
  if (state_->finished)
    return invalid_argument("pitch", "finish", "a stream that is not finished", "one that is");
  if (state_->pushed == 0) return invalid_argument("pitch", "pcm", "at least one sample", "none");
  try {
    state_->reserve(0);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  state_->finished = true;
  state_->advance(*backend);
  return {};
}

int64_t Stream::ready() const { return static_cast<int64_t>(state_->f0.size()); }

Status Stream::read(int64_t frames, float* f0, float* voicing, float* energy) {
  if (frames < 0 || frames > ready()) {
    const std::string expected = "at most the " + std::to_string(ready()) + " that are ready";
    return invalid_argument("pitch", "frames", expected, std::to_string(frames));
  }
  if (frames == 0) return {};
  if (f0 == nullptr || voicing == nullptr || energy == nullptr) {
    return invalid_argument("pitch", "out", "memory for the frames", "a null pointer");
  }
  const auto take = [frames](std::vector<float>* values, float* out) {
    std::copy(values->begin(), values->begin() + frames, out);
    values->erase(values->begin(), values->begin() + frames);
  };
  take(&state_->f0, f0);
  take(&state_->voicing, voicing);
  take(&state_->energy, energy);
  return {};
}

}  // namespace earnest::pitch
