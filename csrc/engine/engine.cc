// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <string>

#include "csrc/engine/engine_core.h"
#include "csrc/engine/guard.h"

namespace earnest::engine {
namespace {

uint64_t machine_bytes() {
  const auto pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && size > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(size) : 0;
}

Status check(const EngineOptions& options) {
  const std::pair<const char*, int64_t> numbers[] = {{"max_generations", options.max_generations},
                                                     {"prefill_tokens", options.prefill_tokens},
                                                     {"max_waiting", options.max_waiting + 1}};
  for (const auto& [name, value] : numbers) {
    constexpr int64_t kMost = 1 << 24;
    if (value < 1 || value > kMost) {
      return invalid_argument("engine", name, "a number up to 2^24, above 0", std::to_string(value));
    }
  }
  return {};
}

// What keys and values may take if nobody says how much.
Status room_of(const Place& place, uint64_t* bytes) {
  *bytes = machine_bytes() / 4;
  if (place.device == Device::kCpu) return {};
  const CurrentPlace current(place);
  EARNEST_RETURN_IF_ERROR(current.status());
  size_t free = 0;
  EARNEST_RETURN_IF_ERROR(free_memory("engine", &free));
  *bytes = free / 2;  // the rest is for passes
  return {};
}

Status pool_tokens(const LoadedModel& model, uint64_t kv_bytes, int64_t* most) {
  const TextConfig& text = model.config().text;
  const uint64_t width = static_cast<uint64_t>(text.num_key_value_heads * text.head_dim());
  const uint64_t each =
      2 * static_cast<uint64_t>(text.num_hidden_layers) * width * size_of(model.model().precision());
  uint64_t tokens = kv_bytes / each;
  if (kv_bytes == 0) {
    const uint64_t contexts = 4 * static_cast<uint64_t>(model.context());
    uint64_t room = 0;
    EARNEST_RETURN_IF_ERROR(room_of(model.model().place(), &room));
    tokens = std::max<uint64_t>(std::min(contexts, room / each), 1);
  }
  *most = static_cast<int64_t>(std::min<uint64_t>(tokens, KVPool::kMostTokens));
  return {};
}

}  // namespace

Engine::Engine(std::unique_ptr<EngineCore> core) : core_(std::move(core)) {}
Engine::~Engine() = default;

Status Engine::create(std::shared_ptr<const LoadedModel> model, const EngineOptions& options,
                      std::shared_ptr<Engine>* engine) {
  return guarded("engine", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check(options));
    int64_t tokens = 0;
    EARNEST_RETURN_IF_ERROR(pool_tokens(*model, options.kv_bytes, &tokens));
    if (tokens < 1) {
      return invalid_argument("engine", "kv_bytes", "room for a token at least",
                              std::to_string(options.kv_bytes) + " bytes");
    }
    std::shared_ptr<KVPool> pool;
    EARNEST_RETURN_IF_ERROR(KVPool::create(model->config().text, model->model().precision(), tokens, &pool,
                                           model->model().place()));
    auto core = std::make_unique<EngineCore>(std::move(model), options, std::move(pool));
    try {
      core->run();
    } catch (const std::system_error&) {
      return {StatusCode::kInternal, "[engine] thread: expected one more, got none from the system"};
    }
    engine->reset(new Engine(std::move(core)));
    return {};
  });
}

const LoadedModel& Engine::model() const { return *core_->model; }

EngineStats Engine::stats() const {
  const std::lock_guard<std::mutex> lock(core_->mutex);
  EngineStats stats = core_->totals;
  stats.running = static_cast<int64_t>(core_->running.size());
  stats.waiting = static_cast<int64_t>(core_->waiting.size());
  stats.reading_ahead = static_cast<int64_t>(core_->idle.size());
  for (const auto& session : core_->sessions) stats.sessions += session->abandoned ? 0 : 1;
  const KVPool& pool = core_->prefixes.pool();
  stats.kv_tokens = pool.tokens();
  stats.kv_tokens_used = pool.tokens() - pool.free_tokens();
  return stats;
}

Status Engine::drain(int64_t timeout_ms) {
  std::unique_lock<std::mutex> lock(core_->mutex);
  core_->draining = true;
  const auto quiet = [this] { return core_->nothing_runs(); };
  if (timeout_ms < 0) {
    core_->ended.wait(lock, quiet);
    return {};
  }
  constexpr int64_t kLongest = int64_t{1} << 40;
  const auto wait = std::chrono::milliseconds(std::min(timeout_ms, kLongest));
  if (core_->ended.wait_for(lock, wait, quiet)) return {};
  return {StatusCode::kTimeout, "[engine] drain: expected all answers to end in " +
                                    std::to_string(timeout_ms) + " ms, got some that still run"};
}

}  // namespace earnest::engine
