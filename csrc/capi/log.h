// SPDX-License-Identifier: Apache-2.0
// Lines for earnest_log_set's callback. They name objects, counts and times, never what is said in dialogues.
#pragma once

#include <string>

#include "csrc/include/earnest.h"

namespace earnest::capi {

bool logging() noexcept;  // whether anybody listens
void log(earnest_log_level level, const std::string& line) noexcept;

}  // namespace earnest::capi
