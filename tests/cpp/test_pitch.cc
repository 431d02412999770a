// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/pitch/pitch.h"
#include "kernels/pitch/syllables.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using pitch::Settings;

constexpr double kPi = 3.14159265358979323846;

struct Track {
  std::vector<float> f0, voicing, energy;
  explicit Track(int64_t frames)
      : f0(static_cast<size_t>(frames)),
        voicing(static_cast<size_t>(frames)),
        energy(static_cast<size_t>(frames)) {}
};

// A gliding voice with hiss, a pause and a constant offset.
std::vector<float> speech(int64_t samples, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> pcm(static_cast<size_t>(samples));
  double phase = 0.0;
  for (int64_t i = 0; i < samples; ++i) {
    const double seconds = static_cast<double>(i) / 16000;
    phase += 2 * kPi * (140 + 60 * std::sin(3 * seconds)) / 16000;
    double wave = 0.0;
    for (int k = 1; k <= 10; ++k) wave += std::sin(k * phase) / k;
    const bool silent = std::fmod(seconds, 0.7) > 0.5;
    pcm[static_cast<size_t>(i)] =
        static_cast<float>(silent ? 0.0 : 0.1 * wave) + 0.01f * normal(random) + 0.2f;
  }
  return pcm;
}

pitch::Params params_of(const std::vector<float>& pcm, Track* track, const Settings& settings = {}) {
  return {Device::kCpu,
          pcm.data(),
          static_cast<int64_t>(pcm.size()),
          settings,
          track->f0.data(),
          track->voicing.data(),
          track->energy.data()};
}

Track whole(const std::vector<float>& pcm, const Settings& settings = {}) {
  Track track(pitch::frame_count(static_cast<int64_t>(pcm.size())));
  CHECK(pitch::run(params_of(pcm, &track, settings)).ok());
  return track;
}

Track streamed(const std::vector<float>& pcm, int64_t chunk, const Settings& settings = {}) {
  const int64_t samples = static_cast<int64_t>(pcm.size());
  Track track(pitch::frame_count(samples));
  std::unique_ptr<pitch::Stream> stream;
  CHECK(pitch::Stream::create(Device::kCpu, settings, &stream).ok());
  int64_t done = 0;
  const auto take = [&] {
    const int64_t ready = stream->ready();
    CHECK(done + ready <= static_cast<int64_t>(track.f0.size()));
    CHECK(stream->read(ready, track.f0.data() + done, track.voicing.data() + done, track.energy.data() + done)
              .ok());
    done += ready;
  };
  for (int64_t at = 0; at < samples; at += chunk) {
    CHECK(stream->push(pcm.data() + at, std::min(chunk, samples - at)).ok());
    take();
  }
  CHECK(stream->finish().ok());
  take();
  CHECK(done == static_cast<int64_t>(track.f0.size()));
  return track;
}

bool same_bits(const Track& a, const Track& b) {
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), 4 * x.size()) == 0);
  };
  return same(a.f0, b.f0) && same(a.voicing, b.voicing) && same(a.energy, b.energy);
}

// Runs the body on every tier in turn.
template <typename Body>
void on_every_tier(const Body& body) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    body();
  }
  CHECK(force_cpu_tier("").ok());
}

}  // namespace

TEST(every_tier_agrees_with_the_oracle) {
  on_every_tier([] {
    for (const Settings& settings :
         {Settings{}, Settings{70.0f, 450.0f}, Settings{40.0f, 800.0f}, Settings{20.0f, 2000.0f}}) {
      const std::vector<float> pcm = speech(160 * 30 + 77);
      Track expected(30);
      CHECK(pitch::reference(params_of(pcm, &expected, settings)).ok());
      const Track track = whole(pcm, settings);
      for (size_t t = 0; t < 30; ++t) {
        CHECK_NEAR(track.voicing[t], expected.voicing[t], 2e-5);
        CHECK_NEAR(track.energy[t], expected.energy[t], 1e-6 * expected.energy[t] + 1e-9);
        CHECK_NEAR(track.f0[t], expected.f0[t], 1e-4 * expected.f0[t]);
      }
    }
  });
}

TEST(chunks_of_any_size_give_the_bits_of_the_whole) {
  on_every_tier([] {
    for (int64_t samples : {1, 2, 11, 12, 23, 159, 160, 161, 320, 395, 555, 1515, 3595, 3596, 9001}) {
      const std::vector<float> pcm = speech(samples, static_cast<unsigned>(samples));
      const Track expected = whole(pcm);
      for (int64_t chunk : {int64_t{1}, int64_t{7}, int64_t{160}, int64_t{401}, int64_t{3000}, samples - 1}) {
        if (chunk == 0) continue;
        if (chunk == 1 && samples > 4000) continue;
        CHECK(same_bits(streamed(pcm, chunk), expected));
      }
    }
    const std::vector<float> pcm = speech(7001);
    const Settings wide{20.0f, 2000.0f};
    CHECK(same_bits(streamed(pcm, 331, wide), whole(pcm, wide)));
  });
}

TEST(threads_do_not_change_a_bit) {
  const std::vector<float> pcm = speech(160 * 500 + 3);
  set_num_threads(1);
  const Track alone = whole(pcm);
  set_num_threads(3);
  CHECK(same_bits(whole(pcm), alone));
}

TEST(silence_and_a_constant_are_unvoiced_and_the_largest_and_smallest_samples_are_measured) {
  on_every_tier([] {
    for (float value : {0.0f, 0.5f, 1e15f, -1e-30f}) {
      const Track track = whole(std::vector<float>(8000, value));
      for (size_t t = 0; t < 50; ++t) {
        CHECK(track.f0[t] == 0.0f);
        CHECK(track.voicing[t] >= 0.0f && track.voicing[t] < 0.4f);
      }
    }
    for (float scale : {1e15f, 1e-12f}) {
      std::vector<float> pcm(8000);
      for (size_t i = 0; i < pcm.size(); ++i) {
        pcm[i] = scale * static_cast<float>(std::sin(2 * kPi * 200 * static_cast<double>(i) / 16000));
      }
      const Track track = whole(pcm);
      for (size_t t = 5; t < 45; ++t) CHECK_NEAR(track.f0[t], 200.0, 0.5);
      for (float x : track.energy) CHECK(std::isfinite(x));
    }
  });
}

TEST(hostile_samples_are_refused_with_their_place) {
  on_every_tier([] {
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    for (float value : {nan, -nan, inf, -inf, 1.1e15f, -1.1e15f}) {
      for (size_t at : {0, 5, 333, 799}) {
        std::vector<float> pcm = speech(800);
        pcm[at] = value;
        Track track(5);
        const Status status = pitch::run(params_of(pcm, &track));
        CHECK(status.code() == StatusCode::kInvalidArgument);
        CHECK(status.message().find(" at sample " + std::to_string(at)) != std::string::npos);
      }
    }
  });
}

TEST(a_refused_chunk_leaves_the_stream_as_it_was) {
  const std::vector<float> pcm = speech(9000);
  std::unique_ptr<pitch::Stream> stream;
  CHECK(pitch::Stream::create(Device::kCpu, {}, &stream).ok());
  CHECK(!stream->finish().ok());  // nothing was pushed
  CHECK(stream->push(pcm.data(), 1000).ok());
  const float bad[2] = {0.0f, std::nanf("")};
  CHECK(stream->push(bad, 2).message().find("nan at sample 1001") != std::string::npos);
  CHECK(!stream->push(nullptr, 1).ok());
  CHECK(!stream->push(pcm.data(), -1).ok());
  CHECK(stream->push(pcm.data(), 0).ok());
  CHECK(stream->push(pcm.data() + 1000, 8000).ok());
  Track track(56);
  CHECK(!stream->read(stream->ready() + 1, track.f0.data(), track.voicing.data(), track.energy.data()).ok());
  CHECK(stream->finish().ok());
  CHECK(!stream->push(pcm.data(), 1).ok());
  CHECK(!stream->finish().ok());
  CHECK(stream->ready() == 56);
  CHECK(!stream->read(1, nullptr, track.voicing.data(), track.energy.data()).ok());
  CHECK(stream->read(56, track.f0.data(), track.voicing.data(), track.energy.data()).ok());
  CHECK(same_bits(track, whole(pcm)));
}

TEST(wrong_settings_are_refused) {
  const std::vector<float> pcm = speech(800);
  Track track(5);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Settings& settings : {Settings{19.0f, 600.0f}, Settings{600.0f, 65.0f}, Settings{65.0f, 65.0f},
                                   Settings{65.0f, 2001.0f}, Settings{nan, 600.0f}, Settings{65.0f, nan},
                                   Settings{65.0f, 600.0f, -0.1f}, Settings{65.0f, 600.0f, 0.4f, 1.5f}}) {
    CHECK(!pitch::run(params_of(pcm, &track, settings)).ok());
    std::unique_ptr<pitch::Stream> stream;
    CHECK(!pitch::Stream::create(Device::kCpu, settings, &stream).ok());
  }
  pitch::Params params = params_of(pcm, &track);
  params.samples = 0;
  CHECK(!pitch::run(params).ok());
  params.samples = -1;
  CHECK(!pitch::run(params).ok());
  params = params_of(pcm, &track);
  params.f0 = nullptr;
  CHECK(!pitch::run(params).ok());
  params = params_of(pcm, &track);
  params.device = Device::kCuda;
  CHECK(pitch::run(params).code() == StatusCode::kUnsupported);
}

// Numbers alone: nothing is allocated, and the pointers are never read.
TEST(more_samples_than_sizes_hold_are_refused) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const std::string expected = "pcm: expected at most 2^40 samples in all, got ";
  const std::vector<float> pcm = speech(1000);
  Track track(6);
  pitch::Params params = params_of(pcm, &track);
  std::unique_ptr<pitch::Stream> stream;
  CHECK(pitch::Stream::create(Device::kCpu, {}, &stream).ok());
  CHECK(stream->push(pcm.data(), 1000).ok());
  for (int64_t samples : {pitch::kMaxSamples + 1, kMost - 999, kMost}) {
    params.samples = samples;
    CHECK(pitch::run(params).message().find(expected) != std::string::npos);
    CHECK(pitch::reference(params).message().find(expected) != std::string::npos);
    CHECK(stream->push(pcm.data(), samples - 1000).message().find("after 1000") != std::string::npos);
  }
  CHECK(stream->finish().ok() && stream->ready() == 6);  // the refused chunks left no trace
}

TEST(syllables_are_voiced_peaks_with_dips_between_them) {
  std::vector<float> energy(120, 1e-6f), f0(120, 0.0f);
  for (int t : {20, 40, 60, 80}) {  // four peaks, 20 dB over the dips; the third is unvoiced
    for (int d = -6; d <= 6; ++d) {
      energy[static_cast<size_t>(t + d)] += 0.01f * static_cast<float>(std::exp(-0.1 * d * d));
      f0[static_cast<size_t>(t + d)] = t == 60 ? 0.0f : 120.0f;
    }
  }
  pitch::Speech found;
  std::vector<int64_t> at(120);
  CHECK(pitch::find_nuclei(energy.data(), f0.data(), 120, at.data(), &found).ok());
  CHECK(found.nuclei == 3);
  CHECK(at[0] == 20 && at[1] == 40 && at[2] == 80);
  CHECK(found.seconds > 0.6 && found.seconds < 0.9);
  CHECK(pitch::find_nuclei(energy.data(), f0.data(), 0, nullptr, &found).ok());
  CHECK(found.nuclei == 0 && found.seconds == 0.0);
  CHECK(!pitch::find_nuclei(nullptr, f0.data(), 3, nullptr, &found).ok());
}
