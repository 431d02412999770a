// SPDX-License-Identifier: Apache-2.0
// What an earnest_model is: a checkpoint in memory, with its tokenizer. Engines hold it by itself, so that
// the handle may go before them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "csrc/engine/model.h"
#include "csrc/engine/template.h"
#include "csrc/engine/tokenizer.h"
#include "csrc/include/earnest.h"

namespace earnest::capi {

struct Checkpoint {
  std::shared_ptr<engine::Model> model;
  std::shared_ptr<const engine::Tokenizer> tokenizer;
  engine::SpecialIds special;
  std::string folder_name;  // its last part, which responses call the model by
  std::string info;         // JSON
};

}  // namespace earnest::capi

struct earnest_model {
  std::atomic<int64_t> references{1};
  std::shared_ptr<const earnest::capi::Checkpoint> checkpoint;
};
