// SPDX-License-Identifier: Apache-2.0
// Calls of log-mel on the device of Device::kCuda, for tests, and what is right.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/logmel/logmel_batch.h"
#include "kernels/logmel/signal.h"
#include "kernels/logmel/tables.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

namespace logmel_calls {

using namespace earnest;
using logmel::Padding;

using Pcm = std::vector<float>;
constexpr Padding kPaddings[] = {Padding::kWhisper, Padding::kStepAudio};

inline Pcm noise(int64_t samples, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  Pcm pcm(static_cast<size_t>(samples));
  for (float& x : pcm) x = uniform(random);
  return pcm;
}

// Harmonics over six decades of power, and faint noise: loud and nearly silent bands in one frame.
inline Pcm speechlike(int64_t samples) {
  Pcm pcm = noise(samples, 7);
  for (size_t i = 0; i < pcm.size(); ++i) {
    const double t = static_cast<double>(i) / 16000;
    double wave = 0.1 * std::sin(9000 * t * t);
    for (int k = 1; k < 20; ++k) wave += std::sin(2 * M_PI * 130 * k * t) / (k * k);
    pcm[i] = static_cast<float>(0.2 * wave + 2e-4 * pcm[i]);
  }
  return pcm;
}

inline std::vector<int64_t> sums(const std::vector<int64_t>& counts) {
  std::vector<int64_t> result = {0};
  for (int64_t count : counts) result.push_back(result.back() + count);
  return result;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

// ---- clips ----

// Arrays of a batch on the device, and its call.
class Batch {
 public:
  Batch(const std::vector<Pcm>& clips, int n_mels, Padding padding, bool normalized) {
    Pcm all;
    std::vector<int64_t> samples, frames;
    for (const Pcm& clip : clips) {
      all.insert(all.end(), clip.begin(), clip.end());
      samples.push_back(static_cast<int64_t>(clip.size()));
      frames.push_back(logmel::frame_count(samples.back(), padding));
    }
    samples_ = sums(samples), frames_ = sums(frames);
    pcm_.emplace(all), cu_samples_.emplace(samples_), cu_frames_.emplace(frames_);
    out_.emplace(std::vector<float>(static_cast<size_t>(n_mels * frames_.back()), 77.0f));
    workspace_.emplace(
        std::vector<char>(static_cast<size_t>(logmel::workspace_size(call.clips = samples_.size() - 1))));
    fault_.emplace(std::vector<FaultWord>{kNoFault});
    call.pcm = pcm_->data(), call.samples = samples_.back(), call.cu_samples = cu_samples_->data();
    call.frames = frames_.back(), call.cu_frames = cu_frames_->data(), call.n_mels = n_mels,
    call.padding = padding;
    call.normalized = normalized, call.out = out_->data(), call.workspace = workspace_->data();
    call.fault = fault_->data();
  }

  std::vector<float> out() const { return out_->values(); }
  std::vector<float> out_of(size_t c) const {
    const std::vector<float> all = out();
    return {all.begin() + call.n_mels * frames_[c], all.begin() + call.n_mels * frames_[c + 1]};
  }
  bool workspace_is_clear() const {
    const std::vector<char> bytes = workspace_->values();
    return std::count(bytes.begin(), bytes.end(), 0) == static_cast<int64_t>(bytes.size());
  }

  logmel::Clips call;

 private:
  std::vector<int64_t> samples_, frames_;
  std::optional<OnDevice<float>> pcm_, out_;
  std::optional<OnDevice<int64_t>> cu_samples_, cu_frames_;
  std::optional<OnDevice<char>> workspace_;
  std::optional<OnDevice<FaultWord>> fault_;
};

inline std::vector<float> alone(const Pcm& pcm, int n_mels, Padding padding, bool normalized) {
  Batch batch({pcm}, n_mels, padding, normalized);
  CHECK(logmel::run(batch.call).ok());
  CHECK(logmel::fault(batch.call).ok());
  return batch.out();
}

// ---- what is right ----

inline std::vector<float> oracle(const Pcm& pcm, int n_mels, Padding padding) {
  const int64_t samples = static_cast<int64_t>(pcm.size());
  std::vector<float> out(static_cast<size_t>(n_mels * logmel::frame_count(samples, padding)));
  CHECK(logmel::reference({Device::kCpu, pcm.data(), samples, n_mels, padding, out.data()}).ok());
  return out;
}

inline std::vector<float> normalized(std::vector<float> raw) {
  CHECK(logmel::normalize(Device::kCpu, raw.data(), static_cast<int64_t>(raw.size()), raw.data()).ok());
  return raw;
}

using Spectrum = std::vector<std::complex<float>>;

// Cooley and Tukey's transform as textbooks have it, by the least factor.
inline Spectrum transform(const Spectrum& x) {
  const size_t n = x.size();
  if (n == 1) return x;
  size_t factor = 2;
  while (n % factor != 0) ++factor;
  Spectrum result(n);
  for (size_t q = 0; q < factor; ++q) {
    Spectrum part(n / factor);
    for (size_t i = 0; i < part.size(); ++i) part[i] = x[factor * i + q];
    part = transform(part);
    for (size_t k = 0; k < n; ++k) {
      const double angle = -2 * M_PI * static_cast<double>(q * k % n) / static_cast<double>(n);
      result[k] += part[k % part.size()] * std::complex<float>(std::polar(1.0, angle));
    }
  }
  return result;
}

// The formula in plain float32 with such a transform: what our error is measured by. (torch.stft's is the
// same to some tens of percent.)
inline std::vector<float> plain(const Pcm& pcm, int n_mels, Padding padding) {
  const int64_t samples = static_cast<int64_t>(pcm.size()), frames = logmel::frame_count(samples, padding);
  const logmel::Signal signal{pcm.data(), 0, samples, samples + logmel::appended_zeros(padding)};
  std::vector<float> out(static_cast<size_t>(n_mels * frames));
  for (int64_t t = 0; t < frames; ++t) {
    Spectrum x(400);
    for (size_t j = 0; j < 400; ++j) {
      const auto hann = static_cast<float>(0.5 - 0.5 * std::cos(M_PI * static_cast<double>(j) / 200));
      x[j] = hann * signal.at(160 * t - 200 + static_cast<int64_t>(j));
    }
    x = transform(x);
    for (int m = 0; m < n_mels; ++m) {
      float sum = 0;
      for (int k = 0; k <= 200; ++k)
        sum += static_cast<float>(logmel::slaney_weight(n_mels, m, k)) * std::norm(x[static_cast<size_t>(k)]);
      out[static_cast<size_t>(m * frames + t)] = std::log10(std::max(1e-10f, sum));
    }
  }
  return out;
}

inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  CHECK(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double apart = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(apart <= worst)) worst = apart;  // NaN too
  }
  return worst;
}

// ---- streams ----

// Streams on the device, and what each has given so far.
class Streams {
 public:
  Streams(size_t count, int n_mels, Padding padding)
      : n_mels_(n_mels),
        padding_(padding),
        pushed_(count, 0),
        blocks_(count),
        states_(std::vector<char>(count * static_cast<size_t>(logmel::stream_size()))) {}

  struct Chunk {
    int64_t id;
    Pcm pcm;
    bool last = false;
  };

  // One step. Its status is that of the fault word; what a refused chunk gave is not kept.
  Status push(const std::vector<Chunk>& chunks, int64_t more_room = 0) {
    Pcm all;
    std::vector<int64_t> ids, samples, frames;
    std::vector<uint8_t> last;
    for (const Chunk& chunk : chunks) {
      const int64_t before = pushed_[static_cast<size_t>(chunk.id)];
      all.insert(all.end(), chunk.pcm.begin(), chunk.pcm.end());
      ids.push_back(chunk.id), last.push_back(chunk.last),
          samples.push_back(static_cast<int64_t>(chunk.pcm.size()));
      frames.push_back(logmel::ready_frames(before, samples.back(), chunk.last, padding_) + more_room);
    }
    const std::vector<int64_t> sample_sums = sums(samples), frame_sums = sums(frames);
    OnDevice<float> pcm(all),
        out(std::vector<float>(static_cast<size_t>(n_mels_ * frame_sums.back()), 77.0f));
    OnDevice<int64_t> on_ids(ids), cu_samples(sample_sums), cu_frames(frame_sums);
    OnDevice<uint8_t> on_last(last);
    OnDevice<FaultWord> fault(std::vector<FaultWord>{kNoFault});
    logmel::Push call;
    call.states = states_.data(), call.streams = static_cast<int64_t>(chunks.size()),
    call.ids = on_ids.data();
    call.pcm = pcm.data(), call.samples = sample_sums.back(), call.cu_samples = cu_samples.data();
    call.last = on_last.data(), call.cu_frames = cu_frames.data(), call.frames = frame_sums.back();
    call.most_frames = frames.empty() ? 0 : *std::max_element(frames.begin(), frames.end());
    call.n_mels = n_mels_, call.padding = padding_, call.out = out.data(), call.fault = fault.data();
    if (Status status = logmel::push(call); !status.ok()) return status;
    const Status status = logmel::fault(call);
    refused_ = fault.values()[0] == kNoFault ? -1 : fault_of(fault.values()[0]).index;
    const std::vector<float> given = out.values();
    for (size_t i = 0; i < chunks.size(); ++i) {
      const bool bad = refused_ >= 0 &&
                       (is_of_stream(status) ? refused_ == static_cast<int64_t>(i)
                                             : refused_ >= sample_sums[i] && refused_ < sample_sums[i + 1]);
      if (bad) continue;
      const size_t id = static_cast<size_t>(chunks[i].id);
      pushed_[id] += samples[i];
      blocks_[id].emplace_back(given.begin() + n_mels_ * frame_sums[i],
                               given.begin() + n_mels_ * frame_sums[i + 1]);
    }
    return status;
  }

  // [n_mels, frames] of all blocks of a stream, one behind the other.
  std::vector<float> joined(int64_t id) const {
    std::vector<float> result;
    for (int m = 0; m < n_mels_; ++m) {
      for (const auto& block : blocks_[static_cast<size_t>(id)]) {
        const auto frames = static_cast<std::ptrdiff_t>(block.size()) / n_mels_;
        result.insert(result.end(), block.begin() + m * frames, block.begin() + (m + 1) * frames);
      }
    }
    return result;
  }

  std::vector<char> states() const { return states_.values(); }

 private:
  static bool is_of_stream(const Status& status) {
    return status.message().find("at sample") == std::string::npos;
  }

  int n_mels_;
  Padding padding_;
  std::vector<int64_t> pushed_;
  std::vector<std::vector<std::vector<float>>> blocks_;
  OnDevice<char> states_;
  int64_t refused_ = -1;
};

}  // namespace logmel_calls
