// SPDX-License-Identifier: Apache-2.0
// Steps of decoding as CUDA graphs: a GPU's, or those that the emulator keeps with all arguments by value, so
// that a step that has a number of the host baked in repeats it, and is found by another result.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "csrc/engine/decode_graphs.h"
#include "csrc/engine/step.h"
#include "tests/cpp/check.h"
#include "tests/cpp/decoding_world.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/tiny_model.h"
#if defined(EARNEST_WITH_EMULATOR)
#include "kernels/common/cuda_emulated.h"
#endif

using namespace tiny;
using earnest::BFloat16;
using earnest::Device;
namespace cuda = earnest::cuda;

#if defined(EARNEST_WITH_CUDA)
namespace {

constexpr int64_t kContext = 1100;

Config small_config() { return narrow_config_for_gpu(kContext); }

const std::shared_ptr<const LoadedModel>& loaded(Quantization codes = Quantization::kNone) {
  require_device();
  static const auto plain = model_of(small_config(), 3, Precision::kBFloat16, Device::kCuda, true);
  static const auto coded =
      model_of(small_config(), 3, Precision::kBFloat16, Device::kCuda, true, Quantization::kInt8);
  return codes == Quantization::kNone ? plain : coded;
}

// Sequences come, go, are forked and cut; one passes the end of a piece of 512 keys.
void compare(const Model& model, int steps) {
  World recorded(model, true, 2000), plain(model, false, 2000);
  const auto all = [&](const auto& change) {
    for (World* world : {&recorded, &plain}) change(*world);
  };
  all([](World& world) { world.join(some_ids(3, 1), 40); });
  int wrong = 0;
  for (int step = 0; step < steps; ++step) {
    if (step == 2) all([](World& world) { world.join_long(505, 600); });  // 513 keys in step 9
    if (step == 4) all([](World& world) { world.fork(0, 40), world.join(some_ids(7, 3), 40); });
    if (step == 6) all([](World& world) { world.leave(0); });
    if (step == 11) all([](World& world) { world.join(some_ids(2, 4), 40), world.join(some_ids(5, 5), 40); });
    if (step == 13) all([](World& world) { world.leave(2), world.cut(1, 4); });
    if (step == 15) all([](World& world) { world.leave(world.size() - 1), world.leave(1); });
    if (step == 17) all([](World& world) { world.fork(1, 40); });
    const auto ids = some_ids(static_cast<int64_t>(plain.size()), 100 + static_cast<uint32_t>(step));
    wrong += recorded.step(ids, true) != plain.step(ids, false);
  }
  CHECK(wrong == 0);
  const auto counts = recorded.graphs().counts();
  std::printf("     %d steps replayed of %d, %d graphs\n", static_cast<int>(counts.replayed), steps,
              static_cast<int>(counts.recorded));
  CHECK(recorded.graphs().trouble().ok() && counts.replayed + counts.plain == steps);
  CHECK(counts.replayed >= steps / 2 && plain.graphs().counts().replayed == 0);
}

// A turn of three dialogues at once, one of which is forked, one cancelled.
std::vector<Said> talk(const EngineOptions& how, EngineStats* stats) {
  const auto own = engine(loaded(), how);
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<std::unique_ptr<Answer>> answers(4);
  for (uint32_t seed = 0; seed < 3; ++seed) {
    sessions.push_back(session(own));
    CHECK(sessions[seed]->add_text("user", "turn of " + std::to_string(seed)).ok());
    CHECK(Answer::start(sessions[seed].get(), endless(*loaded(), seed, 6 + 2 * seed), &answers[seed]).ok());
  }
  std::vector<Said> said;
  said.push_back(finish(answers[0].get()));
  std::unique_ptr<Session> fork;
  CHECK(sessions[0]->fork(&fork).ok() && fork->add_text("user", "and you?").ok());
  CHECK(Answer::start(fork.get(), endless(*loaded(), 9, 7), &answers[3]).ok());
  answers[1]->cancel();
  for (const size_t i : {2, 3}) said.push_back(finish(answers[i].get()));
  *stats = own->stats();
  return said;
}

// The same without graphs.
struct Launched {
  EngineStats stats;
  std::vector<Said> said;
};
const Launched& launched() {
  static const Launched once = [] {
    Launched made;
    EngineOptions without;
    without.cuda_graphs = false;
    made.said = talk(without, &made.stats);
    return made;
  }();
  return once;
}

}  // namespace

TEST(recorded_steps_have_the_bits_of_plain_ones_while_sequences_come_and_go) {
  compare(loaded()->model(), 19);
}

TEST(recorded_steps_of_codes_have_the_bits_of_plain_ones) {
  compare(loaded(Quantization::kInt8)->model(), 8);
}

// Rows of which some need their logits at home: for penalties, cuts, or because nobody draws.
TEST(tokens_drawn_where_logits_are_are_those_drawn_at_home) {
  const Model& model = loaded()->model();
  const auto vocabulary = static_cast<size_t>(model.config().text.vocab_size);
  Sampling likeliest, warm, cut, repeated;
  likeliest.temperature = 0, warm.temperature = 1.3, cut.top_p = 0.9, repeated.repetition_penalty = 1.5;
  warm.suppressed = {7, 5, 6, 6, 419};
  std::vector<Sampler> samplers;
  for (const Sampling& how : {warm, cut, likeliest, Sampling(), repeated, warm})
    samplers.emplace_back(how, static_cast<int64_t>(vocabulary));
  samplers[4].heard(std::vector<int32_t>{3, 4, 5});
  World there(model, true, 400), home(model, false, 400);
  Sampler::Scratch scratch;
  for (World* world : {&there, &home})
    for (uint32_t i = 0; i < 7; ++i) world->join(some_ids(2 + i, i), 20);
  for (uint32_t step = 0; step < 3; ++step) {
    std::vector<Drawing> drawings(7);  // for the last one nobody draws
    for (size_t i = 0; i < 6; ++i) drawings[i] = {&samplers[i], uniform(step, i)};
    const auto ids = some_ids(7, 50 + step);
    const std::vector<char> found = there.step(ids, true, drawings), right = home.step(ids, false);
    const size_t states = right.size() - 7 * vocabulary * sizeof(float);
    CHECK(std::memcmp(found.data(), right.data(), states) == 0);
    for (size_t i = 0; i < 7; ++i) {
      std::vector<float> logits(vocabulary);
      std::memcpy(logits.data(), right.data() + states + i * vocabulary * sizeof(float),
                  vocabulary * sizeof(float));
      CHECK(drawings[i].drawn == (i == 0 || i == 2 || i == 3 || i == 5));
      if (!drawings[i].drawn) {
        CHECK(std::memcmp(found.data() + states + i * vocabulary * sizeof(float), logits.data(),
                          vocabulary * sizeof(float)) == 0);
        continue;
      }
      int32_t token = -1;
      CHECK(samplers[i].draw(logits, uniform(step, i), &scratch, &token).ok());
      CHECK(drawings[i].status.ok() && drawings[i].token == token);
    }
  }
  CHECK(there.graphs().counts().replayed == 2);
}

TEST(a_recording_is_made_once_for_each_size_and_again_when_addresses_change) {
  const Config sizes = small_config();
  std::shared_ptr<Model> model;
  CHECK(Model::create(sizes, tensors_of(sizes, 3, true), Precision::kBFloat16, &model, Quantization::kNone,
                      Device::kCuda)
            .ok());
  World world(*model, true, 2000);
  const auto steps = [&](int count) {
    for (int i = 0; i < count; ++i) world.step(some_ids(static_cast<int64_t>(world.size()), 7), true);
    return world.graphs().counts();
  };
  world.join(some_ids(3, 1), 64);
  CHECK(steps(1).recorded == 0 && steps(1).recorded == 1 && steps(3).recorded == 1);
  world.join(some_ids(3, 2), 64);
  world.join(some_ids(3, 3), 64);
  const auto of_three = steps(2);
  CHECK(of_three.recorded == 2);
  world.join(some_ids(4, 4), 64);
  CHECK(steps(3).recorded == of_three.recorded);  // as many rows as three have been filled up to
  CHECK(model->refresh().ok());
  CHECK(steps(2).recorded == of_three.recorded + 1 && steps(2).plain == of_three.plain);
}

TEST(a_recording_goes_with_the_keys_that_it_reads) {
  World moved(loaded()->model(), true, 100), stays(loaded()->model(), true, 100);
  for (int pool = 0; pool < 2; ++pool) {
    for (int step = 0; step < 3; ++step) {
      for (World* world : {&moved, &stays}) {
        if (step == 0 && pool == 1) world == &moved ? world->move(100) : world->leave(0);
        if (step == 0) world->join(some_ids(3, static_cast<uint32_t>(pool)), 20);
      }
      const auto ids = some_ids(1, 20 + static_cast<uint32_t>(step));
      CHECK(moved.step(ids, true) == stays.step(ids, true));
    }
  }
  CHECK(moved.graphs().counts().recorded == 2 && stays.graphs().counts().recorded == 1);
}

// Logits of 64 rows want more memory than a step of one row leaves, so that all of it moves.
TEST(a_recording_goes_with_the_memory_that_it_writes) {
  Config sizes = small_config();
  sizes.text.vocab_size = 8200;
  std::shared_ptr<Model> model;
  CHECK(Model::create(sizes, tensors_of(sizes, 3, true), Precision::kBFloat16, &model, Quantization::kNone,
                      Device::kCuda)
            .ok());
  World recorded(*model, true, 400), plain(*model, false, 400);
  const auto both_step = [&](uint32_t seed) {
    const auto ids = some_ids(static_cast<int64_t>(plain.size()), seed);
    CHECK(recorded.step(ids, true) == plain.step(ids, false));
  };
  for (World* world : {&recorded, &plain}) world->join(some_ids(3, 1), 10);
  for (uint32_t step = 0; step < 3; ++step) both_step(step);
  for (int i = 0; i < 32; ++i)
    for (World* world : {&recorded, &plain}) world->fork(0, 10);
  both_step(3);
  for (int i = 0; i < 32; ++i)
    for (World* world : {&recorded, &plain}) world->leave(1);
  both_step(4);
  CHECK(recorded.graphs().counts().recorded == 2);
}

TEST(answers_are_the_same_with_graphs_and_without) {
  EngineStats replayed;
  const auto recorded = talk({}, &replayed);
  CHECK(recorded == launched().said);
  for (const Said& said : recorded) CHECK(said.status.ok() && said.ids.size() >= 6);
  CHECK(replayed.graph_steps > 4 && replayed.graph_trouble.ok());  // how many have come together varies
  CHECK(launched().stats.graph_steps == 0 && launched().stats.plain_steps > 8);
}

#if defined(EARNEST_WITH_EMULATOR)
TEST(what_cannot_be_recorded_is_launched_and_said) {
  EngineStats stats;
  cuda::emulated::set_captures(false);
  const auto found = talk({}, &stats);
  cuda::emulated::set_captures(true);
  CHECK(found == launched().said && stats.graph_steps == 0 && stats.plain_steps > 8);
  CHECK(stats.graph_trouble.message() ==
        "[decoder] capture: expected a device that can, got one that cannot");
}

namespace {

// Answers that go on step by step without a scheduler: what each said is what it is given next.
class Speakers {
 public:
  // The last one has room for `room` tokens of its own alone.
  explicit Speakers(int count, int64_t room = 20) {
    const Model& model = loaded()->model();
    CHECK(KVPool::create(model.config().text, Precision::kBFloat16, 100, &pool_, Device::kCuda).ok());
    for (int i = 0; i < count; ++i) {
      StepRow row;
      row.prefix = std::make_shared<Prefix>();
      AnswerOptions options = endless(*loaded(), static_cast<uint64_t>(i), 20);
      if (i % 2 == 0) options.sampling.top_p = 1;  // drawn where logits are
      row.answer = std::make_shared<AnswerState>(*loaded(), options, false);
      row.draws = true;
      KVCache* const cache = &row.prefix->cache;
      const auto prompt = some_ids(kPrompt + i, static_cast<uint32_t>(i));
      CHECK(pool_->allocate(kPrompt + i + (i + 1 < count ? 20 : room), cache).ok());
      std::vector<char> hidden(static_cast<size_t>(model.config().text.hidden_size) * 2);
      CHECK(model.forward({segment_of(cache, prompt)}, hidden.data(), &arena_).ok());
      row.ids = {5 + i};
      rows_.push_back(row);
    }
  }
  void step() {
    Step step;
    step.rows = rows_;
    for (StepRow& row : step.rows) row.index = steps_;
    compute(loaded()->model(), &arena_, &graphs_, &step);
    rows_ = step.rows;
    for (StepRow& row : rows_) row.ids = {row.token};
    ++steps_;
  }
  void leave(size_t i) { rows_.erase(rows_.begin() + static_cast<std::ptrdiff_t>(i)); }
  const StepRow& row(size_t i) const { return rows_[i]; }
  int64_t said(size_t i) const { return row(i).prefix->cache.length() - kPrompt - static_cast<int64_t>(i); }
  const DecodeGraphs::Counts& counts() const { return graphs_.counts(); }

 private:
  static constexpr int64_t kPrompt = 3;
  std::shared_ptr<KVPool> pool_;
  Arena arena_;
  DecodeGraphs graphs_;
  std::vector<StepRow> rows_;
  uint64_t steps_ = 0;
};

bool same(const StepRow& a, const StepRow& b) {
  return a.status.ok() && b.status.ok() && a.read && b.read && a.token == b.token && a.hidden == b.hidden;
}

}  // namespace

TEST(a_step_says_what_is_drawn_from_its_logits) {
  const Model& model = loaded()->model();
  std::vector<float> logits(static_cast<size_t>(model.config().text.vocab_size));
  Speakers speakers(3);
  Sampler::Scratch scratch;
  Arena arena;
  for (int step = 0; step < 3; ++step) {
    speakers.step();
    for (size_t i = 0; i < 3; ++i) {
      const StepRow& row = speakers.row(i);
      arena.reset();
      CHECK(model.logits(row.hidden.data(), 1, logits.data(), &arena).ok());
      int32_t token = -1;
      CHECK(row.answer->sampler.draw(logits, uniform(row.answer->options.seed, row.index), &scratch, &token)
                .ok());
      CHECK(row.drawn == (i % 2 == 0) && row.token == token);
    }
  }
}

TEST(a_recorded_step_that_fails_is_done_again_without_its_graph) {
  constexpr int kSteps = 4, kFails = 2;
  Speakers wanted(2), refused(2), spoiled(2);
  for (int step = 0; step < kSteps; ++step) {
    wanted.step();
    for (const auto& [found, fail] : {std::pair{&refused, &cuda::emulated::fail_graph_after},
                                      std::pair{&spoiled, &cuda::emulated::spoil_copy_after}}) {
      fail(step == kFails ? 0 : -1);
      found->step();
      for (const size_t i : {size_t{0}, size_t{1}})
        CHECK(same(found->row(i), wanted.row(i)) && found->said(i) == step + 1);
    }
  }
  CHECK(wanted.counts().replayed == 3 && refused.counts().replayed == 2 && spoiled.counts().replayed == 3);
  for (const Speakers* found : {&refused, &spoiled})
    CHECK(found->counts().recorded == 1 && found->counts().plain == 1);
}

TEST(the_fault_of_one_row_of_a_recorded_step_is_its_own) {
  Speakers wanted(3), found(3, 2);
  for (int step = 0; step < 3; ++step) {
    wanted.step();
    found.step();
    for (const size_t i : {size_t{0}, size_t{1}})
      CHECK(same(found.row(i), wanted.row(i)) && found.said(i) == step + 1);
    CHECK(found.said(2) == std::min(step + 1, 2));
    CHECK(step < 2 ? same(found.row(2), wanted.row(2))
                   : found.row(2).status.code() == StatusCode::kContextFull);
  }
  CHECK(found.counts().replayed == 1);
  found.leave(2), wanted.leave(2);
  found.step(), wanted.step();
  CHECK(same(found.row(0), wanted.row(0)) && same(found.row(1), wanted.row(1)) && found.said(1) == 4);
}

TEST(a_capture_keeps_arguments_as_they_were_and_refuses_what_a_graph_cannot_hold) {
  void *stream = nullptr, *graph = nullptr;
  OnDevice<int> memory({1, 1}), other({5, 5});
  CHECK(cuda::create_stream("test", &stream).ok());
  CHECK(cuda::begin_capture("test", stream).ok());
  size_t bytes = sizeof(int);
  CHECK(cuda::fill("test", memory.data(), 0, bytes, stream).ok());
  bytes = 2 * sizeof(int);  // no longer of concern
  CHECK(cuda::end_capture("test", stream, &graph).ok());
  CHECK(memory.values() == std::vector<int>({1, 1}));
  for (int again = 0; again < 2; ++again) {
    CHECK(cuda::launch_graph("test", graph, nullptr).ok() && memory.values() == std::vector<int>({0, 1}));
    const std::vector<int> ones = {1, 1};
    CHECK(cuda::copy("test", memory.data(), ones.data(), bytes, nullptr).ok());
  }
  cuda::destroy_graph(graph);
  const auto spoiled = [&](const auto& by) {
    CHECK(cuda::begin_capture("test", stream).ok());
    by();
    const Status status = cuda::end_capture("test", stream, &graph);
    CHECK(!status.ok() && graph == nullptr);
    return status.message();
  };
  const std::string expected = "[test] capture: expected work on the captured stream, got ";
  void* taken = nullptr;
  CHECK(spoiled([&] { CHECK(!cuda::fill("test", memory.data(), 0, 4, nullptr).ok()); }) ==
        expected + "work on another");
  CHECK(spoiled([&] { CHECK(!cuda::copy("test", memory.data(), other.data(), 4, stream).ok()); }) ==
        expected + "a copy that waits");
  CHECK(spoiled([&] { CHECK(!cuda::allocate("test", 4, &taken).ok()); }) == expected + "an allocation");
  CHECK(spoiled([&] { CHECK(!cuda::synchronize("test", stream).ok()); }) == expected + "a wait");
  CHECK(memory.values() == std::vector<int>({1, 1}));
  cuda::destroy_stream(stream);
}

TEST(keys_and_values_take_half_of_what_is_free_on_the_device_if_nobody_says_how_much) {
  loaded();
  const auto each = static_cast<size_t>(kv_bytes(*loaded(), 1));
  cuda::emulated::set_memory(cuda::emulated::memory_taken() + 2000 * each);
  const auto own = engine(loaded());
  CHECK(own->stats().kv_tokens == 1000);
  cuda::emulated::set_memory(SIZE_MAX);
  CHECK(engine(loaded())->stats().kv_tokens == 4 * kContext);
}

TEST(memory_that_runs_out_on_the_device_is_a_status_with_its_reason_and_the_session_goes_on) {
  EngineOptions how;
  how.kv_bytes = kv_bytes(*loaded(), 600);
  const auto own = engine(loaded(), how);
  const auto one = session(own);
  CHECK(one->add_text("user", "how are you?").ok());
  cuda::emulated::set_memory(cuda::emulated::memory_taken());
  const Said failed = say(one.get(), options(1, 4));
  cuda::emulated::set_memory(SIZE_MAX);
  CHECK(failed.finish == Finish::kError && failed.status.code() == StatusCode::kOutOfMemory);
  CHECK(failed.status.message() == "[engine] device: expected enough memory, got out of memory");
  const Said again = say(one.get(), endless(*loaded(), 1, 8));
  const auto fresh = engine(loaded(), how);
  const auto other = session(fresh);
  CHECK(other->add_text("user", "how are you?").ok());
  CHECK(again.status.ok() && again == say(other.get(), endless(*loaded(), 1, 8)));
}

// Each of the first allocations of an answer fails once, wherever it stands.
TEST(whichever_allocation_fails_the_answer_is_the_same_or_ends_with_the_reason) {
  EngineOptions how;
  how.kv_bytes = kv_bytes(*loaded(), 600);
  const auto ask = [](Session* session, int fails, std::vector<int32_t>* ids) {
    std::unique_ptr<Answer> answer;
    cuda::emulated::fail_allocation_after(fails);
    CHECK(Answer::start(session, endless(*loaded(), 1, 5), &answer).ok());
    Event event;
    while (answer->next(60000, &event).ok() && event.kind != EventKind::kDone) continue;
    cuda::emulated::fail_allocation_after(-1);
    CHECK(answer->tokens(ids, nullptr).ok());
    return event.status;
  };
  std::vector<int32_t> wanted, ids;
  int failed = 0;
  for (int fails = -1; fails < 4; ++fails) {
    const auto own = engine(loaded(), how);
    const auto one = session(own);
    CHECK(one->add_text("user", "how are you?").ok());
    const Status status = ask(one.get(), fails, fails < 0 ? &wanted : &ids);
    if (fails < 0) CHECK(status.ok() && wanted.size() == 5);
    if (fails < 0) continue;
    failed += !status.ok();
    if (status.ok()) {
      CHECK(ids == wanted);
      continue;
    }
    CHECK(status.message() == "[engine] device: expected enough memory, got out of memory");
    CHECK(ask(one.get(), -1, &ids).ok() && ids == wanted);
  }
  std::printf("     %d of 4 ended an answer\n", failed);
  CHECK(failed >= 1);
}
#endif
#endif
