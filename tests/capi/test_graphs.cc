// SPDX-License-Identifier: Apache-2.0
// The switch of CUDA graphs and what an engine says of them: on the CPU, and where a build has CUDA (a GPU,
// or the emulator) on a model with heads that it takes.
#include "tests/capi/talk.h"

using namespace talk;

namespace {

earnest_status make(const Model& model, earnest_cuda_graphs graphs, Engine* engine) {
  earnest_engine_params params;
  earnest_engine_params_default(&params, sizeof params);
  params.kv_bytes = 1 << 20;
  params.cuda_graphs = graphs;
  earnest_engine* made = nullptr;
  const earnest_status status = earnest_engine_create(model.get(), &params, &made);
  CHECK((status == EARNEST_OK) == (made != nullptr));
  *engine = Engine(made);
  return status;
}

earnest_engine_stats stats_of(const Engine& engine) {
  earnest_engine_stats stats = EARNEST_ENGINE_STATS_INIT;
  CHECK_OK(earnest_engine_get_stats(engine.get(), &stats));
  return stats;
}

Said ask(const Engine& engine) {
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "I am"));
  return answer(session, params(10));
}

// None where the build or the machine has no GPU.
Model on_cuda() {
  earnest_model_params params;
  earnest_model_params_default(&params, sizeof params);
  params.device = "cuda";
  params.weights = EARNEST_WEIGHTS_BFLOAT16;
  earnest_model* made = nullptr;
  const earnest_status status = earnest_model_load(WIDE_MODEL, &params, &made);
  if (status != EARNEST_OK) {
    CHECK(status == EARNEST_UNSUPPORTED && std::strstr(earnest_last_error(), "[engine] device: expected"));
    std::printf("     not on a GPU: %s\n", earnest_last_error());
  }
  return Model(made);
}

}  // namespace

TEST(on_the_cpu_graphs_are_refused_if_asked_for_and_none_are_counted) {
  const Model model = talk::model();
  Engine engine;
  CHECK(make(model, EARNEST_CUDA_GRAPHS_ON, &engine) == EARNEST_UNSUPPORTED);
  CHECK(std::string(earnest_last_error()) ==
        "[engine] cuda_graphs: expected a model on cuda, got one on cpu");
  for (const earnest_cuda_graphs graphs : {EARNEST_CUDA_GRAPHS_DEFAULT, EARNEST_CUDA_GRAPHS_OFF}) {
    CHECK_OK(make(model, graphs, &engine));
    CHECK(!ask(engine).ids.empty());
    const earnest_engine_stats stats = stats_of(engine);
    CHECK(stats.recorded_graphs == 0 && stats.graph_steps == 0 && stats.plain_steps == 0);
    CHECK(stats.graph_trouble == nullptr && stats.completion_tokens == 10);
  }
}

TEST(what_is_no_choice_is_refused_and_an_older_callers_struct_is_taken) {
  const Model model = talk::model();
  earnest_engine_params params;
  earnest_engine_params_default(&params, sizeof params);
  CHECK(params.cuda_graphs == EARNEST_CUDA_GRAPHS_DEFAULT && params.reserved == 0);
  const int none = 3;
  std::memcpy(&params.cuda_graphs, &none, sizeof none);
  earnest_engine* made = nullptr;
  CHECK(earnest_engine_create(model.get(), &params, &made) == EARNEST_INVALID_ARGUMENT && !made);
  CHECK(std::string(earnest_last_error()) ==
        "[engine] cuda_graphs: expected one of earnest_cuda_graphs, got 3");
  params.struct_size = offsetof(earnest_engine_params, cuda_graphs);  // behind which nobody looks
  CHECK_OK(earnest_engine_create(model.get(), &params, &made));
  const Engine engine(made);
  params.struct_size = sizeof params;
  params.cuda_graphs = EARNEST_CUDA_GRAPHS_OFF;
  params.reserved = 1;
  CHECK(earnest_engine_create(model.get(), &params, &made) == EARNEST_UNSUPPORTED && !made);
  CHECK(std::string(earnest_last_error()) == "[engine] reserved: expected 0, got 1");
  earnest_engine_stats stats;
  std::memset(&stats, 0x5A, sizeof stats);
  stats.struct_size = offsetof(earnest_engine_stats, recorded_graphs);
  CHECK_OK(earnest_engine_get_stats(engine.get(), &stats));
  CHECK(stats.completion_tokens == 0 && stats.recorded_graphs == 0x5A5A5A5A5A5A5A5A);
}

TEST(on_a_gpu_steps_are_replayed_unless_that_is_switched_off) {
  const Model model = on_cuda();
  if (!model) return;
  Said said[3];
  for (const earnest_cuda_graphs graphs :
       {EARNEST_CUDA_GRAPHS_DEFAULT, EARNEST_CUDA_GRAPHS_ON, EARNEST_CUDA_GRAPHS_OFF}) {
    Engine engine;
    CHECK_OK(make(model, graphs, &engine));
    said[graphs] = ask(engine);
    const earnest_engine_stats stats = stats_of(engine);
    const bool on = graphs != EARNEST_CUDA_GRAPHS_OFF;
    CHECK(stats.graph_steps == (on ? 8U : 0U) && stats.plain_steps == (on ? 1U : 9U));
    CHECK(stats.recorded_graphs == (on ? 1U : 0U) && stats.graph_trouble == nullptr);
  }
  CHECK(said[0].ids.size() == 10 && said[0] == said[1] && said[0] == said[2]);
}
