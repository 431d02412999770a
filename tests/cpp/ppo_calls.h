// SPDX-License-Identifier: Apache-2.0
// Calls of the ppo family on either device, for tests: arrays of the host go there and back.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/ppo/advantage.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/loss.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

namespace ppo_calls {

using namespace earnest;
using namespace earnest::ppo;

const double kNan = std::numeric_limits<double>::quiet_NaN();

template <typename T>
struct Batch {
  std::vector<T> x[9];
  std::vector<uint8_t> trainable;

  explicit Batch(int64_t tokens, unsigned seed = 1) : trainable(tokens) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (auto& flag : trainable) flag = random() % 3 != 0;
    for (int i = 0; i < 9; ++i) {
      for (int64_t t = 0; t < tokens; ++t) {
        const double value = i == 8 ? std::abs(normal(random)) + 0.1 : normal(random) * 0.7;
        x[i].push_back(static_cast<T>(trainable[t] ? value : kNan));  // what is masked must not matter
      }
    }
  }
};

// Each runs a call on the device with the host's arrays, and says of a fault what the CPU would.
template <typename T>
Status run(const LossParams<T>& params, Device device = Device::kCpu) {
  Lent lent(device);
  LossParams<T> p = params;
  for (const T** x : {&p.logp, &p.logp_old, &p.advantages, &p.values, &p.values_old, &p.returns, &p.logp_ref,
                      &p.entropy, &p.weights, &p.token_normalizer})
    *x = lent.in(*x, p.tokens);
  p.trainable = lent.in(p.trainable, p.tokens);
  for (T** x : {&p.grad_logp, &p.grad_values, &p.grad_entropy}) *x = lent.out(*x, p.tokens);
  p.sums = lent.out(p.sums, kNumSums);
  T total = T(0);
  p.total = lent.out(&total, 1);
  p.fault = lent.fault();
  const Status status = run_loss(p, lent.scratch(loss_workspace_size(p.tokens, device)), device);
  if (!status.ok()) return status;
  if (const FaultWord word = lent.finish(); word != kNoFault) return loss_fault(p, word);
  if (device == Device::kCuda) CHECK(total == static_cast<T>(total_loss(params, params.sums)));
  return {};
}

template <typename T>
Status run(const GaeParams<T>& params, Device device) {
  Lent lent(device);
  GaeParams<T> p = params;
  p.rewards = lent.in(p.rewards, p.tokens), p.values = lent.in(p.values, p.tokens);
  p.trainable = lent.in(p.trainable, p.tokens);
  p.cu_seqlens = lent.in(p.cu_seqlens, p.sequences + 1);
  p.advantages = lent.out(p.advantages, p.tokens), p.returns = lent.out(p.returns, p.tokens);
  p.workspace = lent.scratch(gae_workspace_size(p.tokens, p.sequences, device));
  p.fault = lent.fault();
  const Status status = run_gae(p, device);
  if (!status.ok()) return status;
  const FaultWord word = lent.finish();
  return word == kNoFault ? Status{} : gae_fault(p, word);
}

template <typename T>
Status run(const MomentsParams<T>& params, Moments* moments, Device device) {
  Lent lent(device);
  MomentsParams<T> p = params;
  p.x = lent.in(p.x, p.tokens), p.trainable = lent.in(p.trainable, p.tokens);
  p.fault = lent.fault();
  const Status status =
      run_moments(p, lent.out(moments, 1), lent.scratch(moments_workspace_size(p.tokens, device)), device);
  if (!status.ok()) return status;
  const FaultWord word = lent.finish();
  return word == kNoFault ? Status{} : moments_fault(p, word);
}

template <typename T>
Status run(const WhitenParams<T>& params, Device device) {
  Lent lent(device);
  WhitenParams<T> p = params;
  p.x = lent.in(p.x, p.tokens), p.trainable = lent.in(p.trainable, p.tokens);
  p.out = lent.out(p.out, p.tokens);
  if (device == Device::kCuda) p.moments_on_device = lent.in(&params.moments, 1), p.moments = {};
  const Status status = run_whiten(p, device);
  lent.finish();
  return status;
}

template <typename T>
Status run(const GroupParams<T>& params, Device device) {
  Lent lent(device);
  GroupParams<T> p = params;
  p.scores = lent.in(p.scores, p.samples), p.groups = lent.in(p.groups, p.samples);
  p.valid = lent.in(p.valid, p.samples);
  p.advantages = lent.out(p.advantages, p.samples);
  p.fault = lent.fault();
  const Status status = run_group_advantage(p, lent.scratch(group_workspace_size(p.samples, device)), device);
  if (!status.ok()) return status;
  const FaultWord word = lent.finish();
  return word == kNoFault ? Status{} : group_fault(p, word);
}

}  // namespace ppo_calls
