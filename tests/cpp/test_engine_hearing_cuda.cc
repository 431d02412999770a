// SPDX-License-Identifier: Apache-2.0
// How an engine on Device::kCuda hears: samples go up as they came, and their features are those of the
// log-mel kernels, bit for bit, in the order and the type in which the encoder reads them.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/engine/states.h"
#include "tests/cpp/check.h"
#include "tests/cpp/logmel_calls.h"
#include "tests/cpp/session_bytes.h"
#include "tests/cpp/tiny_model.h"
#if defined(EARNEST_WITH_EMULATOR)
#include "kernels/common/cuda_emulated.h"
#endif

using namespace tiny;
using earnest::BFloat16;
using earnest::Device;
using logmel_calls::Pcm;
namespace cuda = earnest::cuda;

namespace {

thread_local bool memory_is_out = false;  // for the next who asks, once

}  // namespace

// Not inlined, or gcc takes the freeing of one for that of what malloc gave.
[[gnu::noinline]] void* operator new(size_t bytes) {
  void* const memory = memory_is_out ? nullptr : std::malloc(bytes);
  memory_is_out = false;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(bytes);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

constexpr int kBands = 80;

// Rows of frames, rounded to T, of features [n_mels, frames].
template <typename T>
std::vector<T> in_rows(const std::vector<float>& bands, int64_t n_mels) {
  const int64_t frames = static_cast<int64_t>(bands.size()) / n_mels;
  std::vector<T> rows(bands.size());
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t m = 0; m < n_mels; ++m)
      earnest::narrow(bands[static_cast<size_t>(m * frames + t)], &rows[static_cast<size_t>(t * n_mels + m)]);
  return rows;
}

// What ClipFeatures makes of a clip that comes in pieces of these sizes, in turn.
std::vector<Chunk> in_pieces(Device device, const Pcm& pcm, const std::vector<int64_t>& sizes) {
  std::unique_ptr<ClipFeatures> features;
  CHECK(ClipFeatures::create(kBands, device, &features).ok());
  std::vector<Chunk> closed;
  size_t turn = 0;
  for (int64_t at = 0; at < static_cast<int64_t>(pcm.size());) {
    const int64_t count = std::min(sizes[turn++ % sizes.size()], static_cast<int64_t>(pcm.size()) - at);
    CHECK(features->push(pcm.data() + at, count, &closed).ok());
    at += count;
    CHECK(features->pushed() == at);
  }
  CHECK(features->finish(&closed).ok() && features->pushed() == 0);
  return closed;
}

}  // namespace

// Needs no GPU: what is handed on is cut on the host.
TEST(for_a_gpu_clips_are_cut_as_on_the_cpu_and_handed_on_as_samples) {
  for (const int64_t samples : {int64_t{0}, int64_t{1}, int64_t{500}, kMaxChunkSamples, kMaxChunkSamples + 1,
                                2 * kChunkSamples, 2 * kChunkSamples + 1}) {
    const Pcm pcm = logmel_calls::noise(samples);
    for (const auto& sizes : {std::vector<int64_t>{samples + 1}, std::vector<int64_t>{160, 70'001, 13}}) {
      const auto closed = in_pieces(Device::kCuda, pcm, sizes);
      std::vector<int64_t> lengths;
      auto at = pcm.begin();
      for (const Chunk& chunk : closed) {
        lengths.push_back(chunk.samples);
        CHECK(chunk.mel.empty() && static_cast<int64_t>(chunk.pcm.size()) == chunk.samples);
        CHECK(chunk.frames == mel_frames(chunk.samples));
        CHECK(std::equal(chunk.pcm.begin(), chunk.pcm.end(), at));
        at += chunk.samples;
      }
      CHECK(lengths == chunk_sizes(samples) && at == pcm.end());
    }
  }
}

TEST(a_wrong_sample_is_refused_at_its_push_in_the_cpus_words_and_forgotten) {
  const Pcm good = logmel_calls::noise(1000);
  for (const float wrong : {NAN, -INFINITY, 2e15F}) {
    Pcm bad = good;
    bad[7] = wrong;
    std::string said[2];
    for (const Device device : {Device::kCpu, Device::kCuda}) {
      std::unique_ptr<ClipFeatures> features;
      std::vector<Chunk> closed;
      CHECK(ClipFeatures::create(kBands, device, &features).ok());
      CHECK(features->push(good.data(), 600, &closed).ok());
      const Status refused = features->push(bad.data(), 1000, &closed);
      CHECK(refused.code() == StatusCode::kInvalidArgument && features->pushed() == 600);
      said[device == Device::kCuda] = refused.message();
      CHECK(features->push(good.data() + 600, 400, &closed).ok() && features->finish(&closed).ok());
      const auto whole = in_pieces(device, good, {1000});
      CHECK(closed.size() == 1 && closed[0].pcm == whole[0].pcm && closed[0].mel == whole[0].mel);
    }
    CHECK(said[0] == said[1] && said[0].find(" at sample 607") != std::string::npos);
  }
  for (const int64_t bands : {int64_t{0}, int64_t{257}, int64_t{1} << 33}) {
    std::unique_ptr<ClipFeatures> features;
    const Status refused = ClipFeatures::create(bands, Device::kCuda, &features);
    CHECK(refused.message() == "[logmel] n_mels: expected 1 to 256, got " + std::to_string(bands));
  }
}

TEST(a_piece_for_whose_chunk_there_was_no_memory_can_come_again) {
  const Pcm pcm = logmel_calls::noise(2 * kChunkSamples + 9);
  std::unique_ptr<ClipFeatures> features;
  std::vector<Chunk> closed;
  CHECK(ClipFeatures::create(kBands, Device::kCuda, &features).ok());
  for (const int64_t end : {kMaxChunkSamples - 70, kMaxChunkSamples + 70, 2 * kChunkSamples + 9}) {
    const int64_t before = features->pushed();
    memory_is_out = true;
    const Status failed = features->push(pcm.data() + before, end - before, &closed);
    if (std::exchange(memory_is_out, false)) continue;  // nobody asked
    CHECK(failed.code() == StatusCode::kOutOfMemory && features->pushed() == before);
    CHECK(features->push(pcm.data() + before, end - before, &closed).ok());
  }
  memory_is_out = true;
  CHECK(features->finish(&closed).code() == StatusCode::kOutOfMemory);
  CHECK(features->finish(&closed).ok());
  const auto whole = in_pieces(Device::kCuda, pcm, {2 * kChunkSamples + 9});
  CHECK(closed.size() == 3 && std::equal(closed.begin(), closed.end(), whole.begin(), whole.end(),
                                         [](const Chunk& a, const Chunk& b) { return a.pcm == b.pcm; }));
}

#if defined(EARNEST_WITH_CUDA)
namespace {

const std::shared_ptr<const LoadedModel>& on(Device device) {
  require_device();
  static const auto made_on = [](Device device) {
    Config sizes = narrow_config_for_gpu(128);
    sizes.audio.n_mels = kBands;
    sizes.audio.n_audio_state = 64;
    sizes.audio.n_audio_head = sizes.text.num_hidden_layers = 1;
    return model_of(sizes, 3, Precision::kBFloat16, device, true);
  };
  static const auto here = made_on(Device::kCpu), there = made_on(Device::kCuda);
  return device == Device::kCpu ? here : there;
}

template <typename T>
std::vector<T> computed_there(const Pcm& pcm, int n_mels) {
  const auto samples = static_cast<int64_t>(pcm.size());
  Arena arena(Device::kCuda);
  OnDevice<float> given(pcm);
  OnDevice<T> mel(std::vector<T>(static_cast<size_t>(mel_frames(samples) * n_mels)));
  const Status status = features_of(given.data(), samples, n_mels, mel.data(), &arena);
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
  CHECK(status.ok());
  return mel.values();
}

std::vector<float> computed_here(const Pcm& pcm, int n_mels) {
  const auto samples = static_cast<int64_t>(pcm.size());
  Arena arena;
  std::vector<float> mel(static_cast<size_t>(mel_frames(samples) * n_mels));
  CHECK(features_of(pcm.data(), samples, n_mels, mel.data(), &arena).ok());
  return mel;
}

std::vector<float> by_the_kernels(const Pcm& pcm, int n_mels) {
  return logmel_calls::alone(pcm, n_mels, logmel_calls::Padding::kStepAudio, true);
}

Status hear(const LoadedModel& loaded, const Sound& sound, Arena* arena, std::vector<char>* heard) {
  const auto& sizes = loaded.config();
  heard->assign(
      static_cast<size_t>(sizes.audio.audio_tokens(sound.frames) * sizes.text.hidden_size) * sizeof(BFloat16),
      0);
  arena->reset();
  return loaded.model().hear(sound, heard->data(), arena);
}

std::vector<char> heard_of(const LoadedModel& loaded, const Sound& sound) {
  Arena arena;
  std::vector<char> heard;
  const Status status = hear(loaded, sound, &arena, &heard);
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
  CHECK(status.ok());
  return heard;
}

Sound sound_of(const Pcm& pcm) { return Sound::of_samples(pcm.data(), static_cast<int64_t>(pcm.size())); }

std::vector<std::shared_ptr<HeardChunk>> chunks_of(const Session& session) {
  return std::get<Chunks>(session.state()->open->parts[0]);
}

}  // namespace

TEST(features_on_a_device_are_the_kernels_in_rows_of_frames) {
  // Loud first: without the clip's maximum the quiet end would be another.
  Pcm fading = logmel_calls::speechlike(5300);
  for (size_t i = 2000; i < fading.size(); ++i) fading[i] *= 1e-6F;
  for (const auto& [pcm, n_mels] : {std::pair{fading, 80}, std::pair{logmel_calls::noise(1), 128},
                                    std::pair{logmel_calls::speechlike(4960), 8}}) {
    const auto wanted = by_the_kernels(pcm, n_mels);
    const auto found = computed_there<float>(pcm, n_mels);
    CHECK(logmel_calls::same_bits(found, in_rows<float>(wanted, n_mels)));
    const auto rounded = computed_there<BFloat16>(pcm, n_mels), rows = in_rows<BFloat16>(wanted, n_mels);
    CHECK(std::memcmp(rounded.data(), rows.data(), rows.size() * sizeof(BFloat16)) == 0);
    const auto cpu = computed_here(pcm, n_mels);
    CHECK(pcm.size() == 1 || found != cpu);  // float64 there
    for (size_t i = 0; i < cpu.size(); ++i) CHECK_NEAR(found[i], cpu[i], 1e-4);
  }
}

TEST(features_of_samples_on_the_cpu_are_those_of_a_clip_in_pieces) {
  const Pcm pcm = logmel_calls::speechlike(5300);
  const auto closed = in_pieces(Device::kCpu, pcm, {1, 700, 33});
  const auto whole = computed_here(pcm, kBands);
  CHECK(closed.size() == 1 &&
        std::equal(whole.begin(), whole.end(), closed[0].mel.begin(), closed[0].mel.end()));
  const LoadedModel& loaded = *on(Device::kCpu);
  CHECK(heard_of(loaded, sound_of(pcm)) ==
        heard_of(loaded, Sound::of_features(closed[0].mel.data(), closed[0].frames)));
}

TEST(what_is_spoken_into_a_session_is_heard_with_the_kernels_features_in_pieces_of_any_size) {
  const Pcm pcm = logmel_calls::speechlike(2560);
  const LoadedModel& loaded = *on(Device::kCuda);
  const auto rows = in_rows<float>(by_the_kernels(pcm, kBands), kBands);
  const auto wanted = heard_of(loaded, Sound::of_features(rows.data(), mel_frames(2560)));
  CHECK(heard_of(loaded, sound_of(pcm)) == wanted);
  for (const size_t size : {pcm.size(), size_t{700}}) {
    const auto own = engine(on(Device::kCuda));
    const auto one = session(own);
    std::unique_ptr<SpokenClip> clip;
    CHECK(SpokenClip::create(*one, "user", 16000, 1, &clip).ok());
    for (size_t at = 0; at < pcm.size(); at += size) {
      CHECK(clip->push(std::span(pcm).subspan(at, std::min(size, pcm.size() - at))).ok());
    }
    CHECK(clip->commit().ok());
    rest(*own);
    const auto chunks = chunks_of(*one);
    CHECK(chunks.size() == 1 && chunks[0]->heard && chunks[0]->embeddings == wanted);
    CHECK(chunks[0]->mel.empty() && chunks[0]->pcm.empty());
    // The same samples again are the same sound, others are another.
    add_sound(one.get(), pcm);
    add_sound(one.get(), sound(0.05, 6));
    const auto& parts = one->state()->open->parts;
    CHECK(std::get<Chunks>(parts[1])[0] == chunks[0] && std::get<Chunks>(parts[2])[0] != chunks[0]);
  }
}

TEST(sounds_that_nobody_has_heard_yet_go_from_device_to_device_in_files) {
  char path[] = "/tmp/earnest_hearing_session_XXXXXX";
  CHECK(close(mkstemp(path)) == 0);
  EngineOptions tight;  // without room to read ahead
  tight.kv_bytes = kv_bytes(*on(Device::kCpu), 4);
  const Pcm pcm = sound(0.1, 9);
  const auto ask = [](Session* session) {
    CHECK(session->add_text("user", "what is it?").ok());
    return say(session, options(4, 1));
  };
  const auto mel = computed_here(pcm, kBands);
  const Sound made_here = Sound::of_features(mel.data(), mel_frames(1600));
  for (const Device from : {Device::kCpu, Device::kCuda}) {
    const auto own = engine(on(from), tight);
    const auto one = session(own);
    add_sound(one.get(), pcm);
    rest(*own);
    CHECK(!chunks_of(*one)[0]->heard && one->save(path).ok());
    for (const Device to : {Device::kCpu, Device::kCuda}) {
      const auto other = engine(on(to));
      std::unique_ptr<Session> loaded;
      CHECK(Session::load(other, path, &loaded).ok());
      if (loaded == nullptr) continue;
      const auto chunk = chunks_of(*loaded)[0];
      CHECK(!chunk->heard);
      CHECK(from == Device::kCuda ? std::equal(pcm.begin(), pcm.end(), chunk->pcm.begin(), chunk->pcm.end())
                                  : std::equal(mel.begin(), mel.end(), chunk->mel.begin(), chunk->mel.end()));
      CHECK(chunk->mel.empty() == (from == Device::kCuda) && chunk->pcm.empty() == (from == Device::kCpu));
      const Said said = ask(loaded.get());
      CHECK(said.status.ok() && !said.ids.empty() && other->stats().encoded_chunks == 1);
      // Samples are heard as they would be there, features as they were made.
      CHECK(chunk->embeddings == heard_of(*on(to), from == Device::kCuda ? sound_of(pcm) : made_here));
    }
  }
  // What lies there last is of a GPU.
  const std::string good = content(path);
  const std::string first(reinterpret_cast<const char*>(pcm.data()), 64);
  const size_t at = good.find(first);
  CHECK(at != std::string::npos);
  const std::string no_samples("\2\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
  for (const auto& [place, bytes, said] :
       {std::tuple{at + 40, std::string("\x00\x00\xc0\x7f", 4), "got nan at sample 10"},
        std::tuple{size_t{8}, std::string("\1", 1), "a sound that the encoder takes"},  // version 1 has none
        std::tuple{at - 24, no_samples, "the samples of 2 frames, got 0"},
        std::tuple{at - 7, std::string("\x05", 1), "the samples of 12 frames"}}) {
    std::string bad = good;
    bad.replace(place, bytes.size(), bytes);
    write(path, signed_again(bad));
    std::unique_ptr<Session> loaded;
    const Status status = Session::load(engine(on(Device::kCpu)), path, &loaded);
    CHECK(status.code() == StatusCode::kCorrupt && status.message().find(said) != std::string::npos);
  }
  std::remove(path);
}

TEST(samples_that_are_no_numbers_are_an_error_wherever_a_model_is) {
  Pcm pcm = sound(0.1, 3);
  Arena arena;
  std::vector<char> heard, again;
  for (const Device device : {Device::kCpu, Device::kCuda}) {
    const auto wanted = heard_of(*on(device), sound_of(pcm));
    for (const float wrong : {NAN, 3e15F}) {
      Pcm bad = pcm;
      bad[700] = wrong;
      const Status refused = hear(*on(device), sound_of(bad), &arena, &heard);
      CHECK(refused.message().find("[logmel] pcm: expected finite samples of magnitude at most 1e15, got ") ==
            0);
      CHECK(refused.message().find(" at sample 700") != std::string::npos);
      CHECK(hear(*on(device), sound_of(pcm), &arena, &again).ok() && again == wanted);
    }
    CHECK(hear(*on(device), Sound::of_features(nullptr, 9), &arena, &heard).message() ==
          "[encoder] mel: expected features or samples, got neither");
  }
}

#if defined(EARNEST_WITH_EMULATOR)
TEST(samples_cost_five_pieces_of_work_more_than_features_and_none_goes_back) {
  const Pcm pcm = sound(0.1, 3);
  const auto rows = in_rows<float>(by_the_kernels(pcm, kBands), kBands);
  Arena arena;
  std::vector<char> heard;
  int64_t work[2] = {0, 0};
  for (const int with_samples : {0, 1}) {
    const Sound sound = with_samples == 1 ? sound_of(pcm) : Sound::of_features(rows.data(), mel_frames(1600));
    CHECK(hear(*on(Device::kCuda), sound, &arena, &heard).ok());
    const int64_t before = cuda::emulated::given(0).work;
    CHECK(hear(*on(Device::kCuda), sound, &arena, &heard).ok());
    work[with_samples] = cuda::emulated::given(0).work - before;
  }
  // Two fills, two kernels, the word of faults.
  CHECK(work[1] == work[0] + 5);
}

TEST(where_memory_of_the_device_runs_out_hearing_is_an_error_and_can_be_done_again) {
  const Pcm pcm = sound(0.1, 3);
  const auto wanted = heard_of(*on(Device::kCuda), sound_of(pcm));
  std::vector<char> heard;
  const size_t taken = cuda::emulated::memory_taken();
  int failed = 0;
  for (bool enough = false; !enough && failed < 9; failed += enough ? 0 : 1) {
    Arena arena;
    cuda::emulated::fail_allocation_after(failed);
    const Status status = hear(*on(Device::kCuda), sound_of(pcm), &arena, &heard);
    cuda::emulated::fail_allocation_after(-1);
    enough = status.ok();
    CHECK(enough || status.code() == StatusCode::kOutOfMemory);
    CHECK(hear(*on(Device::kCuda), sound_of(pcm), &arena, &heard).ok() && heard == wanted);
  }
  CHECK(failed >= 1 && failed < 9 && cuda::emulated::memory_taken() == taken);
}
#endif
#endif
