// SPDX-License-Identifier: Apache-2.0
#include "csrc/bindings/bindings.h"
#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"

namespace earnest::bindings {

NB_MODULE(_native, module) {
  module.doc() = "earnest's kernels. Use them through earnest.ops and earnest.features.";
  module.def("set_num_threads", &set_num_threads, nb::arg("threads"));
  module.def("num_threads", &num_threads);
  module.def("cpu_tier", [] {
    CpuTier tier;
    raise_if_error(current_cpu_tier(&tier));
    return std::string(name_of(tier));
  });
  module.def("best_cpu_tier", [] { return std::string(name_of(best_cpu_tier())); });
  module.def(
      "force_cpu_tier", [](const std::string& name) { raise_if_error(force_cpu_tier(name)); },
      nb::arg("name"));
  bind_cuda(module);
  bind_limits(module);
  bind_logmel(module);
  bind_logmel_batch(module);
  bind_attention(module);
  bind_paged(module);
  bind_logprob(module);
  bind_ppo(module);
  bind_rowwise(module);
  bind_frames(module);
  bind_linear(module);
  bind_quantized(module);
  bind_pitch(module);
  bind_text(module);
  bind_engine(module);
  bind_session(module);
}

}  // namespace earnest::bindings
