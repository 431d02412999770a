// SPDX-License-Identifier: Apache-2.0
// What is done to advantages before the loss: masked whitening over a batch, and baselines from groups of
// replies to the same prompt.
//
//   moments   count n, mean mu and m2 = sum (x - mu)^2 over trainable entries; moments of parts of a batch
//   (ranks) join whiten    y = (x - mu) / sqrt(m2 / n + eps), or x - mu if sqrt(m2 / n) < min_std: a batch
//   whose entries are all
//             but equal must not be blown up. 0 where masked.
//   group     A_i = s_i - b_i, over the valid members of i's group; b is the mean of the group, or of the
//   others
//             (leave one out). With normalize_std, A_i / sqrt(var + eps) with var the sample variance (n -
//             1), under the same min_std rule. A member alone in its group, or not valid, gets 0: nothing to
//             compare with.
//
// An entry that is not finite is an error at trainable (valid) places and ignored elsewhere.
//
// Device::kCuda: every array is the device's, the moments of run_moments among them. A call puts work on the
// stream and returns; what the CPU would refuse in an array goes into the fault word, and X_fault says it in
// the same words.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/host_device.h"
#include "kernels/common/status.h"

namespace earnest::ppo {

struct Moments {
  double count = 0.0;
  double mean = 0.0;
  double m2 = 0.0;
};

// Chan, Golub and LeVeque 1979.
EARNEST_HOST_DEVICE inline Moments join(const Moments& a, const Moments& b) {
  if (a.count == 0.0) return b;
  if (b.count == 0.0) return a;
  const double count = a.count + b.count, distance = b.mean - a.mean;
  return {count, a.mean + distance * (b.count / count),
          a.m2 + b.m2 + distance * distance * (a.count * b.count / count)};
}

template <typename T>  // float or double; arithmetic is double for both
struct MomentsParams {
  const T* x = nullptr;                // [tokens]
  const uint8_t* trainable = nullptr;  // [tokens]
  int64_t tokens = 0;

  // For Device::kCuda:
  void* stream = nullptr;
  FaultWord* fault = nullptr;
};

size_t moments_workspace_size(int64_t tokens, Device device = Device::kCpu);

// What a fault word that is not kNoFault means. Reads the entry from the device; waits.
template <typename T>
Status moments_fault(const MomentsParams<T>& params, FaultWord word);

template <typename T>
Status run_moments(const MomentsParams<T>& params, Moments* moments, void* workspace,
                   Device device = Device::kCpu);

template <typename T>
struct WhitenParams {
  const T* x = nullptr;                // [tokens]
  const uint8_t* trainable = nullptr;  // [tokens]
  int64_t tokens = 0;
  Moments moments;  // of the whole batch across ranks
  double eps = 1e-8;
  double min_std = 1e-3;
  T* out = nullptr;  // [tokens]

  // For Device::kCuda:
  const Moments* moments_on_device = nullptr;  // instead of moments
  void* stream = nullptr;
};

template <typename T>
Status run_whiten(const WhitenParams<T>& params, Device device = Device::kCpu);

enum class GroupBaseline { kMean, kLeaveOneOut };

template <typename T>
struct GroupParams {
  const T* scores = nullptr;        // [samples]
  const int64_t* groups = nullptr;  // [samples], any numbers; equal ones form a group
  const uint8_t* valid = nullptr;   // [samples] or null for all
  int64_t samples = 0;
  GroupBaseline baseline = GroupBaseline::kMean;
  bool normalize_std = false;
  double eps = 1e-8;
  double min_std = 1e-3;
  T* advantages = nullptr;  // [samples] out

  // For Device::kCuda:
  void* stream = nullptr;
  FaultWord* fault = nullptr;
};

size_t group_workspace_size(int64_t samples, Device device = Device::kCpu);

template <typename T>
Status group_fault(const GroupParams<T>& params, FaultWord word);

template <typename T>
Status run_group_advantage(const GroupParams<T>& params, void* workspace, Device device = Device::kCpu);

// 1 / sqrt(var + eps), or 1 where the spread is too small to be told from noise.
EARNEST_HOST_DEVICE inline double inverse_std(double variance, double eps, double min_std) {
  return variance > 0.0 && std::sqrt(variance) >= min_std ? 1.0 / std::sqrt(variance + eps) : 1.0;
}

// The oracles: plain loops. Take checked parameters.
template <typename T>
Moments reference_moments(const MomentsParams<T>& params);
template <typename T>
void reference_whiten(const WhitenParams<T>& params);
template <typename T>
void reference_group_advantage(const GroupParams<T>& params);

}  // namespace earnest::ppo
