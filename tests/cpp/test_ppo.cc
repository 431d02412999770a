// SPDX-License-Identifier: Apache-2.0
// Every tier of the ppo family, and CUDA where it is built, against its oracle, at lengths around every
// vector and block width, and what the contracts refuse.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/ppo/advantage.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/loss.h"
#include "kernels/ppo/tiers.h"
#include "tests/cpp/check.h"
#include "tests/cpp/ppo_calls.h"
#include "tests/cpp/tiers.h"

using namespace earnest;
using namespace earnest::ppo;

namespace {

using ppo_calls::Batch;
using ppo_calls::kNan;
using ppo_calls::run;

template <typename Body>
void for_each_backend(Body body) {
  for (const std::string& name : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(name).ok());
    body(Device::kCpu);
  }
  CHECK(force_cpu_tier("").ok());
#if defined(EARNEST_WITH_CUDA)
  body(Device::kCuda);
#endif
}

template <typename T>
void check_near(const std::vector<T>& a, const std::vector<T>& b, double bound) {
  CHECK(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double size = std::abs(static_cast<double>(b[i]));
    CHECK_NEAR(a[i], b[i], bound * std::max(1.0, size));
  }
}

template <typename T>
struct LossOutputs {
  std::vector<T> logp, values, entropy;
  std::vector<double> sums = std::vector<double>(kNumSums);
};

template <typename T>
LossParams<T> loss_params(const Batch<T>& batch, LossOutputs<T>* out) {
  LossParams<T> p;
  const size_t tokens = batch.trainable.size();
  for (auto* gradient : {&out->logp, &out->values, &out->entropy}) gradient->assign(tokens, T(7));
  p.logp = batch.x[0].data(), p.logp_old = batch.x[1].data(), p.advantages = batch.x[2].data();
  p.values = batch.x[3].data(), p.values_old = batch.x[4].data(), p.returns = batch.x[5].data();
  p.logp_ref = batch.x[6].data(), p.entropy = batch.x[7].data(), p.weights = batch.x[8].data();
  p.trainable = batch.trainable.data();
  p.tokens = static_cast<int64_t>(tokens);
  p.grad_logp = out->logp.data(), p.grad_values = out->values.data();
  p.grad_entropy = out->entropy.data();
  p.sums = out->sums.data();
  p.clip_value = 0.3;
  p.dual_clip = 3.0;
  p.policy_coef = 0.75, p.value_coef = 0.5, p.kl_coef = 0.25, p.entropy_coef = 0.125;
  return p;
}

template <typename T>
void loss_equals_oracle(Device device, double bound) {
  for (int64_t tokens : {0, 1, 2, 3, 7, 8, 9, 31, 64, 4095, 4096, 4097, 9001}) {
    const Batch<T> batch(tokens);
    for (KlEstimator estimator : {KlEstimator::kK1, KlEstimator::kK2, KlEstimator::kK3}) {
      LossOutputs<T> mine, oracle;
      LossParams<T> params = loss_params(batch, &mine), wanted = loss_params(batch, &oracle);
      params.kl_estimator = wanted.kl_estimator = estimator;
      if (estimator == KlEstimator::kK3)
        params.token_normalizer = wanted.token_normalizer = batch.x[8].data();
      CHECK(run(params, device).ok());
      reference_loss(wanted);
      check_near(mine.logp, oracle.logp, bound);
      check_near(mine.values, oracle.values, bound);
      check_near(mine.entropy, oracle.entropy, bound);
      for (int i = 0; i < kRatioMax; ++i)
        CHECK_NEAR(mine.sums[i], oracle.sums[i],
                   (sizeof(T) == 4 ? bound : 20 * bound) * std::max<double>(1, tokens));
      for (int i = kRatioMax; i < kNumSums; ++i) {
        CHECK(mine.sums[i] == oracle.sums[i] || std::abs(mine.sums[i] / oracle.sums[i] - 1) < 10 * bound);
      }
      CHECK_NEAR(total_loss(params, mine.sums.data()), total_loss(wanted, oracle.sums.data()), 1e3 * bound);
    }
  }
}

}  // namespace

TEST(loss_equals_its_oracle_in_float64) {
  for_each_backend([](Device device) { loss_equals_oracle<double>(device, 1e-13); });
}
TEST(loss_equals_its_oracle_in_float32) {
  for_each_backend([](Device device) { loss_equals_oracle<float>(device, 1e-6); });
}

TEST(loss_may_leave_out_every_optional_part) {
  for_each_backend([](Device device) {
    const Batch<double> batch(100);
    LossOutputs<double> mine, oracle;
    LossParams<double> params = loss_params(batch, &mine), wanted = loss_params(batch, &oracle);
    for (auto* p : {&params, &wanted}) {
      p->values = p->values_old = p->returns = p->logp_ref = p->entropy = p->weights = nullptr;
      p->grad_values = p->grad_entropy = nullptr;
    }
    CHECK(run(params, device).ok());
    reference_loss(wanted);
    check_near(mine.logp, oracle.logp, 1e-13);
    CHECK(mine.sums[kValueLoss] == 0.0 && mine.sums[kKlLoss] == 0.0 && mine.sums[kEntropyLoss] == 0.0);
  });
}

namespace {

// Each token stands exactly on an edge, or just beyond one.
template <typename T>
void edges_equal_oracle(Device device, double bound) {
  const std::vector<T> zeros(7), logp{0, 0, 20, -20, 20.5, -20.5, 0}, advantages{1, -1, -1, 1, -1, 1, 0};
  const std::vector<T> values{1, 1, 0.5, 1.5, -1, 0, 0}, values_old{0.5, -1.5, 0, 0.5, 1.5, 0, 0};
  const std::vector<uint8_t> trainable(7, 1);
  for (KlEstimator estimator : {KlEstimator::kK2, KlEstimator::kK3}) {
    LossOutputs<T> mine, oracle;
    for (LossOutputs<T>* out : {&mine, &oracle}) {
      LossParams<T> p;
      out->logp.assign(7, T(9)), out->values.assign(7, T(9));
      p.logp = logp.data(), p.logp_old = p.logp_ref = p.returns = zeros.data();
      p.advantages = advantages.data(), p.values = values.data(), p.values_old = values_old.data();
      p.trainable = trainable.data(), p.tokens = 7;
      p.clip_low = p.clip_high = 0.0, p.clip_value = 0.5;
      p.kl_estimator = estimator, p.kl_coef = 0.25;
      p.grad_logp = out->logp.data(), p.grad_values = out->values.data(), p.sums = out->sums.data();
      if (out == &mine) CHECK(run(p, device).ok());
      if (out == &oracle) reference_loss(p);
    }
    check_near(mine.logp, oracle.logp, bound);
    check_near(mine.values, oracle.values, bound);
    for (Sum sum : {kClippedLow, kClippedHigh, kLogRatioClamped, kValueClipped})
      CHECK(mine.sums[sum] == oracle.sums[sum]);
    CHECK(mine.logp[0] != 0 && mine.logp[2] != 0 && mine.values[0] != 0 && mine.values[1] != 0);
  }
}

}  // namespace

TEST(gradients_flow_on_edges_and_end_beyond_them) {
  for_each_backend([](Device device) {
    edges_equal_oracle<double>(device, 1e-13);
    edges_equal_oracle<float>(device, 1e-6);
  });
}

TEST(a_token_has_the_same_gradient_wherever_it_stands) {
  for_each_backend([](Device device) {
    const Batch<float> batch(5000);
    LossOutputs<float> whole, part;
    LossParams<float> params = loss_params(batch, &whole);
    params.normalizer = 17.0;
    CHECK(run(params, device).ok());
    LossParams<float> shifted = loss_params(batch, &part);
    shifted.normalizer = 17.0;
    for (const float** input :
         {&shifted.logp, &shifted.logp_old, &shifted.advantages, &shifted.values, &shifted.values_old,
          &shifted.returns, &shifted.logp_ref, &shifted.entropy, &shifted.weights}) {
      *input += 13;
    }
    shifted.trainable += 13;
    shifted.tokens = 4100;
    CHECK(run(shifted, device).ok());
    for (int64_t t = 0; t < shifted.tokens; ++t) {
      CHECK(part.logp[t] == whole.logp[t + 13] && part.values[t] == whole.values[t + 13] &&
            part.entropy[t] == whole.entropy[t + 13]);
    }
  });
}

TEST(results_do_not_depend_on_threads) {
  const int before = num_threads();
  const Batch<float> batch(3 * kParallelTokens + 5);
  LossOutputs<float> one, many;
  set_num_threads(1);
  CHECK(run(loss_params(batch, &one)).ok());
  set_num_threads(7);
  CHECK(run(loss_params(batch, &many)).ok());
  set_num_threads(before);
  CHECK(one.sums == many.sums);
  CHECK(one.logp == many.logp && one.values == many.values && one.entropy == many.entropy);
}

TEST(loss_names_the_entry_that_is_not_finite) {
  for_each_backend([](Device device) {
    Batch<double> batch(9000);
    batch.trainable[8123] = 1;
    for (auto& x : batch.x) x[8123] = 0.5;
    LossOutputs<double> out;
    CHECK(run(loss_params(batch, &out), device).ok());
    batch.x[6][8123] = std::numeric_limits<double>::infinity();
    const Status status = run(loss_params(batch, &out), device);
    CHECK(status.code() == StatusCode::kInvalidArgument);
    CHECK(status.message() ==
          "[ppo_loss] logp_ref: expected finite numbers at trainable tokens, got inf at token 8123");
  });
}

TEST(loss_refuses_settings_out_of_range) {
  const Batch<double> batch(4);
  LossOutputs<double> out;
  const auto refuses = [&](auto change) {
    LossParams<double> params = loss_params(batch, &out);
    change(params);
    return run(params).code() == StatusCode::kInvalidArgument;
  };
  CHECK(!refuses([](auto&) {}));
  CHECK(refuses([](auto& p) { p.clip_low = 1.0; }));
  CHECK(refuses([](auto& p) { p.clip_high = -1.0; }));
  CHECK(refuses([](auto& p) { p.clip_value = 0.0; }));
  CHECK(refuses([](auto& p) { p.dual_clip = kNan; }));
  CHECK(refuses([](auto& p) { p.normalizer = -1.0; }));
  CHECK(refuses([](auto& p) { p.returns = nullptr; }));
  CHECK(refuses([](auto& p) { p.values_old = nullptr; }));
  CHECK(refuses([](auto& p) { p.kl_coef = kNan; }));
}

TEST(sizes_are_checked_before_they_are_multiplied) {
  // Nothing of these sizes is ever allocated or read: only the checks run.
  const Batch<double> batch(4);
  LossOutputs<double> out;
  LossParams<double> loss = loss_params(batch, &out);
  for (int64_t tokens : {int64_t{-1}, std::numeric_limits<int64_t>::min(), kMostTokens + 1,
                         std::numeric_limits<int64_t>::max()}) {
    loss.tokens = tokens;
    CHECK(check_loss(loss).message().rfind("[ppo_loss] tokens: expected a number in [0, 2^56], got", 0) == 0);
    const Status status = run_loss(loss, nullptr);
    CHECK(status.code() == StatusCode::kInvalidArgument);
  }
  for (int64_t tokens : {int64_t{1} << 31, (int64_t{1} << 32) + 5, kMostTokens}) {
    loss.tokens = tokens;
    CHECK(check_loss(loss).ok());
    CHECK(loss_workspace_size(tokens) >=
          static_cast<size_t>(tokens) / kBlockTokens * kNumSums * sizeof(double));
    CHECK(loss_workspace_size(tokens) < static_cast<size_t>(tokens));
  }
  // 2^31 tokens do not fit the int32 of cu_seqlens: they cannot be told from fewer, and are refused.
  const std::vector<int32_t> bounds{0, std::numeric_limits<int32_t>::max()};
  GaeParams<float> gae;
  gae.cu_seqlens = bounds.data();
  gae.sequences = 1;
  gae.tokens = std::numeric_limits<int32_t>::max();
  CHECK(check_gae(gae).ok());
  for (int64_t tokens :
       {gae.tokens + 1, (int64_t{1} << 32) + gae.tokens, std::numeric_limits<int64_t>::max()}) {
    gae.tokens = tokens;
    CHECK(check_gae(gae).message() == "[gae] cu_seqlens: expected " + std::to_string(tokens) +
                                          " (the number of tokens) at the end, got 2147483647");
    CHECK(run_gae(gae).code() == StatusCode::kInvalidArgument);
  }
  gae.tokens = gae.sequences = -1;
  CHECK(!check_gae(gae).ok());
}

namespace {

template <typename T>
void gae_equals_oracle(Device device, double bound) {
  std::vector<int32_t> bounds{0};
  for (int length : {1, 0, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 40, 333})
    bounds.push_back(bounds.back() + length);
  const Batch<T> batch(bounds.back());
  for (double gamma : {1.0, 0.99, 0.0}) {
    for (double lam : {1.0, 0.95, 0.0}) {
      const size_t tokens = batch.trainable.size();
      std::vector<T> advantages(tokens, T(7)), returns(tokens, T(7)), a(tokens), r(tokens);
      GaeParams<T> params;
      params.rewards = batch.x[0].data(), params.values = batch.x[1].data();
      params.trainable = batch.trainable.data();
      params.cu_seqlens = bounds.data();
      params.tokens = bounds.back(), params.sequences = static_cast<int64_t>(bounds.size()) - 1;
      params.gamma = gamma, params.lam = lam;
      params.advantages = advantages.data(), params.returns = returns.data();
      CHECK(run(params, device).ok());
      params.advantages = a.data(), params.returns = r.data();
      reference_gae(params);
      check_near(advantages, a, bound);
      check_near(returns, r, bound);
    }
  }
}

}  // namespace

TEST(gae_equals_its_oracle_in_float64) {
  for_each_backend([](Device device) { gae_equals_oracle<double>(device, 1e-13); });
}
TEST(gae_equals_its_oracle_in_float32) {
  for_each_backend([](Device device) { gae_equals_oracle<float>(device, 1e-6); });
}

TEST(gae_refuses_a_reward_that_would_be_lost) {
  for_each_backend([](Device device) {
    const std::vector<float> rewards{0, 1, 0, 5}, values(4);
    const std::vector<uint8_t> trainable{1, 1, 0, 0};
    const std::vector<int32_t> bounds{0, 4};
    std::vector<float> advantages(4), returns(4);
    GaeParams<float> params{rewards.data(), values.data(), trainable.data(), bounds.data(), 4, 1};
    params.advantages = advantages.data(), params.returns = returns.data();
    CHECK(run(params, device).ok());
    CHECK((advantages == std::vector<float>{1, 1, 0, 0}));
    params.refuse_masked_rewards = true;
    CHECK(run(params, device)
              .message()
              .find("[gae] rewards: expected 0 at tokens that are not trainable, got 5") == 0);
  });
}

TEST(whitening_equals_its_oracle) {
  for_each_backend([](Device device) {
    for (int64_t tokens : {0, 1, 2, 9, 4096, 9001}) {
      const Batch<double> batch(tokens);
      const MomentsParams<double> params{batch.x[0].data(), batch.trainable.data(), tokens};
      std::vector<double> out(tokens), oracle(tokens);
      Moments moments;
      CHECK(run(params, &moments, device).ok());
      const Moments wanted = reference_moments(params);
      CHECK(moments.count == wanted.count);
      CHECK_NEAR(moments.mean, wanted.mean, 1e-13);
      CHECK_NEAR(moments.m2, wanted.m2, 1e-11 * std::max<double>(1, tokens));
      WhitenParams<double> whiten{batch.x[0].data(), batch.trainable.data(), tokens, moments};
      for (double min_std : {1e-3, 10.0}) {  // the second is above the deviation: nothing is scaled
        whiten.min_std = min_std;
        whiten.out = out.data();
        CHECK(run(whiten, device).ok());
        whiten.out = oracle.data();
        reference_whiten(whiten);
        check_near(out, oracle, 1e-13);
      }
    }
  });
}

TEST(group_advantage_equals_its_oracle) {
  for_each_backend([](Device device) {
    const Batch<double> batch(200);
    std::vector<int64_t> groups;
    for (int64_t i = 0; i < 200; ++i) groups.push_back(i * 7919 % 37 - 5);
    for (GroupBaseline baseline : {GroupBaseline::kMean, GroupBaseline::kLeaveOneOut}) {
      for (bool normalize_std : {false, true}) {
        std::vector<double> mine(200), oracle(200);
        GroupParams<double> params{batch.x[0].data(), groups.data(), batch.trainable.data(), 200,
                                   baseline,          normalize_std};
        params.advantages = mine.data();
        CHECK(run(params, device).ok());
        params.advantages = oracle.data();
        reference_group_advantage(params);
        check_near(mine, oracle, 1e-12);
      }
    }
  });
}

TEST(the_back_end_is_named) {
  std::string name;
  CHECK(which(Device::kCpu, &name).ok() && name.rfind("cpu/", 0) == 0);
#if defined(EARNEST_WITH_CUDA)
  CHECK(which(Device::kCuda, &name).ok() && name == "cuda/simt");
#else
  const Status status = which(Device::kCuda, &name);
  CHECK(status.code() == StatusCode::kUnsupported);
  CHECK(status.message() == "[ppo] device: expected cpu (earnest was built without CUDA), got cuda");
#endif
}
