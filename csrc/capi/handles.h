// SPDX-License-Identifier: Apache-2.0
// What stands behind the pointers of earnest.h: thin shells around the engine's own handles, which hold what
// they need, so that shells may go in any order.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "csrc/engine/answer.h"
#include "csrc/engine/engine.h"
#include "csrc/engine/loaded_model.h"
#include "csrc/engine/session.h"
#include "csrc/engine/spoken_clip.h"
#include "csrc/include/earnest.h"

struct earnest_model {
  std::atomic<int64_t> references{1};
  std::shared_ptr<const earnest::engine::LoadedModel> loaded;
  std::string name;  // of its folder: what responses call it
};

struct earnest_engine {
  std::shared_ptr<earnest::engine::Engine> engine;
  std::string model_name;

  // The sentence, which does not change once there is one, for as long as the engine lives; or NULL.
  const char* graph_trouble(const earnest::Status& known) const {
    if (known.ok()) return nullptr;
    std::call_once(troubled, [&] { trouble = known.message(); });
    return trouble.c_str();
  }
  mutable std::once_flag troubled;
  mutable std::string trouble;
};

struct earnest_session {
  std::unique_ptr<earnest::engine::Session> session;
};

struct earnest_audio {
  std::unique_ptr<earnest::engine::SpokenClip> clip;
  uint32_t channels = 1;
};

struct earnest_generation {
  std::unique_ptr<earnest::engine::Answer> answer;
  earnest::engine::Event event;  // the last one, whose text the caller is looking at
  std::string reasoning, reply;  // as they were last asked for
};
