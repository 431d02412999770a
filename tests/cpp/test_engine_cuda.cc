// SPDX-License-Identifier: Apache-2.0
// The engine on Device::kCuda: a GPU, or the emulator. Its numbers are as near to float32 as the CPU's in the
// same precision, and what the engine promises of bits on the CPU holds there too.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/tiny_model.h"

using namespace tiny;
using earnest::BFloat16;
using earnest::Device;

#if defined(EARNEST_WITH_CUDA)
namespace {

constexpr int64_t kContext = 512;

const std::shared_ptr<const LoadedModel>& on(Device device) {
  require_device();
  static const auto here = model_of(config_for_gpu(kContext), 3, Precision::kBFloat16, Device::kCpu, true);
  static const auto there = model_of(config_for_gpu(kContext), 3, Precision::kBFloat16, Device::kCuda, true);
  return device == Device::kCpu ? here : there;
}

// Half as wide, for what one head of keys shows as well.
Config narrow_config() { return narrow_config_for_gpu(kContext); }
const std::shared_ptr<const LoadedModel>& narrow(Device device = Device::kCuda) {
  require_device();
  static const auto here = model_of(narrow_config(), 3, Precision::kBFloat16, Device::kCpu, true);
  static const auto there = model_of(narrow_config(), 3, Precision::kBFloat16, Device::kCuda, true);
  return device == Device::kCpu ? here : there;
}

const std::shared_ptr<const LoadedModel>& exact() {
  static const auto loaded = model_of(config_for_gpu(kContext), 3, Precision::kFloat32, Device::kCpu, true);
  return loaded;
}

std::vector<int64_t> prompt(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(2 + static_cast<int64_t>(random() % 400));
  return ids;
}

// One sequence of many: what it has read, and a cache to go on with.
struct Sequence {
  KVCache cache;
  std::vector<int64_t> ids;
};

std::shared_ptr<KVPool> pool_of(const LoadedModel& loaded, int64_t tokens) {
  std::shared_ptr<KVPool> pool;
  CHECK(
      KVPool::create(loaded.config().text, loaded.model().precision(), tokens, &pool, loaded.model().device())
          .ok());
  return pool;
}

// Hidden states of the last `wanted` of the ids, as the model's numbers lie.
std::vector<char> run(const LoadedModel& loaded, const std::vector<Segment>& segments) {
  int64_t rows = 0;
  for (const Segment& segment : segments) rows += segment.wanted;
  const auto& text = loaded.config().text;
  std::vector<char> hidden(static_cast<size_t>(rows * text.hidden_size) *
                           size_of(loaded.model().precision()));
  Arena arena;
  const Status status = loaded.model().forward(segments, hidden.data(), &arena);
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
  CHECK(status.ok());
  return hidden;
}

Segment segment_of(KVCache* cache, const std::vector<int64_t>& ids, int64_t first, int64_t count,
                   int64_t wanted) {
  Segment segment;
  segment.cache = cache;
  segment.count = count;
  segment.ids = ids.data() + first;
  segment.wanted = wanted;
  return segment;
}

std::vector<float> numbers(const std::vector<char>& hidden, Precision precision) {
  std::vector<float> found;
  if (precision == Precision::kFloat32) {
    const auto* first = reinterpret_cast<const float*>(hidden.data());
    return {first, first + hidden.size() / sizeof(float)};
  }
  const auto* first = reinterpret_cast<const BFloat16*>(hidden.data());
  for (size_t i = 0; i < hidden.size() / 2; ++i) found.push_back(earnest::widen(first[i]));
  return found;
}

std::vector<float> whole(const LoadedModel& loaded, const std::vector<int64_t>& ids) {
  const auto pool = pool_of(loaded, 256);
  KVCache cache;
  CHECK(pool->allocate(200, &cache).ok());
  const auto count = static_cast<int64_t>(ids.size());
  return numbers(run(loaded, {segment_of(&cache, ids, 0, count, count)}), loaded.model().precision());
}

double root_mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// What an engine on a device says in some turns, a clip among them.
std::vector<Said> dialogue(const std::shared_ptr<Engine>& own, Session* one, uint32_t seed, int turns) {
  std::vector<Said> said;
  for (int turn = 0; turn < turns; ++turn) {
    CHECK(one->add_text("user", "turn " + std::to_string(seed) + " and the " + std::to_string(turn)).ok());
    if (turn == 1) add_sound(one, sound(0.1, seed));
    said.push_back(say(one, options(seed * 100 + static_cast<uint32_t>(turn), 3)));
  }
  rest(*own);
  return said;
}

}  // namespace

TEST(hidden_states_are_as_near_to_float32_as_the_cpus_of_the_same_precision) {
  for (const int64_t count : {1, 17, 66}) {
    const auto ids = prompt(count, 5);
    const auto wanted = whole(*exact(), ids);
    const double cpu = root_mean_square(whole(*on(Device::kCpu), ids), wanted);
    const double cuda = root_mean_square(whole(*on(Device::kCuda), ids), wanted);
    std::printf("     %d tokens: off by %.5f on the CPU, %.5f on CUDA\n", static_cast<int>(count), cpu, cuda);
    CHECK(cuda > 0 && cuda <= 1.5 * cpu);
  }
}

// Which rounds no activations to 8 bits there.
TEST(codes_on_a_device_are_as_near_as_on_the_cpu) {
  const auto ids = prompt(40, 5);
  const auto wanted = whole(*model_of(narrow_config(), 3, Precision::kFloat32, Device::kCpu, true), ids);
  for (const Quantization codes : {Quantization::kInt8, Quantization::kInt4}) {
    double off[2];
    for (const Device device : {Device::kCpu, Device::kCuda}) {
      const auto loaded = model_of(narrow_config(), 3, Precision::kBFloat16, device, true, codes);
      off[device == Device::kCuda] = root_mean_square(whole(*loaded, ids), wanted);
    }
    std::printf("     %s: off by %.5f on the CPU, %.5f on CUDA\n", name_of(codes), off[0], off[1]);
    CHECK(off[1] > 0 && off[1] <= 1.1 * off[0]);
  }
}

TEST(on_a_device_pieces_of_a_prompt_give_the_bits_of_the_whole) {
  const LoadedModel& loaded = *on(Device::kCuda);
  const auto ids = prompt(61, 9);
  const auto pool = pool_of(loaded, 256);
  KVCache cache;
  CHECK(pool->allocate(64, &cache).ok());
  const std::vector<char> all = run(loaded, {segment_of(&cache, ids, 0, 61, 61)});
  CHECK(cache.length() == 61 && cache.truncate(0).ok());
  std::vector<char> pieces;
  int64_t first = 0;
  for (const int64_t count : {1, 30, 1, 2, 20, 7}) {
    const std::vector<char> more = run(loaded, {segment_of(&cache, ids, first, count, count)});
    pieces.insert(pieces.end(), more.begin(), more.end());
    first += count;
  }
  CHECK(first == 61 && pieces == all);
  // Of the last layer, the wanted rows alone.
  CHECK(cache.truncate(40).ok());
  const std::vector<char> last = run(loaded, {segment_of(&cache, ids, 40, 21, 2)});
  CHECK(std::equal(last.begin(), last.end(), all.end() - static_cast<int64_t>(last.size())));
}

TEST(on_a_device_a_sequence_in_a_batch_has_the_bits_that_it_has_alone) {
  const LoadedModel& loaded = *on(Device::kCuda);
  const auto pool = pool_of(loaded, 256);
  const std::vector<int64_t> counts = {1, 33, 2, 19, 5}, wanted = {1, 2, 0, 19, 1};
  std::vector<Sequence> sequences(counts.size());
  // The order of the caches in the pool is not that of the segments.
  for (const size_t i : {size_t{3}, size_t{0}, size_t{4}, size_t{1}, size_t{2}}) {
    sequences[i].ids = prompt(counts[i] + 3, static_cast<uint32_t>(i));
    CHECK(pool->allocate(40, &sequences[i].cache).ok());
    run(loaded, {segment_of(&sequences[i].cache, sequences[i].ids, 0, 3, 1)});
  }
  std::vector<Segment> segments;
  for (size_t i = 0; i < counts.size(); ++i) {
    segments.push_back(segment_of(&sequences[i].cache, sequences[i].ids, 3, counts[i], wanted[i]));
  }
  const std::vector<char> together = run(loaded, segments);
  std::vector<char> apart;
  for (size_t i = 0; i < counts.size(); ++i) {
    CHECK(sequences[i].cache.length() == counts[i] + 3 && sequences[i].cache.truncate(3).ok());
    const std::vector<char> one = run(loaded, {segments[i]});
    apart.insert(apart.end(), one.begin(), one.end());
  }
  CHECK(together == apart);
}

TEST(given_embeddings_stand_where_they_belong_on_a_device) {
  const LoadedModel& loaded = *on(Device::kCuda);
  const int64_t width = loaded.config().text.hidden_size;
  const auto pool = pool_of(loaded, 64);
  KVCache cache;
  CHECK(pool->allocate(64, &cache).ok());
  const auto ids = prompt(9, 2);
  const std::vector<char> wanted = run(loaded, {segment_of(&cache, ids, 0, 9, 9)});
  CHECK(cache.truncate(0).ok());
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<BFloat16> given(static_cast<size_t>(2 * width));
  for (BFloat16& number : given) earnest::narrow(normal(random), &number);
  std::vector<int64_t> mixed = ids;
  mixed[4] = mixed[7] = kGivenEmbedding;
  Segment segment = segment_of(&cache, mixed, 0, 9, 9);
  segment.embeddings = given.data();
  segment.embedding_rows = 2;
  const std::vector<char> found = run(loaded, {segment});
  const size_t row = static_cast<size_t>(width) * 2;
  CHECK(std::equal(found.begin(), found.begin() + static_cast<int64_t>(4 * row), wanted.begin()));
  CHECK(!std::equal(found.begin() + static_cast<int64_t>(4 * row), found.end(),
                    wanted.begin() + static_cast<int64_t>(4 * row)));
  // One of them twice instead of the second: the rows from there on change.
  std::copy(given.begin(), given.begin() + width, given.begin() + width);
  CHECK(cache.truncate(0).ok());
  const std::vector<char> other = run(loaded, {segment});
  CHECK(std::equal(found.begin(), found.begin() + static_cast<int64_t>(7 * row), other.begin()));
  CHECK(found != other);
}

TEST(the_likeliest_tokens_are_the_cpus_or_as_good_as_these) {
  const auto ids = prompt(8, 4);
  std::vector<int64_t> said = ids;
  int differ = 0;
  KVCache caches[2];
  for (const Device device : {Device::kCpu, Device::kCuda})
    CHECK(pool_of(*narrow(device), 64)->allocate(64, &caches[device == Device::kCuda]).ok());
  const auto logits_of = [&](const LoadedModel& loaded) {
    KVCache* const cache = &caches[loaded.model().device() == Device::kCuda];
    const auto count = static_cast<int64_t>(said.size()) - cache->length();
    const std::vector<char> hidden = run(loaded, {segment_of(cache, said, cache->length(), count, 1)});
    std::vector<float> logits(static_cast<size_t>(loaded.config().text.vocab_size));
    Arena arena;
    CHECK(loaded.model().logits(hidden.data(), 1, logits.data(), &arena).ok());
    return logits;
  };
  for (int step = 0; step < 10; ++step) {
    const auto here = logits_of(*narrow(Device::kCpu)), there = logits_of(*narrow(Device::kCuda));
    const auto best = std::max_element(here.begin(), here.end()) - here.begin(),
               other = std::max_element(there.begin(), there.end()) - there.begin();
    // Another token only where both are within the rounding of the numbers.
    const float largest = std::abs(here[static_cast<size_t>(best)]);
    CHECK(here[static_cast<size_t>(best)] - here[static_cast<size_t>(other)] <= 0.05F * largest);
    differ += best != other;
    for (size_t i = 0; i < here.size(); ++i) CHECK_NEAR(here[i], there[i], 0.05 * largest + 0.05);
    said.push_back(best);
  }
  std::printf("     %d of 10 tokens differ\n", differ);
  CHECK(differ <= 1);
}

TEST(log_probabilities_and_sounds_are_near_the_cpus) {
  const LoadedModel &here = *on(Device::kCpu), &there = *on(Device::kCuda);
  const auto& text = here.config().text;
  Arena arena;
  std::mt19937 random(8);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<BFloat16> hidden(static_cast<size_t>(5 * text.hidden_size));
  for (BFloat16& number : hidden) earnest::narrow(normal(random), &number);
  const std::vector<int64_t> targets = {0, 7, 419, 33, 200};
  std::vector<float> logp[2], entropy[2];
  for (const int i : {0, 1}) {
    logp[i].resize(5), entropy[i].resize(5);
    const Model& model = i == 0 ? here.model() : there.model();
    CHECK(
        model.logprob(hidden.data(), 5, targets.data(), 0.7, logp[i].data(), entropy[i].data(), &arena).ok());
  }
  for (size_t i = 0; i < 5; ++i) {
    CHECK_NEAR(logp[0][i], logp[1][i], 1e-3 * (1 + std::abs(logp[0][i])));
    CHECK_NEAR(entropy[0][i], entropy[1][i], 1e-3 * (1 + entropy[0][i]));
  }
  const int64_t wrong = 420;
  const Status outside =
      there.model().logprob(hidden.data(), 1, &wrong, 1, logp[0].data(), entropy[0].data(), &arena);
  CHECK(outside.code() == StatusCode::kInvalidArgument && outside.message().find("[logprob] targets: ") == 0);

  const int64_t frames = 63;
  std::vector<float> mel(static_cast<size_t>(frames * here.config().audio.n_mels));
  for (float& number : mel) number = normal(random);
  const int64_t rows = here.config().audio.audio_tokens(frames);
  std::vector<float> heard[3];
  int at = 0;
  for (const auto& loaded : {exact(), on(Device::kCpu), on(Device::kCuda)}) {
    std::vector<char> out(static_cast<size_t>(rows * text.hidden_size) *
                          size_of(loaded->model().precision()));
    CHECK(loaded->model().hear(Sound::of_features(mel.data(), frames), out.data(), &arena).ok());
    heard[at++] = numbers(out, loaded->model().precision());
  }
  const double cpu = root_mean_square(heard[1], heard[0]), cuda = root_mean_square(heard[2], heard[0]);
  std::printf("     sounds: off by %.5f on the CPU, %.5f on CUDA\n", cpu, cuda);
  CHECK(cuda > 0 && cuda <= 1.5 * cpu);
}

TEST(dialogues_on_a_device_say_together_what_each_says_alone) {
  EngineOptions how;
  how.prefill_tokens = 16;
  const auto& loaded = narrow();
  const auto both = engine(loaded, how);
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<std::unique_ptr<Answer>> answers(3);
  for (uint32_t seed = 0; seed < 3; ++seed) {
    sessions.push_back(session(both));
    CHECK(sessions[seed]->add_text("user", "turn " + std::to_string(seed) + " and the 0").ok());
    CHECK(Answer::start(sessions[seed].get(), options(seed * 100, 3), &answers[seed]).ok());
  }
  for (uint32_t seed = 0; seed < 3; ++seed) {
    const Said together = finish(answers[seed].get());
    const auto own = engine(loaded);
    const auto one = session(own);
    CHECK(together == dialogue(own, one.get(), seed, 1)[0]);
    CHECK(together.status.ok() && !together.ids.empty());
  }
}

TEST(forks_cuts_and_files_go_on_with_the_same_bits_on_a_device) {
  const auto& loaded = narrow();
  const auto own = engine(loaded);
  const auto one = session(own);
  const auto first = dialogue(own, one.get(), 1, 2);
  std::unique_ptr<Session> fork, read;
  CHECK(one->fork(&fork).ok());
  char path[] = "/tmp/earnest_cuda_session_XXXXXX";
  CHECK(close(mkstemp(path)) == 0);
  CHECK(one->save(path).ok());
  const auto fresh = engine(loaded);
  CHECK(Session::load(fresh, path, &read).ok());
  std::remove(path);
  const auto ask = [](Session* session) {
    CHECK(session->add_text("user", "another").ok());
    return say(session, options(99, 2));
  };
  const Said here = ask(one.get()), forked = ask(fork.get()), loaded_again = ask(read.get());
  CHECK(here.status.ok() && here == forked && here == loaded_again);
  CHECK(loaded_again.usage.cached_tokens > loaded_again.usage.prompt_tokens / 2);
  CHECK(fork->truncate(4).ok());
  const Said cut = ask(fork.get());
  CHECK(cut == here && cut.usage.cached_tokens > cut.usage.prompt_tokens / 2);
}

TEST(caches_on_a_device_move_down_over_themselves) {
  const LoadedModel& loaded = *on(Device::kCuda);
  const auto pool = pool_of(loaded, 30);
  KVCache before, cache, behind;
  CHECK(pool->allocate(7, &before).ok() && pool->allocate(16, &cache).ok() &&
        pool->allocate(7, &behind).ok());
  const auto ids = prompt(21, 6);
  const std::vector<char> all = run(loaded, {segment_of(&cache, ids, 0, 16, 16)});
  CHECK(cache.truncate(15).ok());
  before.clear();
  CHECK(pool->grow(21, &cache).ok() && cache.start() == 0 && cache.length() == 15);
  const std::vector<char> last = run(loaded, {segment_of(&cache, ids, 15, 1, 1)});
  CHECK(std::equal(last.begin(), last.end(), all.end() - static_cast<int64_t>(last.size())));
}

TEST(weights_that_a_trainer_keeps_on_the_device_are_used_where_they_lie) {
  const Config sizes = narrow_config();
  std::vector<std::shared_ptr<OnDevice<BFloat16>>> kept;
  const auto numbers_of = [](const TensorView& view) {
    std::vector<BFloat16> numbers(static_cast<size_t>(view.count()));
    read(view, 0, view.count(), numbers.data());
    return numbers;
  };
  Tensors there = tensors_of(sizes, 3, true);
  const Tensors other = tensors_of(sizes, 4, true);
  for (auto& [name, view] : there.views) {
    kept.push_back(std::make_shared<OnDevice<BFloat16>>(numbers_of(view)));
    view.type = StoredType::kBFloat16;
    view.data = kept.back()->data();
    view.device = Device::kCuda;
  }
  std::shared_ptr<Model> shared;
  CHECK(Model::create(sizes, there, Precision::kBFloat16, &shared, Quantization::kNone, Device::kCuda).ok());
  CHECK(shared->weight_bytes() < narrow()->model().weight_bytes() / 4);  // convolutions' taps alone
  const auto ids = prompt(9, 1);
  const auto states_of = [&](const Model& model) {
    std::shared_ptr<KVPool> pool;
    KVCache cache;
    CHECK(KVPool::create(sizes.text, Precision::kBFloat16, 16, &pool, Device::kCuda).ok());
    CHECK(pool->allocate(16, &cache).ok());
    std::vector<char> hidden(static_cast<size_t>(9 * sizes.text.hidden_size * 2));
    Arena arena;
    CHECK(model.forward({segment_of(&cache, ids, 0, 9, 9)}, hidden.data(), &arena).ok());
    return hidden;
  };
  const std::vector<char> before = states_of(*shared);
  CHECK(before == states_of(narrow()->model()));
  // A step of the trainer: nothing is to be read again.
  size_t at = 0;
  for (const auto& [name, view] : other.views) {
    const auto numbers = numbers_of(view);
    OnDevice<BFloat16>& array = *kept[at++];
    CHECK(earnest::cuda::copy("test", array.data(), numbers.data(), numbers.size() * 2, nullptr).ok());
  }
  const auto fresh = model_of(sizes, 4, Precision::kBFloat16, Device::kCuda, true);
  const std::vector<char> after = states_of(*shared);
  CHECK(after != before && after == states_of(fresh->model()));

  CHECK(Model::create(sizes, there, Precision::kBFloat16, &shared)
            .message()
            .find("expected memory of the host for a model on cpu, got memory on cuda") != std::string::npos);
}

TEST(what_a_device_cannot_do_is_an_error) {
  const auto own = engine(narrow());
  const auto one = session(own);
  CHECK(one->add_text("user", std::string("a ") + kPoison + " b").ok());
  const Said said = say(one.get(), options(1, 3));
  CHECK(said.finish == Finish::kError && said.status.message().find("[decoder] hidden states") == 0);
  CHECK(one->truncate(0).ok() && one->add_text("user", "the other").ok());
  CHECK(say(one.get(), options(1, 3)).status.ok());

  KVCache cache;
  CHECK(pool_of(*on(Device::kCpu), 8)->allocate(8, &cache).ok());
  const auto ids = prompt(2, 1);
  std::vector<char> hidden(4096);
  Arena arena;
  CHECK(on(Device::kCuda)
            ->model()
            .forward({segment_of(&cache, ids, 0, 2, 1)}, hidden.data(), &arena)
            .message() == "[decoder] cache: expected one on cuda, got one on cpu");

  std::shared_ptr<Model> model;
  const auto load = [&](const Config& config, Precision precision, Quantization quantization) {
    return Model::create(config, {}, precision, &model, quantization, Device::kCuda).message();
  };
  CHECK(load(config_for_gpu(64), Precision::kFloat32, Quantization::kNone) ==
        "[load] precision: expected bfloat16 on cuda, got float32");
  CHECK(load(config(64), Precision::kBFloat16, Quantization::kNone) ==
        "[load] decoder's heads: expected a size of 64 or 128 on cuda, got 8");
}
#else
TEST(without_cuda_a_model_on_it_is_refused_with_the_reason) {
  std::shared_ptr<Model> model;
  const Status status =
      Model::create(config_for_gpu(64), {}, Precision::kBFloat16, &model, Quantization::kNone, Device::kCuda);
  CHECK(status.code() == StatusCode::kUnsupported);
  CHECK(status.message() == "[engine] device: expected cpu (earnest was built without CUDA), got cuda");
  std::shared_ptr<KVPool> pool;
  CHECK(!KVPool::create(config_for_gpu(64).text, Precision::kBFloat16, 8, &pool, Device::kCuda).ok());
}
#endif
