// SPDX-License-Identifier: Apache-2.0
// How a kernel says that it could not run. Kernels never throw and never abort.
#pragma once

#include <string>
#include <utility>

namespace earnest {

enum class StatusCode {
  kOk,
  kInvalidArgument,
  kUnsupported,
  kOutOfMemory,
  kInternal,
  kNotFound,     // a file that is not there
  kCorrupt,      // a file that is not what it should be
  kContextFull,  // no room for more tokens
  kBusy,         // somebody else is using it, or the queue is full
  kTimeout,      // nothing came in time
  kCancelled,
  kAudioFormat,  // sound that cannot be read, or samples that are not finite
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// The one voice of errors: "[op] argument: expected X, got Y".
inline Status invalid_argument(const std::string& op, const std::string& argument,
                               const std::string& expected, const std::string& got) {
  return {StatusCode::kInvalidArgument,
          "[" + op + "] " + argument + ": expected " + expected + ", got " + got};
}

inline Status unsupported(const std::string& op, const std::string& argument, const std::string& expected,
                          const std::string& got) {
  return {StatusCode::kUnsupported, "[" + op + "] " + argument + ": expected " + expected + ", got " + got};
}

}  // namespace earnest
