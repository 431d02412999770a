// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cuda.h"

#include <atomic>
#include <string_view>

#include "csrc/bindings/place.h"
#include "kernels/common/cuda.h"
#include "kernels/common/cuda_path.h"

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

// A word for faults on the current device that belongs to no allocator of torch. It is never given back: CUDA
// graphs write to it for as long as they live, and that is somebody else's to say.
nb::ndarray<nb::pytorch, int64_t, nb::ndim<1>> lasting_fault_word() {
  raise_if_error(check_cuda_build("fault"));
  cuda::Properties device;
  raise_if_error(cuda::properties("fault", &device));
  void* memory = nullptr;
  raise_if_error(cuda::allocate("fault", sizeof kNoFault, &memory));
  raise_if_error(cuda::copy("fault", memory, &kNoFault, sizeof kNoFault, nullptr));
  const size_t shape[] = {1};
  const int type = kEmulated ? nb::device::cpu::value : nb::device::cuda::value;
  return {memory, 1, shape, nb::none(), nullptr, nb::dtype<int64_t>(), type, kEmulated ? 0 : device.index};
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
  module.def("lasting_fault_word", &lasting_fault_word);
  module.def(
      "force_cuda_tier", [](const std::string& name) { raise_if_error(force_cuda_tier(name)); },
      nb::arg("name"));
}

}  // namespace earnest::bindings
