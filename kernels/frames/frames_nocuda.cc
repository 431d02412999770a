// SPDX-License-Identifier: Apache-2.0
// What this family answers when asked for a GPU in a build without CUDA.
#include "kernels/frames/frames_cuda.h"

namespace earnest::frames {
namespace {

Status none() { return unsupported("frames", "device", "cpu (earnest was built without CUDA)", "cuda"); }

}  // namespace

Status which_cuda(std::string*) { return none(); }

template <typename Stored>
Status run_cuda(const LayerNorm<Stored>&) {
  return none();
}
template <typename Stored>
Status run_cuda(const Gelu<Stored>&) {
  return none();
}
template <typename Stored>
Status run_cuda(const Relu<Stored>&) {
  return none();
}
template <typename Stored>
Status run_cuda(const Add<Stored>&) {
  return none();
}
template <typename Stored>
Status run_cuda(const AveragePool<Stored>&) {
  return none();
}

template <typename Stored>
Status run_cuda(const Transpose<Stored>&) {
  return none();
}

#define EARNEST_FRAMES_INSTANCES(Stored)                \
  template Status run_cuda(const LayerNorm<Stored>&);   \
  template Status run_cuda(const Gelu<Stored>&);        \
  template Status run_cuda(const Relu<Stored>&);        \
  template Status run_cuda(const Add<Stored>&);         \
  template Status run_cuda(const AveragePool<Stored>&); \
  template Status run_cuda(const Transpose<Stored>&);
EARNEST_FRAMES_INSTANCES(float)
EARNEST_FRAMES_INSTANCES(BFloat16)

}  // namespace earnest::frames
