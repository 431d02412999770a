// SPDX-License-Identifier: Apache-2.0
// Dialogues as they should go.
#include <atomic>
#include <filesystem>
#include <thread>

#include "tests/capi/talk.h"

using namespace talk;

TEST(an_answer_streams_and_joins_the_dialogue) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am", "system"));
  CHECK_OK(add_text(session, "so tired"));
  CHECK_OK(add_text(session, "and you"));
  CHECK(earnest_session_message_count(session.get()) == 2);
  const Generation generation = start(session, params(16));
  const Said said = listen(generation);
  CHECK(!said.reply.empty() && said.ids.size() <= 16);
  CHECK(said.finish == (said.ids.size() < 16 ? EARNEST_FINISH_STOP : said.finish));
  earnest_usage usage = EARNEST_USAGE_INIT;
  CHECK_OK(earnest_generation_get_usage(generation.get(), &usage));
  CHECK(usage.completion_tokens == said.ids.size() && usage.prompt_tokens > 10 && usage.audio_tokens == 0);
  CHECK(usage.total_ms >= usage.first_token_ms && usage.first_token_ms > 0);
  CHECK(earnest_session_message_count(session.get()) == 3);
  size_t tokens = 0;
  CHECK_OK(earnest_session_message_tokens(session.get(), 2, &tokens));
  CHECK(tokens >= said.ids.size());
  CHECK(earnest_session_message_tokens(session.get(), 3, &tokens) == EARNEST_INVALID_ARGUMENT);
  earnest_event event = EARNEST_EVENT_INIT;
  CHECK(earnest_generation_next(generation.get(), -1, &event) == EARNEST_INVALID_ARGUMENT);
  // The next turn finds what was read.
  CHECK_OK(add_text(session, "hear it"));
  const Generation next = start(session, params(4));
  listen(next);
  CHECK_OK(earnest_generation_get_usage(next.get(), &usage));
  CHECK(usage.cached_tokens > 10);
}

TEST(the_same_seed_says_the_same_wherever_it_runs) {
  const Engine engine = talk::engine();
  std::vector<Session> sessions;
  std::vector<Generation> generations;
  for (int i = 0; i < 4; ++i) {
    sessions.push_back(session(engine));
    CHECK_OK(add_text(sessions.back(), "I hear it"));
    generations.push_back(start(sessions.back(), params(20, i < 2 ? 7 : 8)));
  }
  std::vector<Said> said;
  for (const Generation& generation : generations) said.push_back(listen(generation));
  CHECK(said[0] == said[1] && said[2] == said[3] && !(said[0] == said[2]));
  const Session alone = session(engine);
  CHECK_OK(add_text(alone, "I hear it"));
  CHECK(answer(alone, params(20, 7)) == said[0]);
}

TEST(forks_go_their_own_ways_and_truncation_goes_back) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "so glad"));
  const Said first = answer(session);
  earnest_session* made = nullptr;
  CHECK_OK(earnest_session_fork(session.get(), &made));
  const Session fork(made);
  CHECK_OK(add_text(session, "and you"));
  CHECK_OK(add_text(fork, "am I"));
  const Said ours = answer(session), theirs = answer(fork);
  CHECK(earnest_session_message_count(fork.get()) == 4);
  CHECK_OK(earnest_session_truncate(fork.get(), 2));
  CHECK(earnest_session_message_count(fork.get()) == 2);
  CHECK_OK(add_text(fork, "and you"));
  CHECK(answer(fork) == ours);
  CHECK_OK(earnest_session_truncate(session.get(), 1));
  CHECK(answer(session) == first);
  CHECK(earnest_session_truncate(session.get(), 99) == EARNEST_INVALID_ARGUMENT ||
        earnest_session_message_count(session.get()) == 2);
}

TEST(sound_is_heard_however_it_is_pushed) {
  const Engine engine = talk::engine();
  const std::vector<int16_t> tone = talk::tone(1.3);
  std::vector<Said> said;
  for (int way = 0; way < 4; ++way) {
    const Session session = talk::session(engine);
    if (way == 0) {
      const std::string file = wav(tone);
      CHECK_OK(earnest_session_add_wav(session.get(), "user", file.data(), file.size()));
    } else {
      earnest_audio* made = nullptr;
      CHECK_OK(earnest_audio_create(session.get(), "user", 16000, way == 3 ? 2 : 1, &made));
      const Audio audio(made);
      std::vector<float> floats;
      for (const int16_t sample : tone) floats.insert(floats.end(), way == 3 ? 2 : 1, sample / 32768.0F);
      if (way == 1) CHECK_OK(earnest_audio_push_s16(audio.get(), tone.data(), tone.size()));
      const size_t channels = way == 3 ? 2 : 1;
      for (size_t at = 0; way > 1 && at < tone.size(); at += 997) {
        const size_t frames = std::min<size_t>(997, tone.size() - at);
        CHECK_OK(earnest_audio_push_f32(audio.get(), floats.data() + channels * at, frames));
      }
      CHECK_NEAR(earnest_audio_seconds(audio.get()), 1.3, 1e-3);
      CHECK_OK(earnest_audio_commit(audio.get()));
    }
    CHECK_OK(add_text(session, "hear"));
    const Generation generation = start(session, params(8));
    said.push_back(listen(generation));
    earnest_usage usage = EARNEST_USAGE_INIT;
    CHECK_OK(earnest_generation_get_usage(generation.get(), &usage));
    CHECK(usage.audio_tokens == 16);  // 1.3 s of 12.5 a second
  }
  for (const Said& one : said) CHECK(one == said[0]);
}

TEST(events_can_go_to_a_callback) {
  struct Heard {
    std::string reply;
    std::atomic<bool> done = false;
    std::atomic<int> events = 0;
  } heard;
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I hear you"));
  earnest_generation_params params = talk::params(10);
  params.thinking = EARNEST_THINKING_OFF;
  const Generation generation = start(session, params);
  CHECK_OK(earnest_generation_set_callback(
      generation.get(),
      [](const earnest_event* event, void* user_data) {
        auto* to = static_cast<Heard*>(user_data);
        ++to->events;
        if (event->kind == EARNEST_EVENT_REPLY) to->reply.append(event->text, event->text_bytes);
        if (event->kind == EARNEST_EVENT_DONE) to->done = true;
      },
      &heard));
  while (!heard.done) std::this_thread::yield();
  CHECK(heard.reply == earnest_generation_reply(generation.get(), nullptr) && heard.events >= 2);
}

TEST(a_saved_dialogue_goes_on_as_if_it_had_never_stopped) {
  const std::string path = std::string(SCRATCH) + "/talk.session";
  const Model model = talk::model();
  Said expected;
  {
    const Engine engine = talk::engine(model);
    const Session session = talk::session(engine);
    const std::string file = wav(tone(0.7));
    CHECK_OK(earnest_session_add_wav(session.get(), "user", file.data(), file.size()));
    answer(session);
    CHECK_OK(earnest_session_save(session.get(), path.c_str()));
    CHECK_OK(add_text(session, "and you"));
    expected = answer(session);
  }
  const Engine engine = talk::engine(model);
  earnest_session* made = nullptr;
  CHECK_OK(earnest_session_load(engine.get(), path.c_str(), &made));
  const Session session(made);
  CHECK(earnest_session_message_count(session.get()) == 2);
  CHECK_OK(add_text(session, "and you"));
  CHECK(answer(session) == expected);
  CHECK(earnest_session_load(engine.get(), "/nowhere/file", &made) == EARNEST_NOT_FOUND && !made);
  CHECK(earnest_session_load(engine.get(), TINY_MODEL "/config.json", &made) != EARNEST_OK && !made);
  std::filesystem::remove(path);
}

TEST(stops_prefills_and_counts) {
  const Engine engine = talk::engine();
  earnest_generation_params params = talk::params(30);
  params.temperature = 0;
  params.thinking = EARNEST_THINKING_OFF;
  const Session whole = session(engine);
  CHECK_OK(add_text(whole, "I am"));
  const Said said = answer(whole, params);
  CHECK(said.reply.size() > 8);
  // Ends before a word of it.
  const std::string word = said.reply.substr(said.reply.size() / 2, 3);
  const char* const stops[] = {"never said", word.c_str()};
  params.stop = stops;
  params.stop_count = 2;
  const Session stopped = session(engine);
  CHECK_OK(add_text(stopped, "I am"));
  const Said less = answer(stopped, params);
  CHECK(less.reply == said.reply.substr(0, said.reply.find(word)) && less.finish == EARNEST_FINISH_STOP);
  // Or after the first token.
  params.stop_count = 0;
  params.stop_ids = said.ids.data();
  params.stop_id_count = 1;
  const Session id = session(engine);
  CHECK_OK(add_text(id, "I am"));
  CHECK(answer(id, params).ids.size() == 1);
  earnest_engine_stats stats = EARNEST_ENGINE_STATS_INIT;
  CHECK_OK(earnest_engine_get_stats(engine.get(), &stats));
  CHECK(stats.sessions == 3 && stats.running == 0 && stats.completion_tokens >= said.ids.size() + 1);
  CHECK(stats.kv_tokens > 1000 && stats.kv_tokens_used <= stats.kv_tokens);
}
