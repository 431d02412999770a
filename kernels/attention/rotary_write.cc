// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/rotary_write.h"

#include <cmath>
#include <tuple>

#include "kernels/attention/rotary_turn.h"
#include "kernels/attention/rotary_write_backend.h"

namespace earnest::attention::rotary_write {
namespace {

constexpr const char* kOp = "rotary_write";
constexpr int64_t kMostHeads = 1 << 20;

Status wrong(const std::string& argument, const std::string& expected, const std::string& got) {
  return invalid_argument(kOp, argument, expected, got);
}

Status check(const Params& p) {
  if (p.device != Device::kCuda) {
    return unsupported(kOp, "device",
                       "cuda (on the CPU kernels/rowwise/rowwise.h turns, and the cache has no pages)",
                       "cpu");
  }
  if (p.tokens < 0 || p.tokens > INT32_MAX)
    return wrong("qkv", "0 to 2^31 - 1 tokens", std::to_string(p.tokens));
  if (p.dim != 64 && p.dim != 128) return wrong("qkv", "a head size of 64 or 128", std::to_string(p.dim));
  for (int64_t heads : {p.heads, p.kv_heads}) {
    if (heads < 1 || heads > kMostHeads)
      return wrong("qkv", "1 to 2^20 heads of each kind", std::to_string(heads));
  }
  if (p.page_size < paged::kLeastPage || p.page_size > paged::kMostPage ||
      (p.page_size & (p.page_size - 1)) != 0)
    return wrong("page_size", "a power of two from 16 to 256", std::to_string(p.page_size));
  if (p.pages < 0 || p.pages > INT32_MAX) return wrong("k", "0 to 2^31 - 1 pages", std::to_string(p.pages));
  if (!(p.theta > 0) || !std::isfinite(p.theta))
    return wrong("theta", "a finite number above 0", std::to_string(p.theta));
  const bool scaled = p.cache == paged::Cache::kFloat8;
  for (const auto& [argument, data, needed, alignment] :
       {std::tuple{"qkv", p.qkv, true, 16}, std::tuple{"bias", p.bias, false, 16},
        std::tuple{"positions", static_cast<const void*>(p.positions), true, 8},
        std::tuple{"k_scale", static_cast<const void*>(p.k_scale), scaled, 4},
        std::tuple{"v_scale", static_cast<const void*>(p.v_scale), scaled, 4},
        std::tuple{"slots", static_cast<const void*>(p.slots), true, 8},
        std::tuple{"q", static_cast<const void*>(p.q), true, 16},
        std::tuple{"k", static_cast<const void*>(p.k), p.pages > 0, 16},
        std::tuple{"v", static_cast<const void*>(p.v), p.pages > 0, 16}}) {
    if (data == nullptr && needed && p.tokens > 0) return wrong(argument, "an array", "none");
    if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(alignment) == 0) continue;
    return wrong(argument, "an array that begins on " + std::to_string(alignment) + " bytes",
                 "another address");
  }
  return {};
}

}  // namespace

Status run(const Params& p) {
  if (Status status = check(p); !status.ok()) return status;
  return p.tokens == 0 ? Status{} : run_cuda(p);
}

Status fault(const Params& p, FaultWord word) {
  if (word == kNoFault) return {};
  const Fault found = fault_of(word);
  if (found.argument == faults::kScale) {
    return wrong("k_scale, v_scale", "finite numbers above 0",
                 "another for key head " + std::to_string(found.index));
  }
  const std::string got = "another for token " + std::to_string(found.index);
  if (found.argument == faults::kPosition) return wrong("positions", "0 to 2^24", got);
  return wrong("slots", "-1 (not kept), or a place in [0, " + std::to_string(p.pages * p.page_size) + ")",
               got);
}

}  // namespace earnest::attention::rotary_write
