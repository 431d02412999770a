// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cuda.h"

#include <atomic>

#include "csrc/bindings/place.h"

namespace earnest::bindings {
namespace {

std::atomic<bool> emulating{false};

#if defined(EARNEST_EMULATED)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

void emulate_cuda(bool on) {
  if (on && !kEmulated) {
    raise_if_error(unsupported("emulate_cuda", "build", "one with EARNEST_CUDA=EMULATED", "another"));
  }
  emulating = on;
}

}  // namespace

bool emulating_cuda() { return kEmulated && emulating.load(std::memory_order_relaxed); }

void bind_cuda(nb::module_& module) {
  module.attr("CUDA_IS_EMULATED") = kEmulated;
  module.def("emulate_cuda", &emulate_cuda, nb::arg("on"));
}

}  // namespace earnest::bindings
