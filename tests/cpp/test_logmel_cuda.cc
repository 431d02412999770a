// SPDX-License-Identifier: Apache-2.0
// Log-mel on the device of Device::kCuda, a GPU's or the emulator's: against the float64 oracle, and bit for
// bit against itself in other company.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/logmel/logmel_batch.h"
#include "tests/cpp/check.h"
#include "tests/cpp/logmel_calls.h"
#include "tests/cpp/on_device.h"

using namespace logmel_calls;

#if defined(EARNEST_WITH_CUDA)

namespace {

constexpr double kNoiseError = 2e-5;  // raw, of noise, where plain float32 is off by up to 4e-5
constexpr double kFactor = 2;  // tests/tolerances.py: ours may be off by so many times plain float32's error
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

// What the CPU says of a clip, and of a stream's chunk after others.
std::string cpu_message(const Pcm& pcm) {
  std::vector<float> out(
      static_cast<size_t>(80 * logmel::frame_count(static_cast<int64_t>(pcm.size()), Padding::kWhisper)));
  return logmel::run(
             {Device::kCpu, pcm.data(), static_cast<int64_t>(pcm.size()), 80, Padding::kWhisper, out.data()})
      .message();
}

}  // namespace

TEST(errors_are_at_most_twice_those_of_plain_float32) {
  for (const Pcm& pcm : {noise(8000), speechlike(8000)}) {
    for (const int n_mels : {80, 128}) {
      const std::vector<float> raw = oracle(pcm, n_mels, Padding::kStepAudio), expected = normalized(raw);
      const std::vector<float> other = plain(pcm, n_mels, Padding::kStepAudio);
      CHECK_NEAR(largest_difference(alone(pcm, n_mels, Padding::kStepAudio, true), expected), 0,
                 kFactor * largest_difference(normalized(other), expected));
      CHECK_NEAR(largest_difference(alone(pcm, n_mels, Padding::kStepAudio, false), raw), 0,
                 kFactor * largest_difference(other, raw));
    }
  }
}

TEST(clips_of_any_length_and_padding_are_the_oracle_s) {
  for (const int64_t samples :
       {1, 2, 159, 160, 161, 199, 200, 201, 319, 320, 321, 399, 400, 401, 1601, 5279, 5280, 5281, 10007}) {
    for (const Padding padding : kPaddings) {
      const Pcm pcm = noise(samples, static_cast<unsigned>(samples));
      for (const int n_mels : {80, 128}) {
        const std::vector<float> found = alone(pcm, n_mels, padding, false);
        CHECK_NEAR(largest_difference(found, oracle(pcm, n_mels, padding)), 0, kNoiseError);
        if (!found.empty()) CHECK(same_bits(alone(pcm, n_mels, padding, true), normalized(found)));
      }
    }
  }
}

TEST(any_number_of_bands) {
  const Pcm pcm = noise(2000);
  for (const int n_mels : {1, 2, 3, 15, 16, 17, 40, 79, 200, 255, 256}) {
    const std::vector<float> found = alone(pcm, n_mels, Padding::kWhisper, false);
    CHECK_NEAR(largest_difference(found, oracle(pcm, n_mels, Padding::kWhisper)), 0, kNoiseError);
    CHECK(same_bits(alone(pcm, n_mels, Padding::kWhisper, true), normalized(found)));
  }
}

TEST(silence_is_the_clamp_and_the_largest_samples_stay_finite) {
  for (const float x : alone(Pcm(1600, 0.0f), 80, Padding::kWhisper, false)) CHECK_NEAR(x, -10, 1e-6);
  for (const float x : alone(Pcm(1600, 0.0f), 80, Padding::kWhisper, true)) CHECK_NEAR(x, -1.5, 1e-6);
  for (const float x : alone(Pcm(800, 1e15f), 128, Padding::kStepAudio, false)) CHECK(std::isfinite(x));
  for (const float x : alone(Pcm(800, -1e15f), 128, Padding::kStepAudio, true)) CHECK(std::isfinite(x));
}

TEST(a_batch_gives_each_clip_the_bits_it_has_alone) {
  const std::vector<int64_t> ragged = {0, 1, 0, 160, 159, 12345, 0, 0, 5120, 5279, 5280, 33, 20011, 401, 0};
  for (const Padding padding : kPaddings) {
    for (const bool normalized : {false, true}) {
      std::vector<Pcm> clips;
      for (const int64_t samples : ragged) {
        clips.push_back(noise(samples, static_cast<unsigned>(clips.size())));
        for (float& x : clips.back())
          x *= static_cast<float>(clips.size());  // every clip has its own maximum
      }
      Batch batch(clips, 80, padding, normalized);
      for (int launch = 0; launch < 2; ++launch) {  // what one leaves in the workspace the next one finds
        CHECK(logmel::run(batch.call).ok());
        CHECK(logmel::fault(batch.call).ok());
        CHECK(batch.workspace_is_clear());
        for (size_t c = 0; c < clips.size(); ++c) {
          if (clips[c].empty()) continue;
          CHECK(same_bits(batch.out_of(c), alone(clips[c], 80, padding, normalized)));
        }
      }
      // An empty clip is, by Step-Audio's rule, two frames of silence.
      for (const float x : batch.out_of(0)) CHECK_NEAR(x, normalized ? -1.5 : -10, 1e-6);
      CHECK(batch.out_of(0).size() == (padding == Padding::kStepAudio ? 160 : 0));
    }
  }
}

TEST(paths_have_the_same_bits) {
  const std::vector<Pcm> clips = {noise(1, 1), noise(0), noise(5400, 2), speechlike(6000)};
  for (const int n_mels : {80, 128}) {
    Batch batch(clips, n_mels, Padding::kStepAudio, true);
    CHECK(logmel::clips_path(batch.call) == logmel::ClipsPath::kUnrolledBands);
    batch.call.path = logmel::ClipsPath::kLoops;
    CHECK(logmel::run(batch.call).ok());
    const std::vector<float> expected = batch.out();
    for (const auto path : {logmel::ClipsPath::kUnrolledBands, logmel::ClipsPath::kUnrolled}) {
      Batch other(clips, n_mels, Padding::kStepAudio, true);
      other.call.path = path;
      CHECK(logmel::run(other.call).ok());
      CHECK(same_bits(other.out(), expected));
    }
  }
  Batch batch({noise(500)}, 81, Padding::kWhisper, true);
  CHECK(logmel::clips_path(batch.call) == logmel::ClipsPath::kLoops);
  batch.call.path = logmel::ClipsPath::kUnrolled;
  CHECK(logmel::run(batch.call).message() ==
        "[logmel] n_mels: expected 80 or 128 of an unrolled path, got 81");
}

TEST(a_batch_of_equal_lengths_needs_no_offsets) {
  for (const int64_t samples : {0, 100, 5120, 7001}) {
    for (const Padding padding : kPaddings) {
      Batch batch({noise(samples, 1), noise(samples, 2), noise(samples, 3)}, 128, padding, true);
      CHECK(logmel::run(batch.call).ok());
      const std::vector<float> expected = batch.out();
      Batch same({noise(samples, 1), noise(samples, 2), noise(samples, 3)}, 128, padding, true);
      same.call.cu_samples = same.call.cu_frames = nullptr;
      same.call.samples = samples;
      CHECK(logmel::run(same.call).ok());
      CHECK(logmel::fault(same.call).ok());
      CHECK(same_bits(same.out(), expected));
    }
  }
}

TEST(out_between_vectors_is_the_same) {
  // One band of three frames a clip: no clip but the first begins at a multiple of four numbers.
  std::vector<Pcm> clips;
  for (unsigned c = 0; c < 5; ++c) clips.push_back(noise(480 + 160 * (c % 2), c));
  Batch batch(clips, 1, Padding::kWhisper, true);
  CHECK(logmel::run(batch.call).ok());
  for (size_t c = 0; c < clips.size(); ++c)
    CHECK(same_bits(batch.out_of(c), alone(clips[c], 1, Padding::kWhisper, true)));
}

TEST(the_back_end_has_a_name) {
  std::string name;
  CHECK(logmel::which(Device::kCuda, &name).ok());
  CHECK(name == "cuda/simt");
}

TEST(no_clips_are_no_work) {
  Batch batch({}, 80, Padding::kWhisper, true);
  CHECK(logmel::run(batch.call).ok());
}

TEST(chunks_of_any_size_give_the_bits_of_the_whole) {
  std::mt19937 random(5);
  for (const int64_t samples : {1, 2, 159, 160, 161, 199, 200, 201, 359, 360, 361, 560, 4001}) {
    for (const Padding padding : kPaddings) {
      const Pcm pcm = noise(samples, static_cast<unsigned>(samples));
      const std::vector<float> expected = alone(pcm, 80, padding, false);
      for (const int64_t chunk : {7, 160, 201, 401, 1280, 5000}) {
        if (samples / chunk > 30) continue;
        Streams streams(1, 80, padding);
        int64_t at = 0;
        while (at < samples) {
          const int64_t end = std::min(samples, at + 1 + static_cast<int64_t>(random()) % chunk);
          // The last samples come with the end, or before it.
          CHECK(
              streams.push({{0, Pcm(pcm.begin() + at, pcm.begin() + end), end == samples && chunk % 2 == 0}})
                  .ok());
          at = end;
        }
        if (chunk % 2 != 0) CHECK(streams.push({{0, {}, true}}).ok());
        CHECK(same_bits(streams.joined(0), expected));
      }
    }
  }
}

TEST(many_streams_in_one_step_are_each_as_if_alone) {
  std::mt19937 random(9);
  constexpr size_t kStreams = 11;
  for (const int n_mels : {80, 128}) {
    std::vector<Pcm> clips;
    for (unsigned s = 0; s < kStreams; ++s)
      clips.push_back(noise(1 + static_cast<int64_t>(random() % 9000), 100 + s));
    Streams streams(kStreams, n_mels, Padding::kStepAudio);
    std::vector<int64_t> at(kStreams, 0);
    std::vector<bool> ended(kStreams, false);
    while (std::count(ended.begin(), ended.end(), true) < static_cast<int64_t>(kStreams)) {
      std::vector<Streams::Chunk> chunks;
      for (size_t s = 0; s < kStreams; ++s) {
        if (ended[s] || random() % 4 == 0) continue;  // not every stream in every step
        const int64_t left = static_cast<int64_t>(clips[s].size()) - at[s];
        const int64_t most[] = {1, 100, 1280,
                                6000};  // a few samples, and more frames than a block takes at once
        const int64_t count = std::min(left, static_cast<int64_t>(random()) % (1 + most[random() % 4]));
        ended[s] = count == left && (left == 0 || random() % 2 == 0);
        const auto begin = clips[s].begin() + at[s];
        chunks.push_back({static_cast<int64_t>(s), Pcm(begin, begin + count), ended[s]});
        at[s] += count;
      }
      std::shuffle(chunks.begin(), chunks.end(), random);
      CHECK(streams.push(chunks).ok());
    }
    for (size_t s = 0; s < kStreams; ++s)
      CHECK(same_bits(streams.joined(static_cast<int64_t>(s)),
                      alone(clips[s], n_mels, Padding::kStepAudio, false)));
  }
}

TEST(streams_without_ids_or_ends_are_the_first_ones_and_go_on) {
  const Pcm pcm = noise(2 * 1280);
  OnDevice<char> states(std::vector<char>(static_cast<size_t>(2 * logmel::stream_size())));
  OnDevice<float> on_pcm(pcm), out(std::vector<float>(2 * 80 * 7));
  OnDevice<int64_t> cu_samples({0, 1280, 2560}), cu_frames({0, 7, 14});
  OnDevice<FaultWord> fault({kNoFault});
  logmel::Push call;
  call.states = states.data(), call.streams = 2, call.pcm = on_pcm.data(), call.samples = 2560;
  call.cu_samples = cu_samples.data(), call.cu_frames = cu_frames.data(), call.frames = 14,
  call.most_frames = 7;
  call.out = out.data(), call.fault = fault.data();
  CHECK(logmel::push(call).ok());
  CHECK(logmel::fault(call).ok());
  const std::vector<float> found = out.values();
  for (int s = 0; s < 2; ++s) {
    const std::vector<float> clip =
        alone(Pcm(pcm.begin() + 1280 * s, pcm.begin() + 1280 * (s + 1)), 80, Padding::kWhisper, false);
    for (int m = 0; m < 80; ++m)
      for (int t = 0; t < 7; ++t)
        CHECK(found[static_cast<size_t>(80 * 7 * s + 7 * m + t)] == clip[static_cast<size_t>(8 * m + t)]);
  }
}

TEST(samples_that_are_not_finite_are_refused_in_the_cpu_s_words) {
  for (const float value : {kNan, -kNan, kInf, -kInf, 1.1e15f, -1.1e15f}) {
    for (const size_t at : {0, 5, 333, 799}) {
      Pcm pcm = noise(800);
      pcm[at] = value;
      if (at < 700) pcm[at + 50] = kNan;  // a later one is not the one that is named
      Batch batch({pcm}, 80, Padding::kWhisper, true);
      CHECK(logmel::run(batch.call).ok());
      CHECK(logmel::fault(batch.call).message() == cpu_message(pcm));
      CHECK(batch.workspace_is_clear());
      Streams streams(1, 80, Padding::kWhisper);
      CHECK(streams.push({{0, pcm}}).message() == cpu_message(pcm));
    }
  }
  for (const size_t at : {0, 158}) {  // in a clip that is too short for a frame
    Pcm pcm = noise(159);
    pcm[at] = kInf;
    Batch batch({pcm}, 80, Padding::kWhisper, false);
    CHECK(logmel::run(batch.call).ok());
    CHECK(logmel::fault(batch.call).message() == cpu_message(pcm));
  }
  Pcm tail = noise(160 * 33 + 159);  // and behind the last frame, in every tile
  for (const size_t at : {160 * 33 + 158, 160 * 33 + 121, 160 * 33, 160 * 32 - 199, 5000}) {
    Pcm pcm = tail;
    pcm[at] = kNan;
    Batch batch({pcm}, 80, Padding::kWhisper, false);
    CHECK(logmel::run(batch.call).ok());
    CHECK(logmel::fault(batch.call).message() == cpu_message(pcm));
  }
}

TEST(a_bad_clip_does_not_change_its_neighbours) {
  std::vector<Pcm> clips = {noise(3000, 1), noise(7000, 2), noise(4000, 3)};
  clips[1][6999] = kNan;
  for (const bool equal : {false, true}) {
    if (equal) clips[0].resize(7000, 0.1f), clips[2].resize(7000, 0.1f);
    Batch batch(clips, 80, Padding::kWhisper, true);
    if (equal) batch.call.cu_samples = batch.call.cu_frames = nullptr, batch.call.samples = 7000;
    CHECK(logmel::run(batch.call).ok());
    CHECK(
        logmel::fault(batch.call).message() ==
        "[logmel] pcm: expected finite samples of magnitude at most 1e15, got nan at sample 6999 of clip 1");
    for (const size_t c : {0, 2})
      CHECK(same_bits(batch.out_of(c), alone(clips[c], 80, Padding::kWhisper, true)));
  }
}

TEST(a_refused_chunk_leaves_its_stream_as_it_was_and_the_others_go_on) {
  const Pcm first = noise(9000, 1), second = noise(9000, 2);
  const auto part = [](const Pcm& pcm, int64_t begin, int64_t end) {
    return Pcm(pcm.begin() + begin, pcm.begin() + end);
  };
  for (const size_t at : {0, 1, 1279, 3100, 7999}) {
    Streams streams(2, 80, Padding::kWhisper);
    CHECK(streams.push({{0, part(first, 0, 1000)}, {1, part(second, 0, 500)}}).ok());
    const std::vector<char> before = streams.states();
    Pcm bad = part(first, 1000, 9000);
    bad[at] = kNan;
    const Status status = streams.push({{1, part(second, 500, 4000)}, {0, bad}});
    CHECK(status.message() ==
          "[logmel] pcm: expected finite samples of magnitude at most 1e15, got nan at sample " +
              std::to_string(1000 + at) + " of stream 1");
    const std::vector<char> after = streams.states();
    CHECK(std::equal(before.begin(), before.begin() + logmel::stream_size(), after.begin()));
    CHECK(streams.push({{0, part(first, 1000, 9000), true}, {1, part(second, 4000, 9000), true}}).ok());
    CHECK(same_bits(streams.joined(0), alone(first, 80, Padding::kWhisper, false)));
    CHECK(same_bits(streams.joined(1), alone(second, 80, Padding::kWhisper, false)));
  }
}

TEST(what_does_not_fit_is_refused_by_the_kernel) {
  Streams streams(2, 80, Padding::kWhisper);
  CHECK(streams.push({{0, {}, true}}).message() == "[logmel] pcm: expected at least one sample, got none");
  CHECK(streams.push({{0, noise(500)}, {1, noise(300)}}).ok());
  const std::vector<char> before = streams.states();
  CHECK(streams.push({{0, noise(500)}}, 1).message() ==
        "[logmel] cu_frames: expected as many frames as the chunk makes ready, got another number");
  CHECK(streams.states() == before);
  CHECK(streams.push({{0, noise(500), true}, {1, noise(700)}}).ok());
  CHECK(streams.push({{1, noise(500)}, {0, noise(500)}}).message() ==
        "[logmel] push: expected a stream that is not finished, got one that is of stream 1");
  for (const int64_t wrong : {-1, 1}) {
    Batch batch({noise(1000), noise(800)}, 80, Padding::kWhisper, true);
    OnDevice<int64_t> frames({0, 6 + wrong, 11});
    batch.call.cu_frames = frames.data();
    CHECK(logmel::run(batch.call).ok());
    CHECK(
        logmel::fault(batch.call).message() ==
        "[logmel] cu_frames: expected the sums of frame_count of each clip's samples, got others at clip 0");
    CHECK(batch.workspace_is_clear());
  }
}

TEST(the_normaliser_alone_is_the_cpu_s) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(-3, 4);
  const std::vector<int64_t> frames = {0, 1, 33, 0, 300, 7, 128};
  for (const int n_mels : {1, 80, 127}) {
    const std::vector<int64_t> offsets = sums(frames);
    std::vector<float> raw(static_cast<size_t>(n_mels * offsets.back()));
    for (float& x : raw) x = normal(random);
    OnDevice<float> on_raw(raw), out(std::vector<float>(raw.size()));
    OnDevice<int64_t> cu_frames(offsets);
    OnDevice<char> workspace(std::vector<char>(static_cast<size_t>(logmel::workspace_size(7))));
    logmel::Normalization call;
    call.raw = on_raw.data(), call.clips = 7, call.frames = offsets.back(), call.cu_frames = cu_frames.data();
    call.n_mels = n_mels, call.out = out.data(), call.workspace = workspace.data();
    CHECK(logmel::normalize(call).ok());
    std::vector<float> expected;
    for (size_t c = 0; c < frames.size(); ++c) {
      const std::vector<float> clip(raw.begin() + n_mels * offsets[c], raw.begin() + n_mels * offsets[c + 1]);
      const std::vector<float> done = normalized(clip);
      expected.insert(expected.end(), done.begin(), done.end());
    }
    CHECK(same_bits(out.values(), expected));
    call.out = on_raw.data();  // in place
    CHECK(logmel::normalize(call).ok());
    CHECK(same_bits(on_raw.values(), expected));
  }
}

#else

TEST(a_build_without_cuda_says_so) {
  float out = 0;
  FaultWord fault = kNoFault;
  logmel::Clips clips;
  clips.clips = 1, clips.pcm = &out, clips.samples = 160, clips.frames = 1, clips.out = &out,
  clips.fault = &fault;
  clips.normalized = false;
  CHECK(logmel::run(clips).code() == StatusCode::kUnsupported);
  CHECK(logmel::run(clips).message().find("[logmel] device: expected cpu") != std::string::npos);
}

#endif

TEST(wrong_calls_are_refused_before_anything_is_read) {
  float memory = 0;
  int64_t offset = 0;
  FaultWord fault = kNoFault;
  const auto says = [](const Status& status, const std::string& what) {
    return status.code() == StatusCode::kInvalidArgument && status.message().find("[logmel] " + what) == 0;
  };
  const auto clips = [&](auto change) {
    logmel::Clips call;
    call.pcm = &memory, call.clips = 3, call.samples = 320, call.frames = 6, call.out = &memory,
    call.workspace = &memory;
    call.fault = &fault;
    change(call);
    return logmel::run(call);
  };
  CHECK(says(clips([](auto& call) { call.clips = -1; }), "clips: expected 0 to 16777216, got -1"));
  CHECK(says(clips([](auto& call) { call.n_mels = 257; }), "n_mels: expected 1 to 256, got 257"));
  CHECK(says(clips([](auto& call) { call.samples = logmel::kMaxSamples + 1; }), "samples: "));
  CHECK(says(clips([](auto& call) { call.frames = 7; }), "frames: expected 2 of each clip, got 7 in all"));
  CHECK(says(clips([](auto& call) { call.frames = logmel::kMostFrames + 1; }), "frames: "));
  CHECK(says(clips([&](auto& call) { call.cu_samples = &offset; }), "cu_frames: "));
  CHECK(says(clips([](auto& call) { call.pcm = nullptr; }),
             "pcm: expected memory on the device, got a null pointer"));
  CHECK(says(clips([](auto& call) { call.out = nullptr; }), "out: "));
  CHECK(says(clips([](auto& call) { call.workspace = nullptr; }), "workspace: "));
  CHECK(says(clips([](auto& call) { call.fault = nullptr; }), "fault: "));
  const auto push = [&](auto change) {
    logmel::Push call;
    call.states = &memory, call.streams = 1, call.pcm = &memory, call.cu_samples = &offset,
    call.samples = 1280;
    call.cu_frames = &offset, call.frames = 8, call.most_frames = 8, call.out = &memory, call.fault = &fault;
    change(call);
    return logmel::push(call);
  };
  CHECK(says(push([](auto& call) { call.streams = -1; }), "streams: "));
  CHECK(says(push([](auto& call) { call.n_mels = 0; }), "n_mels: "));
  CHECK(says(push([](auto& call) { call.most_frames = 9; }), "most_frames: expected 0 to 8, got 9"));
  CHECK(says(push([](auto& call) { call.states = nullptr; }), "states: "));
  CHECK(says(push([](auto& call) { call.cu_samples = nullptr; }), "cu_samples: "));
  CHECK(says(push([](auto& call) { call.fault = nullptr; }), "fault: "));
  logmel::Normalization call;
  call.raw = &memory, call.out = &memory, call.clips = 2, call.frames = 3;
  CHECK(says(logmel::normalize(call), "frames: expected as many of each clip, got 3 in all"));
  call.frames = 4;
  CHECK(says(logmel::normalize(call), "workspace: "));
}
