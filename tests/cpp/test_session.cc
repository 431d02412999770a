// SPDX-License-Identifier: Apache-2.0
// One dialogue: its ids, what a turn costs, what forks, files and other sessions have in common with it.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/cpp/check.h"
#include "tests/cpp/tiny_model.h"

using namespace tiny;

namespace {

const std::shared_ptr<const LoadedModel>& shared_model() {
  static const auto loaded = model();
  return loaded;
}

// A dialogue of some turns on an engine of its own.
std::vector<Said> alone(uint32_t seed, int turns) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  std::vector<Said> said;
  for (int turn = 0; turn < turns; ++turn) {
    CHECK(one->add_text("user", "turn " + std::to_string(seed) + " and the " + std::to_string(turn)).ok());
    if (turn == 1) add_sound(one.get(), sound(0.7 + seed % 3, seed));
    said.push_back(say(one.get(), options(seed * 100 + static_cast<uint32_t>(turn), 3 + seed % 11)));
  }
  return said;
}

Rendered rendered(const std::vector<Message>& messages, const RenderOptions& options) {
  Rendered result;
  CHECK(render(messages, shared_model()->tokenizer(), options, &result).ok());
  return result;
}

}  // namespace

TEST(a_dialogue_has_the_ids_of_the_template_whatever_way_it_was_written) {
  const auto own = engine(shared_model());
  const std::string tools = R"([{"name":"clock","parameters":{}}])";
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    SessionOptions how;
    how.template_name = round % 2 == 0 ? TemplateName::kCanonical : TemplateName::kStepfunCompat;
    if (round % 3 == 0) how.tools = tools;
    RenderOptions expected{how.template_name, Prompt::kNone, false, false, how.tools};
    const auto one = session(own, how);
    std::vector<Message> messages;
    std::vector<int64_t> sounds;
    for (int turn = 0; turn < 6; ++turn) {
      const uint32_t kind = random() % 5;
      const std::string text = "an other the " + std::to_string(random() % 1000);
      if (kind == 0) {
        const bool thought = random() % 2 == 0;
        const auto reasoning = thought ? std::optional<std::string>("why the") : std::nullopt;
        CHECK(one->add_answer(reasoning, text).ok());
        messages.push_back({"assistant", {Text{text}}, reasoning});
        continue;
      }
      const std::string role = turn == 0 && kind == 1 ? "system" : kind == 2 ? "function_output" : "user";
      CHECK(one->add_text(role, text).ok() && one->add_text(role == "user" ? "human" : role, "more").ok());
      messages.push_back({role, {Text{text}, Text{"more"}}, std::nullopt});
      if (kind == 3) {
        add_sound(one.get(), sound(0.5, random()));
        messages.back().parts.emplace_back(
            Clip{{shared_model()->config().audio.audio_tokens(mel_frames(8000))}});
        CHECK(one->add_text(role, "after").ok());
        messages.back().parts.emplace_back(Text{"after"});
      }
      CHECK(one->end_message().ok());
    }
    CHECK(one->message_count() == messages.size());
    CHECK(one->ids() == rendered(messages, expected).ids);
    size_t total = 0, tokens = 0;
    for (size_t i = 0; i < messages.size(); ++i) {
      CHECK(one->message_tokens(i, &tokens).ok());
      total += tokens;
    }
    CHECK(total == one->ids().size() && !one->message_tokens(messages.size(), &tokens).ok());
  }
}

TEST(sixteen_sessions_together_say_what_each_says_alone) {
  EngineOptions how;
  how.prefill_tokens = 64;
  const auto both = engine(shared_model(), how);
  const int turns = 3;
  std::vector<std::unique_ptr<Session>> sessions;
  for (uint32_t seed = 0; seed < 16; ++seed) sessions.push_back(session(both));
  std::vector<std::vector<Said>> together(16);
  for (int turn = 0; turn < turns; ++turn) {
    std::vector<std::unique_ptr<Answer>> answers(16);
    for (uint32_t seed = 0; seed < 16; ++seed) {
      Session* one = sessions[seed].get();
      CHECK(one->add_text("user", "turn " + std::to_string(seed) + " and the " + std::to_string(turn)).ok());
      if (turn == 1) add_sound(one, sound(0.7 + seed % 3, seed));
      CHECK(
          Answer::start(one, options(seed * 100 + static_cast<uint32_t>(turn), 3 + seed % 11), &answers[seed])
              .ok());
    }
    for (uint32_t seed = 0; seed < 16; ++seed) together[seed].push_back(finish(answers[seed].get()));
  }
  for (uint32_t seed = 0; seed < 16; ++seed) {
    CHECK(together[seed] == alone(seed, turns));
    CHECK(!together[seed][2].ids.empty());
  }
}

TEST(a_fork_and_a_cut_go_on_as_a_dialogue_that_was_told_again) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  std::unique_ptr<Session> fork;
  for (int turn = 0; turn < 3; ++turn) {
    CHECK(one->add_text("user", "question " + std::to_string(turn)).ok());
    if (turn == 1) add_sound(one.get(), sound(1.5, 7));
    CHECK(say(one.get(), options(static_cast<uint64_t>(turn))).started.ok());
    if (turn == 1) CHECK(one->fork(&fork).ok());
  }
  const auto replay = [&](int turns) {
    auto fresh = session(engine(shared_model()));
    for (int turn = 0; turn < turns; ++turn) {
      CHECK(fresh->add_text("user", "question " + std::to_string(turn)).ok());
      if (turn == 1) add_sound(fresh.get(), sound(1.5, 7));
      (void)say(fresh.get(), options(static_cast<uint64_t>(turn)));
    }
    CHECK(fresh->add_text("user", "another").ok());
    return say(fresh.get(), options(99));
  };
  CHECK(fork->message_count() == 4 && one->message_count() == 6);
  CHECK(fork->add_text("user", "another").ok());
  const Said forked = say(fork.get(), options(99));
  CHECK(forked == replay(2) && forked.usage.cached_tokens > forked.usage.prompt_tokens / 2);
  CHECK(!one->truncate(7).ok() && one->truncate(6).ok() && one->truncate(4).ok());
  CHECK(one->add_text("user", "another").ok());
  const Said cut = say(one.get(), options(99));
  CHECK(cut == forked && cut.usage.cached_tokens > cut.usage.prompt_tokens / 2);
  CHECK(one->truncate(0).ok() && one->message_count() == 0 && one->ids().empty());
  CHECK(say(one.get(), options(1)).started.code() == StatusCode::kInvalidArgument);
}

TEST(what_a_turn_costs_does_not_depend_on_the_dialogue) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  std::vector<int64_t> read, cold;
  for (int turn = 0; turn < 50; ++turn) {
    AnswerOptions how = options(static_cast<uint64_t>(turn), 8);
    how.stop_ids = {};
    CHECK(one->add_text("user", "what is it now").ok());
    const int64_t before = own->stats().read_tokens;
    const Said said = say(one.get(), how);
    CHECK(said.started.ok());
    read.push_back(own->stats().read_tokens - before - static_cast<int64_t>(said.ids.size()));
    cold.push_back(said.usage.prompt_tokens - said.usage.cached_tokens);
  }
  // The question, the header, and what closed the answer before: a token or two more or less.
  CHECK(*std::max_element(read.begin() + 1, read.end()) <= read[1] + 2);
  CHECK(*std::max_element(cold.begin() + 1, cold.end()) <= cold[1] + 2);
  CHECK(own->stats().kv_tokens_used < own->stats().kv_tokens);
}

TEST(a_beginning_that_another_dialogue_had_is_taken_over_and_only_that) {
  const auto own = engine(shared_model());
  const std::string system(300, 'x');
  // What was said, and how many tokens of the prompt were read for it, ahead or not.
  const auto tell = [&](uint32_t voice, const char* last, int64_t* read) {
    const int64_t before = own->stats().read_tokens;
    const auto one = session(own);
    CHECK(one->add_text("system", system).ok());
    add_sound(one.get(), sound(2.0, voice));
    CHECK(one->add_text("user", last).ok());
    const Said said = say(one.get(), options(5, 6));
    *read = own->stats().read_tokens - before - static_cast<int64_t>(said.ids.size() - 1);
    return said;
  };
  int64_t read = 0;
  const Said first = tell(1, "the same", &read);
  CHECK(read == first.usage.prompt_tokens && first.usage.audio_tokens > 20);
  CHECK(tell(1, "the same", &read) == first && read <= 2);  // the last token, and that of what was read ahead
  (void)tell(1, "the other", &read);                        // all but what follows the sound
  CHECK(read > 1 && read < 60);
  const Said voice = tell(2, "the same", &read);  // as long a sound, but another one
  CHECK(read > first.usage.audio_tokens && read < first.usage.prompt_tokens - 290 && !(voice == first));
  const auto fresh = engine(shared_model());
  const auto check = session(fresh);
  CHECK(check->add_text("system", system).ok());
  add_sound(check.get(), sound(2.0, 2));
  CHECK(check->add_text("user", "the same").ok() && say(check.get(), options(5, 6)) == voice);
  CHECK(own->stats().encoded_chunks <= 3 && own->stats().sessions == 0);
}

TEST(thoughts_that_are_stripped_leave_the_dialogue_of_the_template) {
  SessionOptions how;
  how.strip_history = true;
  const auto own = engine(shared_model());
  const auto one = session(own, how);
  CHECK(one->add_text("user", "why").ok());
  AnswerOptions think = options(3, 40);
  think.thinking = Thinking::kOn;
  think.prefill.clear();
  const Said said = say(one.get(), think);
  CHECK(said.usage.reasoning_tokens > 0);
  const std::vector<Message> expected = {{"user", {Text{"why"}}, {}}, {"assistant", {Text{said.reply}}, {}}};
  RenderOptions plain;
  plain.prompt = Prompt::kNone;
  CHECK(one->ids() == rendered(expected, plain).ids);
  CHECK(one->add_answer("a thought", "a reply").ok());
  const std::vector<int32_t> ids = one->ids();
  CHECK(std::find(ids.begin(), ids.end(), *shared_model()->special().think_open) == ids.end());
  // The reply is read again while nobody waits: the next turn finds it there.
  CHECK(one->warm().ok());
  CHECK(one->add_text("user", "and now").ok());
  rest(*own);
  const Said next = say(one.get(), options(4));
  CHECK(next.usage.prompt_tokens - next.usage.cached_tokens <= 25);
}

TEST(an_answer_ends_before_a_text_that_stops_it) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  CHECK(one->add_text("user", "go").ok());
  AnswerOptions how = endless(*shared_model(), 11, 60);
  const Said whole = say(one.get(), how);
  CHECK(one->truncate(1).ok());
  int tried = 0;
  for (size_t at = 1; at + 2 < whole.reply.size(); at += 3) {
    const std::string stop = whole.reply.substr(at, 2);
    if (earnest::engine::find_invalid(stop) != stop.size()) continue;
    how.stop = {"no such text at all", stop};
    const size_t expected = whole.reply.find(stop);
    const Said said = say(one.get(), how);
    CHECK(said.started.ok() && said.finish == Finish::kStop && said.reply == whole.reply.substr(0, expected));
    // The dialogue holds just that.
    CHECK(one->message_count() == 2);
    const std::vector<int32_t> ids = one->ids();
    const std::vector<int32_t> answer(ids.end() - static_cast<int64_t>([&] {
                                        size_t tokens = 0;
                                        CHECK(one->message_tokens(1, &tokens).ok());
                                        return tokens;
                                      }()),
                                      ids.end());
    CHECK(shared_model()->tokenizer().decode(answer, true) == "assistant\n" + said.reply);
    CHECK(answer.back() == shared_model()->special().eot);
    CHECK(one->truncate(1).ok());
    ++tried;
  }
  CHECK(tried > 3);
  how.stop = {""};
  CHECK(say(one.get(), how).started.code() == StatusCode::kInvalidArgument);
}

TEST(a_given_beginning_is_part_of_the_answer) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  CHECK(one->add_text("user", "go").ok());
  AnswerOptions how = options(2, 6);
  how.prefill = "<think>\n";
  const Said given = say(one.get(), how);
  CHECK(one->truncate(1).ok());
  how.prefill.clear();
  how.thinking = Thinking::kOn;
  CHECK(say(one.get(), how) == given && given.reply.empty());
  how.prefill = "<think>\n";
  CHECK(one->add_text("user", "more").ok());
  CHECK(say(one.get(), how).started.code() == StatusCode::kInvalidArgument);
}

TEST(tokens_that_mean_nothing_are_never_drawn) {
  const auto own = engine(shared_model());
  const auto one = session(own);
  CHECK(one->add_text("user", "go").ok());
  AnswerOptions how = options(1, 1500);
  how.sampling.temperature = 50;  // all alike
  how.sampling.top_p = 1;
  std::vector<int> seen(420, 0);
  for (int round = 0; round < 20; ++round) {
    how.seed = static_cast<uint64_t>(round);
    const Said said = say(one.get(), how);
    for (const int32_t id : said.ids) ++seen[static_cast<size_t>(id)];
    CHECK(one->truncate(1).ok());
  }
  const SpecialIds& special = shared_model()->special();
  for (const int32_t id :
       {special.bot, special.audio_start, special.audio_end, special.audio_patch, 300, 415}) {
    CHECK(seen[static_cast<size_t>(id)] == 0);
  }
  CHECK(seen['a'] > 0);
}

TEST(max_tokens_is_cut_to_the_room_and_a_full_context_is_said) {
  const auto small = model(64);
  const auto own = engine(small);
  const auto one = session(own);
  CHECK(one->add_text("user", "0123456789").ok());
  AnswerOptions how = options(1, 1000000);
  how.sampling.temperature = 0;
  const Said said = say(one.get(), how);
  CHECK(said.started.ok() && static_cast<int64_t>(said.ids.size()) <= 64 - said.usage.prompt_tokens);
  CHECK(one->add_text("user", std::string(100, 'y')).ok());
  const size_t messages = one->message_count();
  CHECK(say(one.get(), how).started.code() == StatusCode::kContextFull && one->message_count() == messages);
  CHECK(one->truncate(1).ok() && say(one.get(), options(1, 4)).started.ok());
}

// A measurement, for EARNEST_MODEL=folder: 50 turns of 5 s of sound, and how long each reply took to begin.
TEST(the_fiftieth_reply_begins_as_soon_as_the_second) {
  const char* folder = std::getenv("EARNEST_MODEL");
  if (folder == nullptr) return;
  std::shared_ptr<const LoadedModel> loaded;
  CHECK(LoadedModel::load(folder, Precision::kBFloat16, Quantization::kNone, &loaded).ok());
  const auto one = session(engine(loaded));
  std::vector<double> waited;
  for (uint32_t turn = 0; turn < 50; ++turn) {
    add_sound(one.get(), sound(5, turn));
    waited.push_back(say(one.get(), options(turn, 8)).usage.first_token_ms);
  }
  const auto median = [&](int64_t first) {
    std::vector<double> some(waited.begin() + first, waited.begin() + first + 5);
    std::nth_element(some.begin(), some.begin() + 2, some.end());
    return some[2];
  };
  std::printf(
      "first token after %.0f ms in turns 2 to 6, %.0f ms in turns 46 to 50 (%zu tokens): %.2f times\n",
      median(1), median(45), one->ids().size(), median(45) / median(1));
}
