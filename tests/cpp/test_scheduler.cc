// SPDX-License-Identifier: Apache-2.0
// Many dialogues at once: cancelled at any token, without room, without patience, from many threads, and for
// thousands of turns (EARNEST_TURNS=10000 for the whole of it).
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/cpp/check.h"
#include "tests/cpp/tiny_model.h"

using namespace tiny;

namespace {

const std::shared_ptr<const LoadedModel>& shared_model() {
  static const auto loaded = model();
  return loaded;
}

int64_t resident_kilobytes() {
  std::ifstream file("/proc/self/status");
  std::string word;
  int64_t value = 0;
  while (file >> word) {
    if (word == "VmRSS:") file >> value;
  }
  return value;
}

// What a dialogue holds that was told these ids, and an answer that follows.
Said after(const std::string& question, const std::vector<int32_t>& ids, uint64_t seed) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  CHECK(one->add_text("user", question).ok() && one->end_message().ok());
  // The same beginning, drawn again and ended by its length.
  if (!ids.empty()) {
    const Said said = say(one.get(), options(7, static_cast<int64_t>(ids.size())));
    CHECK(said.ids == ids);
  }
  CHECK(one->add_text("user", "and").ok());
  return say(one.get(), options(seed));
}

}  // namespace

TEST(what_was_said_before_a_cancel_stays_at_every_token) {
  const auto own = engine(shared_model());
  for (int tokens = 0; tokens < 12; ++tokens) {
    const auto one = session(own);
    CHECK(one->add_text("user", "tell me").ok());
    std::unique_ptr<Answer> answer;
    CHECK(Answer::start(one.get(), options(7, 40), &answer).ok());
    std::vector<int32_t> ids;
    while (static_cast<int>(ids.size()) < tokens && !answer->done())
      CHECK(answer->tokens(&ids, nullptr).ok());
    answer->cancel();
    answer->cancel();
    CHECK(one->add_text("user", "and").ok());  // free at once
    const Said said = finish(answer.get());
    if (said.finish == Finish::kCancelled) {
      Event event;
      CHECK(answer->next(0, &event).code() == StatusCode::kCancelled);
      CHECK(one->message_count() == (said.ids.empty() ? 2U : 3U));
      const Said next = say(one.get(), options(8));
      CHECK(next == after("tell me", said.ids, 8));
    }
  }
}

TEST(a_session_that_answers_is_busy_and_so_is_a_full_queue) {
  EngineOptions how;
  how.max_generations = 1;
  how.max_waiting = 1;
  const auto own = engine(shared_model(), how);
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<std::unique_ptr<Answer>> answers(3);
  for (int i = 0; i < 3; ++i) {
    sessions.push_back(session(own));
    CHECK(sessions.back()->add_text("user", "wait").ok());
  }
  const AnswerOptions forever = endless(*shared_model(), 1, 4000);
  CHECK(Answer::start(sessions[0].get(), forever, &answers[0]).ok());
  CHECK(Answer::start(sessions[1].get(), forever, &answers[1]).ok());
  const size_t messages = sessions[2]->message_count();
  CHECK(Answer::start(sessions[2].get(), forever, &answers[2]).code() == StatusCode::kBusy);
  CHECK(answers[2] == nullptr && sessions[2]->message_count() == messages);
  std::unique_ptr<Session> fork;
  CHECK(sessions[0]->add_text("user", "x").code() == StatusCode::kBusy);
  CHECK(sessions[0]->truncate(0).code() == StatusCode::kBusy &&
        sessions[0]->warm().code() == StatusCode::kBusy);
  CHECK(sessions[0]->fork(&fork).code() == StatusCode::kBusy);
  CHECK(sessions[0]->save("/tmp/never").code() == StatusCode::kBusy);
  CHECK(own->drain(20).code() == StatusCode::kTimeout);
  CHECK(Answer::start(sessions[2].get(), forever, &answers[2]).code() == StatusCode::kBusy);
  answers[0]->cancel();
  answers[1].reset();  // destroying cancels
  CHECK(own->drain(-1).ok() && own->stats().running == 0);
  CHECK(sessions[1]->add_text("user", "x").ok());
}

TEST(without_room_for_all_the_same_is_said_later) {
  const int64_t tokens = 400;
  EngineOptions how;
  how.kv_bytes = kv_bytes(*shared_model(), tokens);
  how.prefill_tokens = 32;
  const auto tight = engine(shared_model(), how), wide = engine(shared_model());
  const auto run = [](const std::shared_ptr<Engine>& engine) {
    std::vector<std::unique_ptr<Session>> sessions;
    std::vector<std::unique_ptr<Answer>> answers(12);
    std::vector<Said> said;
    for (uint32_t i = 0; i < 12; ++i) {
      sessions.push_back(session(engine));
      CHECK(sessions[i]->add_text("user", std::string(10 + 7 * i, static_cast<char>('a' + i))).ok());
      CHECK(Answer::start(sessions[i].get(), endless(*shared_model(), i, 100 + 5 * i), &answers[i]).ok());
    }
    for (auto& answer : answers) said.push_back(finish(answer.get()));
    return said;
  };
  const std::vector<Said> expected = run(wide);
  CHECK(run(tight) == expected);
  for (const Said& said : expected) CHECK(said.finish == Finish::kLength && said.ids.size() >= 100);
  // More than the pool can ever hold: said so, and the session goes on.
  const auto one = session(tight);
  CHECK(one->add_text("user", "short").ok() && one->add_text("system", std::string(500, 'z')).ok());
  CHECK(say(one.get(), options(1)).started.code() == StatusCode::kContextFull);
  CHECK(one->truncate(1).ok());
  const AnswerOptions all = endless(*shared_model(), 1, 0);
  const Said full = say(one.get(), all);
  CHECK(full.started.ok() && full.finish == Finish::kLength);
  CHECK(static_cast<int64_t>(full.ids.size()) == tokens - full.usage.prompt_tokens);
  CHECK(say(one.get(), all).started.code() == StatusCode::kContextFull);
}

TEST(a_number_that_is_none_ends_its_own_answer_alone) {
  const auto own = engine(shared_model());
  const auto sound_one = session(own), poisoned = session(own);
  CHECK(sound_one->add_text("user", "fine").ok());
  CHECK(poisoned->add_text("user", "first").ok());
  const Said first = say(poisoned.get(), options(3));
  CHECK(poisoned->add_text("user", kPoison).ok());
  std::unique_ptr<Answer> bad, good;
  CHECK(Answer::start(poisoned.get(), options(1), &bad).ok() &&
        Answer::start(sound_one.get(), options(2), &good).ok());
  const Said ended = finish(bad.get()), went_on = finish(good.get());
  CHECK(ended.finish == Finish::kError && !ended.status.ok() && ended.ids.empty());
  const auto fresh = session(engine(shared_model()));
  CHECK(fresh->add_text("user", "fine").ok() && say(fresh.get(), options(2)) == went_on);
  CHECK(poisoned->message_count() == 3 && poisoned->truncate(2).ok());
  CHECK(poisoned->add_text("user", "again").ok());
  CHECK(say(poisoned.get(), options(4)).status.ok());
  // Nor does another dialogue that begins alike find anything of it.
  const auto alike = session(own);
  CHECK(alike->add_text("user", "first").ok() && say(alike.get(), options(3)) == first);
}

TEST(a_long_prompt_does_not_hold_up_answers_nor_they_it) {
  EngineOptions how;
  how.prefill_tokens = 64;
  const auto own = engine(shared_model(), how);
  const auto talker = session(own), reader = session(own);
  CHECK(talker->add_text("user", "talk").ok());
  CHECK(reader->add_text("user", std::string(2000, 'r')).ok());
  const AnswerOptions forever = endless(*shared_model(), 1, 3000);
  std::unique_ptr<Answer> talking, reading;
  CHECK(Answer::start(talker.get(), forever, &talking).ok());
  std::vector<int32_t> before, now;
  while (before.empty()) CHECK(talking->tokens(&before, nullptr).ok());
  CHECK(Answer::start(reader.get(), options(2, 1), &reading).ok());
  (void)finish(reading.get());
  CHECK(talking->tokens(&now, nullptr).ok());
  // 2,000 tokens in pieces of 64 are 32 steps, each of which gave the talker a token, and no more were
  // needed.
  CHECK(now.size() - before.size() >= 30);
  talking->cancel();
}

TEST(sound_is_encoded_and_read_while_it_is_spoken) {
  const auto own = engine(shared_model());
  const auto one = session(own), whole = session(engine(shared_model()));
  const std::vector<float> samples = sound(62, 3);
  std::unique_ptr<SpokenClip> clip;
  CHECK(one->add_text("user", "listen").ok());
  CHECK(SpokenClip::create(*one, "user", 16000, 1, &clip).ok());
  std::unique_ptr<Answer> answer;
  CHECK(Answer::start(one.get(), options(1), &answer).code() == StatusCode::kInvalidArgument);
  CHECK(!one->truncate(0).ok() && !one->end_message().ok());
  for (size_t first = 0; first < samples.size(); first += 7777) {
    CHECK(clip->push(std::span(samples).subspan(first, std::min<size_t>(7777, samples.size() - first))).ok());
  }
  rest(*own);
  CHECK(own->stats().encoded_chunks == 2);  // of 25 s; the third is still open
  const int64_t read = own->stats().read_tokens;
  CHECK(read >= 2 * 313);
  CHECK(clip->commit().ok() && std::abs(clip->seconds() - 62) < 0.01);
  const Said said = say(one.get(), options(5));
  CHECK(said.usage.prompt_tokens - read < 200 && own->stats().encoded_chunks == 3);
  CHECK(whole->add_text("user", "listen").ok());
  add_sound(whole.get(), samples);
  CHECK(say(whole.get(), options(5)) == said);
}

TEST(a_clip_that_is_not_committed_leaves_nothing) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  const std::vector<float> samples = sound(31, 3);
  std::unique_ptr<SpokenClip> clip, second;
  CHECK(one->add_text("user", "text").ok());
  CHECK(SpokenClip::create(*one, "user", 16000, 1, &clip).ok());
  CHECK(SpokenClip::create(*one, "user", 16000, 1, &second).code() == StatusCode::kInvalidArgument);
  CHECK(clip->push(std::span(samples)).ok() && one->ids().size() > 300);
  CHECK(clip->clear().ok() && one->ids().empty() && clip->seconds() == 0);
  CHECK(clip->push(std::span(samples)).ok());
  const float bad[] = {0.0F, NAN};
  CHECK(clip->push(std::span<const float>(bad)).code() == StatusCode::kAudioFormat);
  clip.reset();
  CHECK(one->ids().empty() && one->message_count() == 1);
  CHECK(SpokenClip::create(*one, "user", 8000, 2, &clip).ok());
  CHECK(clip->push(std::span(samples).first(3)).code() == StatusCode::kInvalidArgument);
  CHECK(clip->push(std::span(samples).first(16)).ok() && clip->commit().code() == StatusCode::kAudioFormat);
  clip.reset();
  CHECK(SpokenClip::create(*one, "user", 8000, 2, &clip).ok() && clip->commit().ok() && !clip->commit().ok());
  const std::vector<int16_t> whole(16000, 1000);
  CHECK(SpokenClip::create(*one, "user", 8000, 2, &clip).ok() && clip->push(std::span(whole)).ok());
  CHECK(clip->commit().ok() && clip->seconds() == 1);
  const Said said = say(one.get(), options(5));
  CHECK(said.started.ok() && said.usage.audio_tokens == 13);
}

TEST(parents_may_go_before_their_children) {
  std::unique_ptr<Answer> answer;
  std::unique_ptr<SpokenClip> clip;
  {
    const auto own = engine(model());
    auto one = session(own), other = session(own);
    CHECK(one->add_text("user", "go on").ok() && Answer::start(one.get(), options(1, 20), &answer).ok());
    CHECK(other->add_text("system", "one message before").ok());
    CHECK(say(other.get(), options(2)).started.ok());
    CHECK(SpokenClip::create(*other, "user", 16000, 1, &clip).ok());
  }
  CHECK(clip->push(std::span<const float>(sound(30, 1))).ok() && clip->commit().ok());
  CHECK(finish(answer.get()).status.ok());
  answer.reset();
  clip.reset();
}

TEST(callbacks_tell_the_same_and_are_over_when_the_answer_is_gone) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  CHECK(one->add_text("user", "call").ok());
  const Said expected = say(one.get(), options(6, 30));
  for (int round = 0; round < 20; ++round) {
    CHECK(one->truncate(1).ok());
    std::unique_ptr<Answer> answer;
    std::atomic<bool> done{false}, gone{false};
    std::string reply;
    CHECK(Answer::start(one.get(), options(6, 30), &answer).ok());
    Answer* handle = answer.get();
    CHECK(answer
              ->set_callback([&, handle](const Event& event) {
                CHECK(!gone);
                if (event.kind == EventKind::kReply) reply += event.text;
                if (round % 4 == 1 && reply.size() > 3) handle->cancel();
                if (event.kind == EventKind::kDone) done = true;
              })
              .ok());
    Event event;
    CHECK(answer->next(0, &event).code() == StatusCode::kInvalidArgument);
    while (round % 4 < 2 && !done) std::this_thread::yield();
    if (round % 4 == 0) CHECK(reply == expected.reply);
    if (round % 4 == 1) CHECK(expected.reply.starts_with(reply));
    answer.reset();
    gone = true;
  }
}

TEST(what_is_cut_while_it_is_read_ahead_is_not_taken_for_what_follows) {
  const auto alone = session(engine(shared_model()));
  CHECK(alone->add_text("system", "kept").ok() && alone->add_text("user", std::string(700, 'b')).ok());
  const Said expected = say(alone.get(), options(3, 4));
  const auto own = engine(shared_model());
  for (int round = 0; round < 60; ++round) {
    const auto one = session(own);
    CHECK(one->add_text("system", "kept").ok() && one->end_message().ok());
    CHECK(one->add_text("user", std::string(700, 'a')).ok() && one->end_message().ok());
    const int64_t read = own->stats().read_tokens;
    CHECK(one->warm().ok());
    for (int i = 0; i < 2000 && own->stats().read_tokens < read + round % 4; ++i) std::this_thread::yield();
    CHECK(one->truncate(1).ok() && one->add_text("user", std::string(700, 'b')).ok());
    CHECK(say(one.get(), options(3, 4)) == expected);
  }
}

TEST(sessions_of_many_threads_do_not_meet) {
  EngineOptions how;
  how.kv_bytes = kv_bytes(*shared_model(), 1500);
  how.max_generations = 4;
  const auto own = engine(shared_model(), how);
  std::vector<std::thread> threads;
  std::vector<std::vector<Said>> said(6);
  std::atomic<bool> over{false};
  for (uint32_t number = 0; number < 6; ++number) {
    threads.emplace_back([&, number] {
      const auto one = session(own);
      for (int turn = 0; turn < 6; ++turn) {
        CHECK(one->add_text("user", "thread " + std::to_string(number)).ok());
        if (turn == 2) add_sound(one.get(), sound(1, number));
        if (turn == 3) CHECK(one->warm().ok());
        if (turn == 4)
          CHECK(one->save("/tmp/earnest_thread_" + std::to_string(::getpid()) + std::to_string(number)).ok());
        said[number].push_back(say(one.get(), options(number * 10 + static_cast<uint32_t>(turn), 10)));
        std::unique_ptr<Session> fork;
        CHECK(one->fork(&fork).ok() && fork->add_text("user", "branch").ok());
        (void)say(fork.get(), options(number, 20), 2);
      }
      std::remove(("/tmp/earnest_thread_" + std::to_string(::getpid()) + std::to_string(number)).c_str());
    });
  }
  std::thread watcher([&] {
    while (!over) CHECK(own->stats().kv_tokens == 1500);
  });
  for (auto& thread : threads) thread.join();
  over = true;
  watcher.join();
  for (uint32_t number = 0; number < 6; ++number) {
    const auto one = session(engine(shared_model()));
    for (int turn = 0; turn < 6; ++turn) {
      CHECK(one->add_text("user", "thread " + std::to_string(number)).ok());
      if (turn == 2) add_sound(one.get(), sound(1, number));
      CHECK(say(one.get(), options(number * 10 + static_cast<uint32_t>(turn), 10)) ==
            said[number][static_cast<size_t>(turn)]);
    }
  }
}

// Every reply is checked against the same dialogue on an engine that never runs anything beside it.
TEST(thousands_of_turns_with_cancels_and_nothing_is_left_behind) {
  const char* asked = std::getenv("EARNEST_TURNS");
  const int turns = asked != nullptr ? std::atoi(asked) : 600;
  EngineOptions how;
  how.kv_bytes = kv_bytes(*shared_model(), 3000);
  how.prefill_tokens = 64;
  const auto many = engine(shared_model(), how), single = engine(shared_model());
  constexpr size_t kSessions = 32;
  std::mt19937 random(11);
  std::vector<std::unique_ptr<Session>> sessions(kSessions), twins(kSessions);
  std::vector<std::unique_ptr<Answer>> answers(kSessions);
  std::vector<AnswerOptions> asked_for(kSessions);
  int64_t resident = 0;
  int checked = 0, cancelled = 0;
  const auto fetch = [&](size_t i) {
    if (answers[i] == nullptr) return;
    const Said said = finish(answers[i].get());
    answers[i].reset();
    AnswerOptions how_long = asked_for[i];
    if (said.finish == Finish::kCancelled) {  // the twin says as much, ended by length
      ++cancelled;
      if (said.ids.empty()) {
        CHECK(twins[i]->end_message().ok());
        return;
      }
      how_long.max_tokens = static_cast<int64_t>(said.ids.size());
    }
    const Said alone = say(twins[i].get(), how_long);
    CHECK(alone.ids == said.ids && alone.logp == said.logp);
    if (said.finish != Finish::kCancelled) CHECK(alone == said);
    CHECK(sessions[i]->ids() == twins[i]->ids());
    ++checked;
  };
  for (int turn = 0; turn < turns; ++turn) {
    const size_t i = random() % kSessions;
    fetch(i);
    if (sessions[i] == nullptr || sessions[i]->ids().size() > 700) {
      sessions[i] = session(many);
      twins[i] = session(single);
    }
    const std::string text = "turn " + std::to_string(random() % 50);
    const bool speaks = random() % 16 == 0;
    const uint32_t voice = random() % 40;
    for (Session* one : {sessions[i].get(), twins[i].get()}) {
      CHECK(one->add_text("user", text).ok());
      if (speaks) add_sound(one, sound(0.3, voice));
    }
    asked_for[i] = options(random(), 1 + random() % 30);
    if (turn % 5 == 0) asked_for[i].sampling.repetition_penalty = 1.2;
    CHECK(Answer::start(sessions[i].get(), asked_for[i], &answers[i]).ok());
    if (random() % 4 == 0) {  // cancelled after some of it, or later on than it ends
      std::vector<int32_t> ids;
      const size_t tokens = random() % 10;
      while (ids.size() < tokens && !answers[i]->done()) CHECK(answers[i]->tokens(&ids, nullptr).ok());
      answers[i]->cancel();
    }
    if (turn == turns / 4) resident = resident_kilobytes();
  }
  for (size_t i = 0; i < kSessions; ++i) fetch(i);
  CHECK(checked > turns / 2 && cancelled > 0);
  const int64_t grown = resident_kilobytes() - resident;
  std::printf("%d turns, %d checked, %d cancelled, resident memory %+lld KB over the last three quarters\n",
              turns, checked, cancelled, static_cast<long long>(grown));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  CHECK(grown < 12000);
#endif
}
