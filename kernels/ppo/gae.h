// SPDX-License-Identifier: Apache-2.0
// Generalised advantage estimation over packed multi-turn sequences.
//
//   delta_t = r_t + gamma V_next - V_t      A_t = delta_t + gamma lam A_next      R_t = A_t + V_t
//
// where "next" is the next TRAINABLE token of the same sequence, and V_next = A_next = 0 after the last one
// (the end of a sequence is terminal, also when the reply was cut off). Tokens between turns (user, tool and
// audio positions) therefore change nothing: values and rewards there are never used, and A = R = 0 is
// written there.
//
// A reward on a masked token is ignored, as the per-token KL penalty at such tokens must be; a caller whose
// rewards are all meant to count sets refuse_masked_rewards, and the first one that would be lost is an error
// instead. A value or reward that is not finite is an error at a trainable token, and ignored at a masked
// one.
//
// Device::kCuda: every array is the device's. The call puts work on the stream and returns; what the CPU
// would refuse in an array goes into the fault word, and gae_fault says it in the same words. A sequence's
// results depend on that sequence alone, as on the CPU, and are the same bits at every run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::ppo {

template <typename T>  // float or double; what is carried from token to token is in double for both
struct GaeParams {
  const T* rewards = nullptr;           // [tokens]
  const T* values = nullptr;            // [tokens]
  const uint8_t* trainable = nullptr;   // [tokens], 0 or 1
  const int32_t* cu_seqlens = nullptr;  // [sequences + 1], from 0 to tokens, never falling
  int64_t tokens = 0;
  int64_t sequences = 0;
  double gamma = 1.0;  // [0, 1]
  double lam = 1.0;    // [0, 1]; gamma = lam = 1 takes a shorter path: reverse cumulative reward minus V
  bool refuse_masked_rewards = false;
  T* advantages = nullptr;  // [tokens] out
  T* returns = nullptr;     // [tokens] out

  // For Device::kCuda:
  void* stream = nullptr;
  void* workspace = nullptr;  // gae_workspace_size bytes, aligned to 16
  FaultWord* fault = nullptr;
};

size_t gae_workspace_size(int64_t tokens, int64_t sequences, Device device);

template <typename T>
Status run_gae(const GaeParams<T>& params, Device device = Device::kCpu);

// What a fault word that is not kNoFault means. Reads the entry from the device; waits.
template <typename T>
Status gae_fault(const GaeParams<T>& params, FaultWord word);

// What run_gae refuses on the CPU before it reads rewards, values or flags: settings, sizes, cu_seqlens.
template <typename T>
Status check_gae(const GaeParams<T>& params);

// The oracle: the recurrence above as it is written, one token at a time. Takes checked parameters.
template <typename T>
void reference_gae(const GaeParams<T>& params);

}  // namespace earnest::ppo
