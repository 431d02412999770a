// SPDX-License-Identifier: Apache-2.0
// How the engine passes failures up: a Status from call to call, and memory that runs out turned into one.
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/common/status.h"

#define EARNEST_RETURN_IF_ERROR(expression)                        \
  do {                                                             \
    if (::earnest::Status status_ = (expression); !status_.ok()) { \
      return status_;                                              \
    }                                                              \
  } while (false)

namespace earnest::engine {

inline Status out_of_memory(const std::string& op) {
  return {StatusCode::kOutOfMemory, "[" + op + "] memory: expected some left, got none"};
}

// Memory that was not given, and why.
class AllocationFailed : public std::bad_alloc {
 public:
  explicit AllocationFailed(Status why) : why_(std::move(why)) {}
  const Status& why() const { return why_; }

 private:
  Status why_;
};

// body() where the standard library may run out of memory.
template <typename Body>
Status guarded(const std::string& op, const Body& body) {
  try {
    return body();
  } catch (const AllocationFailed& failed) {
    return failed.why();
  } catch (const std::bad_alloc&) {
    return out_of_memory(op);
  } catch (const std::length_error&) {
    return out_of_memory(op);
  }
}

inline Status corrupt(const std::string& file, const std::string& argument, const std::string& expected,
                      const std::string& got) {
  return {StatusCode::kCorrupt,
          "[load] " + file + ": " + argument + ": expected " + expected + ", got " + got};
}

}  // namespace earnest::engine
