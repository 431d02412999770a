// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cuda.h"

#include <atomic>
#include <string_view>

#include "csrc/bindings/place.h"

namespace earnest::bindings {
namespace {

std::atomic<bool> emulating{false};

constexpr std::string_view kBuild = EARNEST_CUDA_BUILD;  // OFF, ON or EMULATED
constexpr bool kEmulated = kBuild == "EMULATED";

void emulate_cuda(bool on) {
  if (on && !kEmulated) {
    raise_if_error(unsupported("emulate_cuda", "build", "one with EARNEST_CUDA=EMULATED", "another"));
  }
  emulating = on;
}

const char* name_of(FaultOp op) {
  switch (op) {
    case FaultOp::kGae:
      return "gae";
    case FaultOp::kPpoLoss:
      return "ppo_loss";
    case FaultOp::kWhiten:
      return "whiten";
    case FaultOp::kGroupAdvantage:
      return "group_advantage";
    case FaultOp::kLogMel:
      return "logmel";
    case FaultOp::kLogProb:
      return "logprob";
    case FaultOp::kAttention:
      return "attention";
    case FaultOp::kPagedAttention:
      return "paged_attention";
    case FaultOp::kRotaryWrite:
      return "rotary_write";
    case FaultOp::kRotary:
      return "rotary";
    case FaultOp::kGather:
      return "gather";
  }
  return "unknown";
}

// (operator, place) of a fault word, which Python holds as int64.
nb::tuple fault(int64_t word) {
  const Fault found = fault_of(static_cast<FaultWord>(word));
  return nb::make_tuple(name_of(found.op), found.index);
}

}  // namespace

bool emulating_cuda() { return kEmulated && emulating.load(std::memory_order_relaxed); }

Status check_cuda_build(const char* op) {
  if (kBuild != "OFF") return {};
  return unsupported(op, "device", "cpu (earnest was built without CUDA)", "cuda");
}

void bind_cuda(nb::module_& module) {
  module.attr("CUDA_BUILD") = EARNEST_CUDA_BUILD;
  module.def("emulate_cuda", &emulate_cuda, nb::arg("on"));
  module.def("cuda_fault", &fault, nb::arg("word"));
}

}  // namespace earnest::bindings
