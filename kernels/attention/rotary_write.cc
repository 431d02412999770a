// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/rotary_write.h"

#include <cmath>
#include <tuple>

#include "kernels/attention/paged_checks.h"
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
  if (p.tokens < 0 || p.tokens > INT32_MAX)
    return wrong("qkv", "0 to 2^31 - 1 tokens", std::to_string(p.tokens));
  if (Status status = paged::check_numbers(kOp, "qkv", p.type, p.dim); !status.ok()) return status;
  for (int64_t heads : {p.heads, p.kv_heads}) {
    if (heads < 1 || heads > kMostHeads)
      return wrong("qkv", "1 to 2^20 heads of each kind", std::to_string(heads));
  }
  if (Status status = paged::check_page_size(kOp, p.page_size); !status.ok()) return status;
  if (p.pages < 0 || p.pages > INT32_MAX) return wrong("k", "0 to 2^31 - 1 pages", std::to_string(p.pages));
  if (!(p.theta > 0) || !std::isfinite(p.theta))
    return wrong("theta", "a finite number above 0", std::to_string(p.theta));
  const bool scaled = p.cache == paged::Cache::kFloat8;
  for (const auto& [argument, data, needed, alignment] :
       {std::tuple{"qkv", p.qkv, true, size_t{16}}, std::tuple{"bias", p.bias, false, size_t{16}},
        std::tuple{"positions", static_cast<const void*>(p.positions), true, size_t{8}},
        std::tuple{"k_scale", static_cast<const void*>(p.k_scale), scaled, size_t{4}},
        std::tuple{"v_scale", static_cast<const void*>(p.v_scale), scaled, size_t{4}},
        std::tuple{"slots", static_cast<const void*>(p.slots), true, size_t{8}},
        std::tuple{"q", static_cast<const void*>(p.q), true, size_t{16}},
        std::tuple{"k", static_cast<const void*>(p.k), p.pages > 0, size_t{16}},
        std::tuple{"v", static_cast<const void*>(p.v), p.pages > 0, size_t{16}}}) {
    const int64_t some = needed && p.tokens > 0 ? 1 : 0;
    if (Status status = paged::check_array(kOp, argument, data, some, p.device, alignment); !status.ok())
      return status;
  }
  return {};
}

}  // namespace

Status run(const Params& p) {
  if (Status status = check(p); !status.ok()) return status;
  if (p.tokens == 0) return {};
  return p.device == Device::kCuda ? run_cuda(p) : run_cpu(p);
}

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) return which_cuda(name);
  *name = "cpu/scalar";
  return {};
}

Status fault(const Params& p, FaultWord word) {
  if (word == kNoFault) return {};
  const Fault found = fault_of(word);
  if (found.argument == faults::kScale) return paged::scale_fault(kOp, found.index);
  const std::string got = "another for token " + std::to_string(found.index);
  if (found.argument == faults::kPosition) return wrong("positions", "0 to 2^24", got);
  return wrong("slots", "-1 (not kept), or a place in [0, " + std::to_string(p.pages * p.page_size) + ")",
               got);
}

}  // namespace earnest::attention::rotary_write
