// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "csrc/capi/call.h"
#include "csrc/capi/device.h"
#include "csrc/capi/handles.h"
#include "csrc/capi/log.h"
#include "csrc/capi/results.h"
#include "csrc/capi/sized.h"
#include "kernels/common/thread_pool.h"

namespace earnest::capi {
namespace {

constexpr char kOp[] = "engine";
constexpr uint32_t kMostThreads = 1024;

Outcome check_graphs(const earnest_engine_params& params, Device of_model) {
  const int asked = number_of(params.cuda_graphs);
  if (asked < EARNEST_CUDA_GRAPHS_DEFAULT || asked > EARNEST_CUDA_GRAPHS_OFF)
    return invalid(kOp, "cuda_graphs", "one of earnest_cuda_graphs", std::to_string(asked));
  if (asked == EARNEST_CUDA_GRAPHS_ON && of_model == Device::kCpu)
    return failure(EARNEST_UNSUPPORTED, kOp, "cuda_graphs", "a model on cuda", "one on cpu");
  if (params.reserved == 0) return {};
  return failure(EARNEST_UNSUPPORTED, kOp, "reserved", "0", std::to_string(params.reserved));
}

Outcome check(const earnest_engine_params& params, const engine::Place& of_model) {
  engine::Place place = of_model;
  if (params.device) EARNEST_RETURN_IF_FAILED(read_device(params.device, &place));
  if (place != of_model) {
    return failure(EARNEST_UNSUPPORTED, kOp, "device", engine::name_of(of_model) + " (where the model is)",
                   params.device);
  }
  EARNEST_RETURN_IF_FAILED(check_graphs(params, of_model.device));
  if (params.threads > kMostThreads) {
    return invalid(kOp, "threads", "at most " + std::to_string(kMostThreads), std::to_string(params.threads));
  }
  return {};
}

engine::EngineOptions options_of(const earnest_engine_params& params) {
  engine::EngineOptions options;
  options.kv_bytes = params.kv_bytes;
  if (params.max_generations > 0) options.max_generations = params.max_generations;
  if (params.max_waiting > 0) options.max_waiting = params.max_waiting;
  if (params.prefill_tokens > 0) options.prefill_tokens = params.prefill_tokens;
  options.cuda_graphs = params.cuda_graphs != EARNEST_CUDA_GRAPHS_OFF;
  return options;
}

}  // namespace
}  // namespace earnest::capi

using namespace earnest::capi;

void earnest_engine_params_default(earnest_engine_params* params, size_t struct_size) {
  write_defaults(earnest_engine_params{}, params, struct_size);
}

earnest_status earnest_engine_create(earnest_model* model, const earnest_engine_params* params,
                                     earnest_engine** engine) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "engine", engine));
    *engine = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "model", model));
    earnest_engine_params chosen{};
    EARNEST_RETURN_IF_FAILED(read_params(kOp, params, &chosen));
    EARNEST_RETURN_IF_FAILED(check(chosen, model->loaded->model().place()));
    auto handle = std::make_unique<earnest_engine>();
    handle->model_name = model->name;
    EARNEST_RETURN_IF_FAILED(
        earnest::engine::Engine::create(model->loaded, options_of(chosen), &handle->engine));
    if (chosen.threads > 0) earnest::set_num_threads(static_cast<int>(chosen.threads));
    if (logging()) {
      const auto stats = handle->engine->stats();
      log(EARNEST_LOG_INFO, "engine made: room for " + std::to_string(stats.kv_tokens) + " tokens, " +
                                std::to_string(earnest::num_threads()) + " threads");
    }
    *engine = handle.release();
    return {};
  });
}

earnest_status earnest_engine_drain(earnest_engine* engine, int64_t timeout_ms) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "engine", engine));
    return engine->engine->drain(timeout_ms);
  });
}

void earnest_engine_destroy(earnest_engine* engine) { delete engine; }

earnest_status earnest_engine_get_stats(const earnest_engine* engine, earnest_engine_stats* stats) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "engine", engine));
    EARNEST_RETURN_IF_FAILED(required(kOp, "stats", stats));
    EARNEST_RETURN_IF_FAILED(check_size<earnest_engine_stats>(kOp, "stats", stats->struct_size));
    const earnest::engine::EngineStats now = engine->engine->stats();
    earnest_engine_stats made = EARNEST_ENGINE_STATS_INIT;
    made.running = narrow(now.running);
    made.waiting = narrow(now.waiting);
    made.sessions = narrow(now.sessions);
    made.kv_tokens = static_cast<uint64_t>(now.kv_tokens);
    made.kv_tokens_used = static_cast<uint64_t>(now.kv_tokens_used);
    made.prompt_tokens = static_cast<uint64_t>(now.prompt_tokens);
    made.cached_tokens = static_cast<uint64_t>(now.cached_tokens);
    made.completion_tokens = static_cast<uint64_t>(now.completion_tokens);
    made.recorded_graphs = static_cast<uint64_t>(now.recorded_graphs);
    made.graph_steps = static_cast<uint64_t>(now.graph_steps);
    made.plain_steps = static_cast<uint64_t>(now.plain_steps);
    made.graph_trouble = engine->graph_trouble(now.graph_trouble);
    write_struct(made, stats);
    return {};
  });
}
