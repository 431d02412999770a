// SPDX-License-Identifier: Apache-2.0
// What belongs to no object: versions, names, the last error, the log.
#include <atomic>
#include <cstdlib>
#include <mutex>

#include "csrc/capi/call.h"
#include "csrc/capi/log.h"
#include "kernels/common/cpu_tier.h"

namespace earnest::capi {
namespace {

struct Sink {
  std::mutex mutex;  // held while a line is given out: one at a time, and none after a change
  earnest_log_callback callback = nullptr;
  void* user_data = nullptr;
  std::atomic<bool> set = false;
};

Sink& sink() {
  static Sink only;
  return only;
}

std::string build_info() {
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#elif defined(__GNUC__)
  const std::string compiler = "gcc " __VERSION__;
#else
  const std::string compiler = "unknown";
#endif
  CpuTier tier = CpuTier::kScalar;
  const bool known = current_cpu_tier(&tier).ok();
  return "{\"version\":\"" EARNEST_VERSION "\",\"abi_version\":" + std::to_string(EARNEST_ABI_VERSION) +
         ",\"compiler\":\"" + compiler + "\",\"devices\":[\"cpu\"],\"cpu_tier\":" +
         (known ? std::string("\"") + name_of(tier) + "\"" : std::string("null")) + "}";
}

}  // namespace

bool logging() noexcept { return sink().set.load(std::memory_order_relaxed); }

void log(earnest_log_level level, const std::string& line) noexcept {
  const std::lock_guard lock(sink().mutex);
  if (sink().callback) sink().callback(level, line.c_str(), sink().user_data);
}

}  // namespace earnest::capi

using namespace earnest::capi;

const char* earnest_version(void) { return EARNEST_VERSION; }

uint32_t earnest_abi_version(void) { return EARNEST_ABI_VERSION; }

const char* earnest_build_info(void) {
  try {
    static const std::string info = build_info();
    return info.c_str();
  } catch (...) {
    return "{}";
  }
}

const char* earnest_status_name(int status) {
  constexpr const char* kNames[] = {"OK",
                                    "INVALID_ARGUMENT",
                                    "NOT_FOUND",
                                    "UNSUPPORTED_MODEL",
                                    "CORRUPT_MODEL",
                                    "OUT_OF_MEMORY",
                                    "CONTEXT_FULL",
                                    "BUSY",
                                    "TIMEOUT",
                                    "CANCELLED",
                                    "AUDIO_FORMAT",
                                    "DEVICE",
                                    "INTERNAL",
                                    "UNSUPPORTED"};
  static_assert(std::size(kNames) == EARNEST_UNSUPPORTED + 1);
  return status < 0 || status > EARNEST_UNSUPPORTED ? "UNKNOWN" : kNames[status];
}

const char* earnest_last_error(void) { return last_error(); }

void earnest_log_set(earnest_log_callback callback, void* user_data) {
  const std::lock_guard lock(sink().mutex);
  sink().callback = callback;
  sink().user_data = user_data;
  sink().set.store(callback != nullptr, std::memory_order_relaxed);
}

void earnest_free(void* memory) { std::free(memory); }
