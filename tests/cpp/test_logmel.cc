// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/logmel/logmel.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using logmel::Padding;

std::vector<float> noise(int64_t samples, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  std::vector<float> pcm(static_cast<size_t>(samples));
  for (float& x : pcm) x = uniform(random);
  return pcm;
}

std::vector<float> whole(const std::vector<float>& pcm, int n_mels, Padding padding) {
  const int64_t samples = static_cast<int64_t>(pcm.size());
  std::vector<float> out(static_cast<size_t>(n_mels * logmel::frame_count(samples, padding)));
  const Status status = logmel::run({Device::kCpu, pcm.data(), samples, n_mels, padding, out.data()});
  CHECK(status.ok());
  return out;
}

// [n_mels, frames] from blocks [n_mels, k], read as soon as they are ready.
std::vector<float> streamed(const std::vector<float>& pcm, int n_mels, Padding padding, int64_t chunk) {
  const int64_t samples = static_cast<int64_t>(pcm.size());
  const int64_t frames = logmel::frame_count(samples, padding);
  std::vector<float> out(static_cast<size_t>(n_mels * frames));
  std::unique_ptr<logmel::Stream> stream;
  CHECK(logmel::Stream::create(Device::kCpu, n_mels, padding, &stream).ok());
  int64_t done = 0;
  auto take = [&] {
    const int64_t ready = stream->ready();
    std::vector<float> block(static_cast<size_t>(n_mels * ready));
    CHECK(stream->read(ready, block.data()).ok());
    for (int m = 0; m < n_mels; ++m) {
      for (int64_t t = 0; t < ready; ++t) {
        out[static_cast<size_t>(m * frames + done + t)] = block[static_cast<size_t>(m * ready + t)];
      }
    }
    done += ready;
  };
  for (int64_t at = 0; at < samples; at += chunk) {
    CHECK(stream->push(pcm.data() + at, std::min(chunk, samples - at)).ok());
    take();
  }
  CHECK(stream->finish().ok());
  take();
  CHECK(done == frames);
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

}  // namespace

TEST(every_tier_agrees_with_the_oracle) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (int n_mels : {1, 80, 128, 256}) {
      for (int64_t samples : {1600, 3333}) {
        const std::vector<float> pcm = noise(samples);
        const std::vector<float> out = whole(pcm, n_mels, Padding::kStepAudio);
        std::vector<float> expected(out.size());
        const Status status = logmel::reference(
            {Device::kCpu, pcm.data(), samples, n_mels, Padding::kStepAudio, expected.data()});
        CHECK(status.ok());
        for (size_t i = 0; i < out.size(); ++i) CHECK_NEAR(out[i], expected[i], 2e-6);
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(chunks_of_any_size_give_the_bits_of_the_whole) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (int64_t samples : {1, 2, 159, 160, 161, 199, 200, 201, 359, 360, 361, 560, 4001}) {
      for (Padding padding : {Padding::kWhisper, Padding::kStepAudio}) {
        const std::vector<float> pcm = noise(samples, static_cast<unsigned>(samples));
        const std::vector<float> expected = whole(pcm, 80, padding);
        for (int64_t chunk : {1, 7, 160, 200, 401, 5000}) {
          CHECK(same_bits(streamed(pcm, 80, padding, chunk), expected));
        }
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(chunks_give_the_bits_of_the_whole_for_any_number_of_bands) {
  const std::vector<float> pcm = noise(3210);
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (int n_mels : {1, 2, 5, 17, 40, 128, 255, 256}) {
      const std::vector<float> expected = whole(pcm, n_mels, Padding::kWhisper);
      for (int64_t chunk : {160, 480, 1280}) {
        CHECK(same_bits(streamed(pcm, n_mels, Padding::kWhisper, chunk), expected));
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(threads_do_not_change_a_bit) {
  const std::vector<float> pcm = noise(160 * 1000);
  set_num_threads(1);
  const std::vector<float> alone = whole(pcm, 80, Padding::kWhisper);
  set_num_threads(3);
  CHECK(same_bits(whole(pcm, 80, Padding::kWhisper), alone));
}

TEST(a_frame_depends_on_its_samples_alone) {
  std::vector<float> pcm = noise(160 * 40);
  const std::vector<float> before = whole(pcm, 80, Padding::kWhisper);
  for (size_t i = 0; i < 160 * 20 - 200; ++i) pcm[i] = -pcm[i] + 0.25f;  // nothing that frame 20 sees
  const std::vector<float> after = whole(pcm, 80, Padding::kWhisper);
  for (size_t m = 0; m < 80; ++m) {
    for (size_t t = 20; t < 40; ++t) CHECK(before[m * 40 + t] == after[m * 40 + t]);
  }
  CHECK(before[10] != after[10]);
}

TEST(silence_is_the_clamp_and_normalize_keeps_eight_decades) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (float x : whole(std::vector<float>(1600, 0.0f), 80, Padding::kWhisper)) CHECK_NEAR(x, -10.0, 1e-6);
    std::vector<float> raw = {-10.0f, -6.5f, 2.0f, 0.0f};
    raw.resize(21, -9.0f);
    CHECK(logmel::normalize(Device::kCpu, raw.data(), 21, raw.data()).ok());
    CHECK(raw[0] == -0.5f && raw[1] == -0.5f && raw[2] == 1.5f && raw[3] == 1.0f && raw[20] == -0.5f);
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(the_largest_samples_stay_finite) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (float x : whole(std::vector<float>(800, 1e15f), 128, Padding::kStepAudio)) CHECK(std::isfinite(x));
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(hostile_samples_are_refused_with_their_place) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    for (float value : {nan, -nan, inf, -inf, 1.1e15f, -1.1e15f}) {
      for (size_t at : {0, 5, 333, 799}) {
        std::vector<float> pcm = noise(800);
        pcm[at] = value;
        std::vector<float> out(80 * 5);
        const Status status = logmel::run({Device::kCpu, pcm.data(), 800, 80, Padding::kWhisper, out.data()});
        CHECK(status.code() == StatusCode::kInvalidArgument);
        CHECK(status.message().find(" at sample " + std::to_string(at)) != std::string::npos);
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(a_refused_chunk_leaves_the_stream_as_it_was) {
  const std::vector<float> pcm = noise(2000);
  std::unique_ptr<logmel::Stream> stream;
  CHECK(logmel::Stream::create(Device::kCpu, 80, Padding::kWhisper, &stream).ok());
  CHECK(!stream->finish().ok());  // nothing was pushed
  const int64_t promised = stream->ready(1000);
  CHECK(stream->push(pcm.data(), 1000).ok());
  CHECK(stream->ready() == promised && promised == 6 && stream->pushed() == 1000);
  const float bad[2] = {0.0f, std::nanf("")};
  const Status status = stream->push(bad, 2);
  CHECK(status.message().find("nan at sample 1001") != std::string::npos);
  CHECK(!stream->push(nullptr, 1).ok());
  CHECK(!stream->push(pcm.data(), -1).ok());
  CHECK(stream->push(pcm.data() + 1000, 1000).ok());
  CHECK(!stream->read(stream->ready() + 1, nullptr).ok());
  CHECK(stream->finish().ok());
  CHECK(!stream->push(pcm.data(), 1).ok());
  CHECK(!stream->finish().ok());
  std::vector<float> out(80 * 12);
  CHECK(stream->ready() == 12);
  CHECK(stream->read(12, out.data()).ok());
  CHECK(same_bits(out, whole(pcm, 80, Padding::kWhisper)));
}

// Numbers alone: nothing is allocated, and the pointers are never read.
TEST(more_samples_than_sizes_hold_are_refused) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const float pcm = 0;
  float out = 0;
  for (Padding padding : {Padding::kWhisper, Padding::kStepAudio}) {
    for (int64_t samples : {logmel::kMaxSamples + 1, kMost - 478, kMost}) {
      const Status status = logmel::run({Device::kCpu, &pcm, samples, 256, padding, &out});
      CHECK(status.code() == StatusCode::kInvalidArgument);
      CHECK(status.message().find("pcm: expected at most 2^40 samples in all, got ") != std::string::npos);
    }
    CHECK(logmel::frame_count(kMost, padding) >= kMost / 160);  // and not a negative number
    std::unique_ptr<logmel::Stream> stream;
    CHECK(logmel::Stream::create(Device::kCpu, 80, padding, &stream).ok());
    const std::vector<float> some = noise(1000);
    CHECK(stream->push(some.data(), 1000).ok());
    for (int64_t samples : {logmel::kMaxSamples - 999, kMost - 999, kMost}) {
      CHECK(stream->push(&pcm, samples).message().find("after 1000") != std::string::npos);
      CHECK(stream->ready(samples) > logmel::kMaxSamples / 160 - 10);
    }
    CHECK(stream->ready() == 6 && stream->pushed() == 1000);
  }
}

TEST(wrong_settings_are_refused) {
  const std::vector<float> pcm = noise(800);
  std::vector<float> out(256 * 5);
  for (int n_mels : {0, -1, 257}) {
    CHECK(!logmel::run({Device::kCpu, pcm.data(), 800, n_mels, Padding::kWhisper, out.data()}).ok());
    std::unique_ptr<logmel::Stream> stream;
    CHECK(!logmel::Stream::create(Device::kCpu, n_mels, Padding::kWhisper, &stream).ok());
  }
  CHECK(!logmel::run({Device::kCpu, pcm.data(), 0, 80, Padding::kWhisper, out.data()}).ok());
  CHECK(!logmel::run({Device::kCpu, nullptr, 800, 80, Padding::kWhisper, out.data()}).ok());
  CHECK(!logmel::run({Device::kCpu, pcm.data(), 800, 80, Padding::kWhisper, nullptr}).ok());
  const Status cuda = logmel::run({Device::kCuda, pcm.data(), 800, 80, Padding::kWhisper, out.data()});
  CHECK(cuda.code() == StatusCode::kUnsupported);
}
