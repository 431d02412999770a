// SPDX-License-Identifier: Apache-2.0
// What this family answers when asked for a GPU in a build without CUDA.
#include "kernels/ppo/ppo_cuda.h"

namespace earnest::ppo {
namespace {

Status none(const char* op) {
  return unsupported(op, "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace

template <typename T>
Status gae_cuda(const GaeParams<T>&) {
  return none("gae");
}
template <typename T>
Status loss_cuda(const LossParams<T>&, void*) {
  return none("ppo_loss");
}
template <typename T>
Status moments_cuda(const MomentsParams<T>&, Moments*, void*) {
  return none("whiten");
}
template <typename T>
Status whiten_cuda(const WhitenParams<T>&) {
  return none("whiten");
}
template <typename T>
Status group_advantage_cuda(const GroupParams<T>&, void*) {
  return none("group_advantage");
}
Status which_cuda(std::string*) { return none("ppo"); }

#define EARNEST_INSTANTIATE(T)                                               \
  template Status gae_cuda<T>(const GaeParams<T>&);                          \
  template Status loss_cuda<T>(const LossParams<T>&, void*);                 \
  template Status moments_cuda<T>(const MomentsParams<T>&, Moments*, void*); \
  template Status whiten_cuda<T>(const WhitenParams<T>&);                    \
  template Status group_advantage_cuda<T>(const GroupParams<T>&, void*);
EARNEST_INSTANTIATE(float)
EARNEST_INSTANTIATE(double)
#undef EARNEST_INSTANTIATE

}  // namespace earnest::ppo
