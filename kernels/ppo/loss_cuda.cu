// SPDX-License-Identifier: Apache-2.0
// The PPO losses on a GPU: a thread takes every 256th token of its block's, its sums in registers; a block's
// sums go to scratch, and the last block to be done adds those of all, in their order. Memory is passed over
// once.
#include <cmath>

#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/ppo/exponential_cuda.h"
#include "kernels/ppo/loss_blocks.h"
#include "kernels/ppo/ppo_cuda.h"

namespace earnest::ppo {
namespace {

using namespace loss_blocks;
using simt::kFullWarp;

constexpr int kWarps = kThreads / 32;
static_assert(kNumSums <= kColumns);

// What a token has in the arrays. Those that are not there, and masked tokens, read 0.
template <typename T>
struct Token {
  T logp, logp_old, advantage, value, value_old, target, logp_ref, entropy, weight, normalizer;
  bool chosen;
};

template <typename T>
__device__ T read(const T* x, int64_t t) {
  return x == nullptr ? T(0) : x[t];
}

template <typename T>
__device__ Token<T> load_token(const LossParams<T>& p, int64_t t, int64_t end) {
  if (t >= end) return {};
  const T* values_old = p.clip_value != kNoClip ? p.values_old : nullptr;
  Token<T> x{p.logp[t],
             p.logp_old[t],
             p.advantages[t],
             read(p.values, t),
             read(p.values ? values_old : nullptr, t),
             read(p.values ? p.returns : nullptr, t),
             read(p.logp_ref, t),
             read(p.entropy, t),
             read(p.weights, t),
             read(p.token_normalizer, t),
             p.trainable[t] != 0};
  return x;
}

template <typename T>
__device__ void check_token(const LossParams<T>& p, const Token<T>& x, int64_t t) {
  namespace faults = loss_faults;
  const bool good_normalizer =
      p.token_normalizer == nullptr || (x.normalizer > T(0) && std::isfinite(x.normalizer));
  if (std::isfinite(x.logp) && std::isfinite(x.logp_old) && std::isfinite(x.advantage) &&
      std::isfinite(x.value) && std::isfinite(x.value_old) && std::isfinite(x.target) &&
      std::isfinite(x.logp_ref) && std::isfinite(x.entropy) && std::isfinite(x.weight) && good_normalizer)
    return;
  const auto record = [&](int argument) { record_fault(p.fault, {FaultOp::kPpoLoss, t, argument}); };
  if (!std::isfinite(x.logp)) record(faults::kLogp);
  if (!std::isfinite(x.logp_old)) record(faults::kLogpOld);
  if (!std::isfinite(x.advantage)) record(faults::kAdvantages);
  if (!std::isfinite(x.value)) record(faults::kValues);
  if (!std::isfinite(x.value_old)) record(faults::kValuesOld);
  if (!std::isfinite(x.target)) record(faults::kReturns);
  if (!std::isfinite(x.logp_ref)) record(faults::kLogpRef);
  if (!std::isfinite(x.entropy)) record(faults::kEntropy);
  if (!std::isfinite(x.weight)) record(faults::kWeights);
  if (!good_normalizer) record(faults::kNormalizer);
}

// Sums of a thread. All indices are constants once loops are unrolled: registers, not an array.
struct Sums {
  double of[kRatioMax] = {};
  int tokens = 0, clamped = 0, clipped_low = 0, clipped_high = 0, dual_clipped = 0, value_clipped = 0;
  double ratio_max = -kNoClip, distance_max = 0.0, ratio_min = kNoClip;
};

template <typename T>
__device__ T clamp(T x, T low, T high) {
  return x < low ? low : x > high ? high : x;
}
template <typename T>
__device__ T magnitude(T x) {
  return x < T(0) ? -x : x;
}

// share: 1 / N_t where tokens have their own normalisers, else 1. Each returns the slope of its loss by
// share.
template <typename T>
__device__ T policy_term(const LossParams<T>& p, const Token<T>& x, T share, Sums* s) {
  const T limit = T(kLogRatioLimit);
  const T log_ratio = x.logp - x.logp_old, distance = magnitude(log_ratio), cost = -x.advantage;
  const Exp<T> rho = exponential(clamp(log_ratio, -limit, limit));
  T plain = rho.value * cost;
  const T cut = clamp(rho.value, T(1.0 - p.clip_low), T(1.0 + p.clip_high)) * cost;
  const bool clipped = cut > plain, outside = distance > limit;
  T worst = clipped ? cut : plain;
  bool flows = !clipped && !outside;
  if (p.dual_clip != kNoClip) {
    const T bound = T(p.dual_clip) * cost;
    const bool dual = cost > T(0) && worst > bound;
    worst = dual ? bound : worst;
    flows = flows && !dual;
    s->dual_clipped += dual;
  }
  if (p.weights) {
    worst *= x.weight;
    plain *= x.weight;
    s->of[kWeight] += x.weight;
    s->of[kWeightSquared] += static_cast<double>(x.weight) * x.weight;
  }
  s->of[kPolicyLoss] += share * worst;
  s->of[kRatio] += rho.value;
  s->of[kApproxKl] += rho.excess;
  s->of[kAbsLogRatio] += distance;
  s->tokens += 1;
  s->clamped += outside;
  s->clipped_low += clipped && !(cost < T(0));
  s->clipped_high += clipped && cost < T(0);
  s->ratio_max = fmax(s->ratio_max, static_cast<double>(rho.value));
  s->ratio_min = fmin(s->ratio_min, static_cast<double>(rho.value));
  s->distance_max = fmax(s->distance_max, static_cast<double>(distance));
  return flows ? plain : T(0);
}

template <typename T>
__device__ T value_term(const LossParams<T>& p, const Token<T>& x, T share, Sums* s) {
  const T error = x.value - x.target;
  T worst = error;
  bool clipped = false;
  if (p.clip_value != kNoClip) {
    const T reach = T(p.clip_value);
    const T cut_error = clamp(x.value, x.value_old - reach, x.value_old + reach) - x.target;
    clipped = magnitude(cut_error) > magnitude(error);
    worst = clipped ? cut_error : error;
  }
  const double target = x.target, residual = error;
  s->value_clipped += clipped;
  s->of[kValueLoss] += 0.5 * static_cast<double>(share) * worst * worst;
  s->of[kReturn] += target;
  s->of[kReturnSquared] += target * target;
  s->of[kResidual] += residual;
  s->of[kResidualSquared] += residual * residual;
  return clipped ? T(0) : error;
}

template <typename T>
__device__ T kl_term(const LossParams<T>& p, const Token<T>& x, T share, Sums* s) {
  const T limit = T(kLogRatioLimit);
  const T k1 = x.logp - x.logp_ref;
  const Exp<T> inverse = exponential(clamp(-k1, -limit, limit));
  T k = k1, slope = T(1);
  if (p.kl_estimator == KlEstimator::kK2) {
    k = T(0.5) * k1 * k1;
    slope = k1;
  } else if (p.kl_estimator == KlEstimator::kK3) {
    k = inverse.excess;
    slope = magnitude(k1) > limit ? T(0) : k1 - inverse.excess;  // 1 - exp(-k1), small where k1 is
  }
  s->of[kKlLoss] += share * k;
  s->of[kRefKlK1] += k1;
  s->of[kRefKlK3] += inverse.excess;
  return slope;
}

template <typename T>
__device__ void take_token(const LossParams<T>& p, const Token<T>& x, int64_t t, double inverse_n,
                           Sums* sums) {
  T slope = T(0), value_slope = T(0), entropy_slope = T(0);
  if (x.chosen) {
    check_token(p, x, t);
    const T share = p.token_normalizer ? T(1) / x.normalizer : T(1);
    const double scale = p.token_normalizer ? static_cast<double>(share) : inverse_n;
    slope = T(p.policy_coef * scale) * policy_term(p, x, share, sums);
    if (p.logp_ref) slope += T(p.kl_coef * scale) * kl_term(p, x, share, sums);
    if (p.values) value_slope = T(p.value_coef * scale) * value_term(p, x, share, sums);
    if (p.entropy) {
      sums->of[kEntropyLoss] -= share * x.entropy;
      sums->of[kEntropy] += x.entropy;
      entropy_slope = T(-p.entropy_coef * scale);
    }
  }
  if (p.grad_logp) p.grad_logp[t] = slope;
  if (p.grad_values) p.grad_values[t] = value_slope;
  if (p.grad_entropy) p.grad_entropy[t] = entropy_slope;
}

__device__ double joined(int column, double a, double b) {
  if (column == kRatioMax || column == kAbsLogRatioMax) return fmax(a, b);
  return column == kRatioMin ? fmin(a, b) : a + b;
}
__device__ double nothing_in(int column) {
  return column == kRatioMax ? -kNoClip : column == kRatioMin ? kNoClip : 0.0;
}

// Of 32 columns a lane, column `lane` of the whole warp: half of them change hands at each step, so that 31
// numbers are exchanged instead of 160.
template <int kHalf = 16>
__device__ double column_of_warp(double (&columns)[kColumns]) {
  const bool upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const double kept = upper ? columns[i + kHalf] : columns[i],
                 sent = upper ? columns[i] : columns[i + kHalf];
    columns[i] = kept + __shfl_xor_sync(kFullWarp, sent, kHalf);
  }
  if constexpr (kHalf > 1) return column_of_warp<kHalf / 2>(columns);
  return columns[0];
}

// Column `lane` of the calling thread's warp, losses divided by N.
template <typename T>
__device__ double warp_sums(const LossParams<T>& p, const Sums& s, double inverse_n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  double columns[kColumns] = {};
#pragma unroll
  for (int i = 0; i < kRatioMax; ++i) columns[i] = s.of[i];
  const double scale = p.token_normalizer ? 1.0 : inverse_n;
#pragma unroll
  for (int i = kPolicyLoss; i <= kEntropyLoss; ++i) columns[i] *= scale;
  columns[kTokens] = s.tokens;
  columns[kLogRatioClamped] = s.clamped;
  columns[kClippedLow] = s.clipped_low;
  columns[kClippedHigh] = s.clipped_high;
  columns[kDualClipped] = s.dual_clipped;
  columns[kValueClipped] = s.value_clipped;
  if (!p.weights) columns[kWeight] = columns[kWeightSquared] = s.tokens;
  double column = column_of_warp(columns);
  double ratio_max = s.ratio_max, distance_max = s.distance_max, ratio_min = s.ratio_min;
#pragma unroll
  for (int step = 16; step >= 1; step /= 2) {
    ratio_max = fmax(ratio_max, __shfl_xor_sync(kFullWarp, ratio_max, step));
    distance_max = fmax(distance_max, __shfl_xor_sync(kFullWarp, distance_max, step));
    ratio_min = fmin(ratio_min, __shfl_xor_sync(kFullWarp, ratio_min, step));
  }
  if (lane == kRatioMax) column = ratio_max;
  if (lane == kAbsLogRatioMax) column = distance_max;
  if (lane == kRatioMin) column = ratio_min;
  return column;
}

// Column `lane` of all warps of the block, in warp 0; others get nonsense.
__device__ double block_sums(double of_warp, simt::Shared<double> scratch) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  scratch[warp * 32 + lane] = of_warp;
  __syncthreads();
  double total = nothing_in(lane);
  for (int i = 0; warp == 0 && i < kWarps; ++i) total = joined(lane, total, scratch[i * 32 + lane]);
  __syncthreads();
  return total;
}

// The rows of all blocks, each warp every eighth of them in order; then the warps in order.
__device__ double grid_sums(const double* rows, int blocks, simt::Shared<double> scratch) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  double total = nothing_in(lane);
#pragma unroll 8
  for (int i = warp; i < blocks; i += kWarps) total = joined(lane, total, rows[i * kColumns + lane]);
  return block_sums(total, scratch);
}

template <typename T>
__device__ void write_results(const LossParams<T>& p, double column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < kNumSums) p.sums[lane] = column;
  const double policy = __shfl_sync(kFullWarp, column, kPolicyLoss),
               value = __shfl_sync(kFullWarp, column, kValueLoss);
  const double kl = __shfl_sync(kFullWarp, column, kKlLoss),
               entropy = __shfl_sync(kFullWarp, column, kEntropyLoss);
  if (lane == 0 && p.total)
    *p.total = static_cast<T>(p.policy_coef * policy + p.value_coef * value + p.kl_coef * kl +
                              p.entropy_coef * entropy);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_losses(LossParams<T> p, Header* header, double* rows, int64_t of_block) {
  EARNEST_SHARED(double, scratch, kWarps * 32);
  EARNEST_SHARED(int, is_last, 1);
  const double count = p.normalizer > 0.0 ? p.normalizer : static_cast<double>(header->count);
  const double inverse_n = 1.0 / fmax(count, p.normalizer > 0.0 ? 0.0 : 1.0);
  const int64_t begin = blockIdx.x * of_block,
                end = begin + of_block < p.tokens ? begin + of_block : p.tokens;
  Sums sums;
  int64_t t = begin + threadIdx.x;
  Token<T> next = load_token(p, t, end);
  for (; t < end; t += kThreads) {
    const Token<T> token = next;
    next = load_token(p, t + kThreads, end);  // under way while this one is worked on
    take_token(p, token, t, inverse_n, &sums);
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double column = block_sums(warp_sums(p, sums, inverse_n), scratch);
  if (threadIdx.x < 32) rows[blockIdx.x * kColumns + lane] = column;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last[0] = atomicAdd(&header->ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();
  const double total = grid_sums(rows, static_cast<int>(gridDim.x), scratch);
  if (threadIdx.x < 32) write_results(p, total);
}

// Integers: in whatever order they are added.
__global__ void __launch_bounds__(kThreads)
    count_tokens(const uint8_t* trainable, int64_t tokens, int64_t of_block, Header* header) {
  const int64_t begin = blockIdx.x * of_block, end = begin + of_block < tokens ? begin + of_block : tokens;
  unsigned count = 0;
#pragma unroll 8
  for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) count += trainable[t] != 0;
  for (int step = 16; step >= 1; step /= 2) count += __shfl_xor_sync(kFullWarp, count, step);
  if (threadIdx.x % 32 == 0) atomicAdd(&header->count, static_cast<unsigned long long>(count));
}

}  // namespace

template <typename T>
Status loss_cuda(const LossParams<T>& p, void* workspace) {
  constexpr const char* kOp = "ppo_loss";
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  if (p.fault == nullptr) return invalid_argument(kOp, "fault", "a word on the device", "none");
  if (workspace == nullptr) return invalid_argument(kOp, "workspace", "memory on the device", "none");
  auto* header = static_cast<Header*>(workspace);
  auto* rows = reinterpret_cast<double*>(header + 1);
  const auto blocks = static_cast<unsigned>(num_blocks(p.tokens));
  const int64_t of_block = tokens_of_block(p.tokens);
  if (Status status = cuda::fill(kOp, header, 0, sizeof *header, p.stream); !status.ok()) return status;
  if (p.normalizer == 0.0 && !p.token_normalizer) {
    Status status = simt::launch({kOp, "count_tokens"}, count_tokens, blocks, kThreads, 0, p.stream,
                                 p.trainable, p.tokens, of_block, header);
    if (!status.ok()) return status;
  }
  return simt::launch({kOp, "sum_losses"}, sum_losses<T>, blocks, kThreads, 0, p.stream, p, header, rows,
                      of_block);
}

template Status loss_cuda<float>(const LossParams<float>&, void*);
template Status loss_cuda<double>(const LossParams<double>&, void*);

}  // namespace earnest::ppo
