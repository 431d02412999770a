// SPDX-License-Identifier: Apache-2.0
// side_by_side MODEL: two dialogues at once over one set of weights, then one of them forks and goes two
// ways.
#include <earnest.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

void check(earnest_status status) {
  if (status != EARNEST_OK) throw std::runtime_error(earnest_last_error());
}

// A handle that goes back by itself, and the place where a *_create function puts a new one.
template <typename T, void (*kDestroy)(T*)>
class Handle {
 public:
  template <typename Create>
  explicit Handle(const Create& create) {
    T* made = nullptr;
    check(create(&made));
    handle_.reset(made);
  }
  operator T*() const { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(T* handle) const { kDestroy(handle); }
  };
  std::unique_ptr<T, Destroy> handle_;
};
using Model = Handle<earnest_model, earnest_model_destroy>;
using Engine = Handle<earnest_engine, earnest_engine_destroy>;
using Session = Handle<earnest_session, earnest_session_destroy>;
using Generation = Handle<earnest_generation, earnest_generation_destroy>;

Session begin(earnest_engine* engine) {
  return Session([&](earnest_session** made) { return earnest_session_create(engine, nullptr, made); });
}

void say(earnest_session* session, std::string_view text) {
  check(earnest_session_add_text(session, "user", text.data(), text.size()));
}

Generation start(earnest_session* session, uint64_t seed) {
  earnest_generation_params params;
  earnest_generation_params_default(&params, sizeof params);
  params.max_tokens = 24;
  params.thinking = EARNEST_THINKING_OFF;
  params.seed = seed;
  return Generation(
      [&](earnest_generation** made) { return earnest_generation_start(session, &params, made); });
}

// Takes what has come of each answer until all are done: the engine computes them together.
void listen(const std::vector<std::pair<const char*, earnest_generation*>>& answers) {
  size_t done = 0;
  std::vector<bool> over(answers.size());
  while (done < answers.size()) {
    for (size_t i = 0; i < answers.size(); ++i) {
      earnest_event event = EARNEST_EVENT_INIT;
      if (over[i] || earnest_generation_next(answers[i].second, 5, &event) == EARNEST_TIMEOUT) continue;
      if (event.kind != EARNEST_EVENT_DONE) continue;
      check(event.status);
      over[i] = true;
      ++done;
      std::printf("%s:%s\n", answers[i].first, earnest_generation_reply(answers[i].second, nullptr));
    }
  }
}

void run(const char* folder) {
  const Model model([&](earnest_model** made) { return earnest_model_load(folder, nullptr, made); });
  const Engine engine([&](earnest_engine** made) { return earnest_engine_create(model, nullptr, made); });
  const Session anna = begin(engine), bert = begin(engine);
  say(anna, "I slept three hours.");
  say(bert, "We won the match!");
  {
    const Generation to_anna = start(anna, 1), to_bert = start(bert, 1);
    listen({{"to Anna", to_anna}, {"to Bert", to_bert}});
  }

  const Session other([&](earnest_session** made) { return earnest_session_fork(anna, made); });
  say(anna, "I will cancel everything.");
  say(other, "I will have a coffee and go on.");
  const Generation one = start(anna, 2), two = start(other, 2);
  listen({{"if she cancels", one}, {"if she goes on", two}});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: side_by_side MODEL\n");
    return 2;
  }
  try {
    run(argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
