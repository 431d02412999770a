// SPDX-License-Identifier: Apache-2.0
// The edge that every function of earnest.h is: what fails inside becomes a status and a sentence that the
// thread keeps; no exception leaves.
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "csrc/include/earnest.h"
#include "kernels/common/status.h"

namespace earnest::capi {

// A status of the C API and why. What comes up from the engine is translated by its code.
class [[nodiscard]] Outcome {
 public:
  Outcome() = default;
  Outcome(const Status& status);  // NOLINT: meant to convert
  Outcome(earnest_status status, std::string message) : status_(status), message_(std::move(message)) {}

  bool ok() const { return status_ == EARNEST_OK; }
  earnest_status status() const { return status_; }
  const std::string& message() const { return message_; }
  // The same failure under another name, where the place knows better what it means.
  Outcome instead_of(earnest_status general, earnest_status special) const {
    return status_ == general ? Outcome(special, message_) : *this;
  }

 private:
  earnest_status status_ = EARNEST_OK;
  std::string message_;
};

Outcome failure(earnest_status status, const char* op, const std::string& argument,
                const std::string& expected, const std::string& got);
inline Outcome invalid(const char* op, const std::string& argument, const std::string& expected,
                       const std::string& got) {
  return failure(EARNEST_INVALID_ARGUMENT, op, argument, expected, got);
}

// An error where a pointer that must be there is not.
Outcome required(const char* op, const char* argument, const void* pointer);

#define EARNEST_RETURN_IF_FAILED(expression)          \
  do {                                                \
    ::earnest::capi::Outcome outcome_ = (expression); \
    if (!outcome_.ok()) return outcome_;              \
  } while (false)

// Keeps the sentence for earnest_last_error of this thread; needs no memory.
earnest_status remember(earnest_status status, std::string_view message) noexcept;
const char* last_error() noexcept;

// body() -> Outcome.
template <typename Body>
earnest_status call(const char* op, const Body& body) noexcept {
  try {
    const Outcome outcome = body();
    return outcome.ok() ? EARNEST_OK : remember(outcome.status(), outcome.message());
  } catch (const std::bad_alloc&) {
    return remember(EARNEST_OUT_OF_MEMORY, "[memory] more: expected some left, got none");
  } catch (const std::length_error&) {
    return remember(EARNEST_OUT_OF_MEMORY, "[memory] size: expected one that fits, got more");
  } catch (const std::exception& error) {
    return remember(EARNEST_INTERNAL, error.what());
  } catch (...) {
    return remember(EARNEST_INTERNAL, op);
  }
}

}  // namespace earnest::capi
