// SPDX-License-Identifier: Apache-2.0
// What this family answers when asked for a GPU in a build without CUDA.
#include "kernels/rowwise/rowwise_cuda.h"

namespace earnest::rowwise {
namespace {

Status none() { return unsupported("rowwise", "device", "cpu (earnest was built without CUDA)", "cuda"); }

}  // namespace

Status which_cuda(std::string*) { return none(); }

template <typename Stored>
Status rms_norm_cuda(const RmsNorm<Stored>&) {
  return none();
}
template <typename Fused, typename Apart>
Status rotary_cuda(const Rotary<Fused, Apart>&) {
  return none();
}
template <typename Stored>
Status swiglu_cuda(const SwiGlu<Stored>&) {
  return none();
}

template Status rms_norm_cuda(const RmsNorm<float>&);
template Status rms_norm_cuda(const RmsNorm<BFloat16>&);
template Status rotary_cuda(const Rotary<float, float>&);
template Status rotary_cuda(const Rotary<BFloat16, BFloat16>&);
template Status rotary_cuda(const Rotary<BFloat16, float>&);
template Status swiglu_cuda(const SwiGlu<float>&);
template Status swiglu_cuda(const SwiGlu<BFloat16>&);

}  // namespace earnest::rowwise
