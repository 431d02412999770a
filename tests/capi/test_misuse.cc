// SPDX-License-Identifier: Apache-2.0
// Calls that are wrong in every way: each a status and a sentence, and everything goes on afterwards.
#include <cmath>
#include <limits>
#include <thread>

#include "tests/capi/talk.h"

using namespace talk;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

bool refused(earnest_status status, earnest_status expected = EARNEST_INVALID_ARGUMENT) {
  const std::string message = earnest_last_error();
  const bool well = status == expected && message.starts_with("[") &&
                    message.find(": expected ") != message.npos && message.find(", got ") != message.npos;
  if (!well) std::printf("status %s: %s\n", earnest_status_name(status), message.c_str());
  return well;
}

}  // namespace

TEST(nothing_is_called_with_nothing) {
  earnest_session* session = nullptr;
  earnest_engine* engine = nullptr;
  earnest_audio* audio = nullptr;
  earnest_generation* generation = nullptr;
  char* response = nullptr;
  size_t count = 0;
  float sample = 0;
  int16_t number = 0;
  earnest_event event = EARNEST_EVENT_INIT;
  earnest_usage usage = EARNEST_USAGE_INIT;
  earnest_engine_stats stats = EARNEST_ENGINE_STATS_INIT;
  CHECK(refused(earnest_engine_create(nullptr, nullptr, &engine)));
  CHECK(refused(earnest_engine_drain(nullptr, 0)));
  CHECK(refused(earnest_engine_get_stats(nullptr, &stats)));
  CHECK(refused(earnest_session_create(nullptr, nullptr, &session)));
  CHECK(refused(earnest_session_add_text(nullptr, "user", "a", 1)));
  CHECK(refused(earnest_session_add_answer(nullptr, nullptr, "a")));
  CHECK(refused(earnest_session_end_message(nullptr)));
  CHECK(refused(earnest_session_message_tokens(nullptr, 0, &count)));
  CHECK(refused(earnest_session_fork(nullptr, &session)));
  CHECK(refused(earnest_session_truncate(nullptr, 0)));
  CHECK(refused(earnest_session_warm(nullptr)));
  CHECK(refused(earnest_session_save(nullptr, "a")));
  CHECK(refused(earnest_session_load(nullptr, "a", &session)));
  CHECK(refused(earnest_session_add_wav(nullptr, "user", "a", 1)));
  CHECK(refused(earnest_audio_create(nullptr, "user", 16000, 1, &audio)));
  CHECK(refused(earnest_audio_push_f32(nullptr, &sample, 1)));
  CHECK(refused(earnest_audio_push_s16(nullptr, &number, 1)));
  CHECK(refused(earnest_audio_clear(nullptr)));
  CHECK(refused(earnest_audio_commit(nullptr)));
  CHECK(refused(earnest_generation_start(nullptr, nullptr, &generation)));
  CHECK(refused(earnest_generation_next(nullptr, 0, &event)));
  CHECK(refused(earnest_generation_set_callback(nullptr, nullptr, nullptr)));
  CHECK(refused(earnest_generation_get_usage(nullptr, &usage)));
  CHECK(refused(earnest_generation_tokens(nullptr, nullptr, nullptr, 0, &count)));
  CHECK(refused(earnest_chat(nullptr, "{}", &response)));
  CHECK(earnest_session_message_count(nullptr) == 0 && earnest_audio_seconds(nullptr) == 0.0);
  CHECK(std::strcmp(earnest_generation_reply(nullptr, nullptr), "") == 0);
  CHECK(std::strcmp(earnest_generation_reasoning(nullptr, nullptr), "") == 0);
  earnest_generation_cancel(nullptr);
  earnest_engine_destroy(nullptr);
  earnest_session_destroy(nullptr);
  earnest_audio_destroy(nullptr);
  earnest_generation_destroy(nullptr);
  earnest_free(nullptr);
}

TEST(places_that_are_missing) {
  const Model model = talk::model();
  const Engine engine = talk::engine(model);
  const Session session = talk::session(engine);
  CHECK(refused(earnest_engine_create(model.get(), nullptr, nullptr)));
  CHECK(refused(earnest_engine_get_stats(engine.get(), nullptr)));
  CHECK(refused(earnest_session_create(engine.get(), nullptr, nullptr)));
  CHECK(refused(earnest_session_add_text(session.get(), nullptr, "a", 1)));
  CHECK(refused(earnest_session_add_text(session.get(), "user", nullptr, 1)));
  CHECK(refused(earnest_session_add_text(session.get(), "user", "a", SIZE_MAX)));
  CHECK(refused(earnest_session_add_text(session.get(), "us\ner", "a", 1)));
  CHECK(refused(earnest_session_add_text(session.get(), "user", "\xFF", 1)));
  CHECK(refused(earnest_session_add_answer(session.get(), "a", nullptr)));
  CHECK(refused(earnest_session_message_tokens(session.get(), 0, nullptr)));
  CHECK(refused(earnest_session_fork(session.get(), nullptr)));
  CHECK(refused(earnest_session_save(session.get(), nullptr)));
  CHECK(refused(earnest_session_add_wav(session.get(), "user", nullptr, 5)));
  CHECK(refused(earnest_session_add_wav(session.get(), "user", "a", SIZE_MAX)));
  CHECK(refused(earnest_audio_create(session.get(), "user", 16000, 1, nullptr)));
  CHECK(refused(earnest_generation_start(session.get(), nullptr, nullptr)));
  CHECK(refused(earnest_chat(engine.get(), "{}", nullptr)));
  CHECK(earnest_session_message_count(session.get()) == 0);
}

TEST(parameters_out_of_range) {
  const Model model = talk::model();
  const Engine engine = talk::engine(model);
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  const auto start_with = [&](auto change) {
    earnest_generation_params params = talk::params();
    change(&params);
    earnest_generation* made = reinterpret_cast<earnest_generation*>(1);
    const bool well = refused(earnest_generation_start(session.get(), &params, &made)) && !made;
    earnest_generation_destroy(made);
    return well;
  };
  using Params = earnest_generation_params*;
  for (const double none : {-1.0, kNan, HUGE_VAL}) {
    CHECK(start_with([&](Params p) { p->temperature = none; }));
    CHECK(start_with([&](Params p) { p->top_p = none; }));
    CHECK(start_with([&](Params p) { p->min_p = none; }));
    CHECK(start_with([&](Params p) { p->repetition_penalty = none; }));
  }
  CHECK(start_with([&](Params p) { p->top_p = 1.5; }));
  CHECK(start_with([&](Params p) { p->presence_penalty = kNan; }));
  CHECK(start_with([&](Params p) { p->top_k = -5; }));
  CHECK(start_with([&](Params p) { p->stop_count = 1; }));
  CHECK(start_with([&](Params p) { p->stop_id_count = SIZE_MAX; }));
  CHECK(start_with([&](Params p) { p->struct_size = 0; }));
  CHECK(start_with([&](Params p) { p->prefill = "\xFF"; }));
  const char* const empty[] = {""};
  CHECK(start_with([&](Params p) { p->stop = empty, p->stop_count = 1; }));
  const int32_t ids[] = {-1};
  CHECK(start_with([&](Params p) { p->stop_ids = ids, p->stop_id_count = 1; }));
  const int thinking = 99;
  CHECK(start_with([&](Params p) { std::memcpy(&p->thinking, &thinking, sizeof thinking); }));

  earnest_session_params session_params;
  earnest_session_params_default(&session_params, sizeof session_params);
  earnest_session* made = nullptr;
  session_params.template_name = "chatml";
  CHECK(refused(earnest_session_create(engine.get(), &session_params, &made)));
  session_params.template_name = nullptr;
  session_params.tools = "[1";
  CHECK(refused(earnest_session_create(engine.get(), &session_params, &made)));

  earnest_engine_params engine_params;
  earnest_engine_params_default(&engine_params, sizeof engine_params);
  earnest_engine* other = nullptr;
  engine_params.device = "cuda";
  CHECK(refused(earnest_engine_create(model.get(), &engine_params, &other), EARNEST_UNSUPPORTED));
  engine_params.device = "tpu";
  CHECK(refused(earnest_engine_create(model.get(), &engine_params, &other)));
  engine_params.device = "cpu";
  engine_params.threads = 1U << 31;
  CHECK(refused(earnest_engine_create(model.get(), &engine_params, &other)));
  engine_params.threads = 0;
  engine_params.kv_bytes = UINT64_MAX;
  const earnest_status huge = earnest_engine_create(model.get(), &engine_params, &other);
  CHECK(huge != EARNEST_OK || other != nullptr);
  earnest_engine_destroy(other);
  CHECK(!answer(session).reply.empty());
}

TEST(structs_with_less_room_are_filled_so_far) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  const Generation generation = start(session, params());
  earnest_event event;
  do {
    std::memset(&event, 0x5A, sizeof event);
    event.struct_size = offsetof(earnest_event, text);
    CHECK_OK(earnest_generation_next(generation.get(), -1, &event));
    CHECK(event.text_bytes == 0x5A5A5A5A5A5A5A5A && event.struct_size == offsetof(earnest_event, text));
  } while (event.kind != EARNEST_EVENT_DONE);
  earnest_usage usage = EARNEST_USAGE_INIT;
  for (const size_t size : {size_t{0}, size_t{8}, size_t{17}, SIZE_MAX}) {
    usage.struct_size = size;
    CHECK(refused(earnest_generation_get_usage(generation.get(), &usage)));
    event.struct_size = size;
    CHECK(refused(earnest_generation_next(generation.get(), 0, &event)));
  }
}

TEST(children_outlive_their_parents) {
  Model model = talk::model();
  Engine engine = talk::engine(model);
  Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  Generation generation = start(session, params(40));
  earnest_audio* made = nullptr;
  const Session other = talk::session(engine);
  CHECK_OK(earnest_audio_create(other.get(), "user", 8000, 1, &made));
  const Audio audio(made);
  model.reset();
  engine.reset();
  session.reset();
  CHECK(!listen(generation).ids.empty());
  const std::vector<int16_t> tone = talk::tone(0.5, 8000);
  CHECK_OK(earnest_audio_push_s16(audio.get(), tone.data(), tone.size()));
  CHECK_OK(earnest_audio_commit(audio.get()));
  generation.reset();
  CHECK(!answer(other).ids.empty());
}

TEST(a_fork_outlives_the_session_that_it_came_from) {
  Engine engine = talk::engine();
  Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  answer(session);
  earnest_session* made = nullptr;
  CHECK_OK(earnest_session_fork(session.get(), &made));
  const Session fork(made);
  CHECK_OK(add_text(session, "and you"));
  const Said expected = answer(session);
  session.reset();
  engine.reset();
  CHECK_OK(add_text(fork, "and you"));
  CHECK(answer(fork) == expected);
}

TEST(an_engine_goes_while_answers_run) {
  for (int i = 0; i < 20; ++i) {
    Engine engine = talk::engine();
    Session session = talk::session(engine);
    CHECK_OK(add_text(session, "I am"));
    Generation generation = start(session, params(1000));
    if (i % 2 == 0) generation.reset();
    if (i % 3 == 0) session.reset();
    engine.reset();
  }
}

TEST(cancelling_again_and_afterwards_does_nothing) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  const earnest_generation_params params = talk::params(1500);
  const Generation generation = start(session, params);
  std::thread other([&] {
    for (int i = 0; i < 3; ++i) earnest_generation_cancel(generation.get());
  });
  earnest_event event = EARNEST_EVENT_INIT;
  while (earnest_generation_next(generation.get(), -1, &event) == EARNEST_OK &&
         event.kind != EARNEST_EVENT_DONE) {
  }
  other.join();
  CHECK(event.finish_reason == EARNEST_FINISH_CANCELLED && event.status == EARNEST_OK);
  earnest_generation_cancel(generation.get());
  CHECK(earnest_generation_next(generation.get(), 0, &event) == EARNEST_CANCELLED);
  CHECK(earnest_generation_set_callback(
            generation.get(), [](const earnest_event*, void*) {}, nullptr) != EARNEST_OK);
  CHECK_OK(add_text(session, "and you"));
  CHECK(!answer(session).ids.empty());
  const Generation done = start(session, talk::params(2));
  listen(done);
  earnest_generation_cancel(done.get());
  CHECK(earnest_generation_next(done.get(), 0, &event) == EARNEST_INVALID_ARGUMENT);
}

TEST(a_session_that_answers_is_busy) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  const Generation generation = start(session, params(1500));
  earnest_generation* second = nullptr;
  earnest_audio* audio = nullptr;
  const std::string file = wav(tone(0.1));
  CHECK(refused(earnest_generation_start(session.get(), nullptr, &second), EARNEST_BUSY));
  CHECK(refused(add_text(session, "a"), EARNEST_BUSY));
  CHECK(refused(earnest_session_add_answer(session.get(), nullptr, "a"), EARNEST_BUSY));
  CHECK(refused(earnest_session_truncate(session.get(), 0), EARNEST_BUSY));
  CHECK(refused(earnest_session_add_wav(session.get(), "user", file.data(), file.size()), EARNEST_BUSY));
  CHECK(refused(earnest_audio_create(session.get(), "user", 16000, 1, &audio), EARNEST_BUSY));
  earnest_generation_cancel(generation.get());
  CHECK_OK(earnest_session_truncate(session.get(), 0));
}

TEST(a_full_pool_is_a_status_and_the_rest_goes_on) {
  const Engine engine = talk::engine(talk::model(), 256);
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  const Said said = answer(session, params(0));
  CHECK(said.finish == EARNEST_FINISH_LENGTH || said.finish == EARNEST_FINISH_STOP);
  std::string much;
  for (int i = 0; i < 3000; ++i) much += " you";
  const Session other = talk::session(engine);
  earnest_status status = add_text(other, much);
  earnest_generation* made = nullptr;
  if (status == EARNEST_OK) status = earnest_generation_start(other.get(), nullptr, &made);
  CHECK(refused(status, EARNEST_CONTEXT_FULL) && !made);
  earnest_generation_destroy(made);
  CHECK_OK(earnest_session_truncate(other.get(), 0));
  CHECK_OK(add_text(other, "and you"));
  CHECK(!answer(other, params(4)).ids.empty());
}

TEST(sound_that_is_none) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  earnest_audio* made = nullptr;
  for (const uint32_t rate : {0U, 999U, 192001U, UINT32_MAX}) {
    CHECK(refused(earnest_audio_create(session.get(), "user", rate, 1, &made)) && !made);
  }
  for (const uint32_t channels : {0U, 65U, UINT32_MAX}) {
    CHECK(refused(earnest_audio_create(session.get(), "user", 16000, channels, &made)) && !made);
  }
  CHECK_OK(earnest_audio_create(session.get(), "user", 16000, 2, &made));
  Audio audio(made);
  std::vector<float> samples(1000, 0.1F);
  CHECK(refused(earnest_audio_push_f32(audio.get(), samples.data(), SIZE_MAX)));
  CHECK(refused(earnest_audio_push_f32(audio.get(), samples.data(), SIZE_MAX / 8 + 1)));
  CHECK(refused(earnest_audio_push_f32(audio.get(), nullptr, 1)));
  CHECK_OK(earnest_audio_push_f32(audio.get(), nullptr, 0));
  CHECK_OK(earnest_audio_push_f32(audio.get(), samples.data(), 500));
  samples[999] = NAN;
  CHECK(refused(earnest_audio_push_f32(audio.get(), samples.data(), 500), EARNEST_AUDIO_FORMAT));
  CHECK_NEAR(earnest_audio_seconds(audio.get()), 500 / 16000.0, 1e-9);
  CHECK_OK(earnest_audio_clear(audio.get()));
  CHECK(earnest_audio_seconds(audio.get()) == 0.0);
  earnest_audio* second = nullptr;
  CHECK(refused(earnest_audio_create(session.get(), "user", 16000, 1, &second)));
  CHECK_OK(earnest_audio_commit(audio.get()));
  CHECK(earnest_audio_commit(audio.get()) != EARNEST_OK);
  CHECK(earnest_audio_push_f32(audio.get(), samples.data(), 10) != EARNEST_OK);
  CHECK(earnest_audio_clear(audio.get()) != EARNEST_OK);
  audio.reset();
  CHECK(earnest_session_message_count(session.get()) == 0);  // a clip without samples adds nothing
  for (const std::string& file : {std::string("RIFF"), std::string(100, 'x'), wav(tone(0.1)).substr(0, 30)}) {
    CHECK(refused(earnest_session_add_wav(session.get(), "user", file.data(), file.size()),
                  EARNEST_AUDIO_FORMAT));
  }
  const std::string empty = wav({});
  CHECK_OK(earnest_session_add_wav(session.get(), "user", empty.data(), empty.size()));
}

TEST(a_drained_engine_takes_nothing_new) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  const Generation generation = start(session, params(1500));
  CHECK(refused(earnest_engine_drain(engine.get(), 0), EARNEST_TIMEOUT));
  earnest_generation_cancel(generation.get());
  CHECK_OK(earnest_engine_drain(engine.get(), -1));
  earnest_generation* made = nullptr;
  CHECK(refused(earnest_generation_start(session.get(), nullptr, &made), EARNEST_BUSY));
}
