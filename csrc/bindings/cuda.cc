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

}  // namespace

bool emulating_cuda() { return kEmulated && emulating.load(std::memory_order_relaxed); }

void bind_cuda(nb::module_& module) {
  module.attr("CUDA_BUILD") = EARNEST_CUDA_BUILD;
  module.def("emulate_cuda", &emulate_cuda, nb::arg("on"));
}

}  // namespace earnest::bindings
