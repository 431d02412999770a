// SPDX-License-Identifier: Apache-2.0
// The loops, written once, plainly enough for the compiler to put them into vectors; each tier compiles them
// with its own instructions, without fusing products and sums (CMakeLists.txt), so that all give the same
// bits.
#include "kernels/sampling/exponential.h"
#include "kernels/sampling/sampling_tier.h"

namespace earnest::sampling::EARNEST_TIER {
namespace {

constexpr int64_t kLanes = 8;  // partial sums and maxima; kBlock is a multiple

// A NaN fails every comparison, so that the largest would pass over it: it is looked for beside. More lanes
// than a vector has: a comparison waits for the one before it in its lane.
double largest(const double* logits, int64_t count) {
  constexpr int64_t kChains = 4 * kLanes;
  double most[kChains], odd[kChains] = {};
  for (double& one : most) one = logits[0];
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int64_t j = 0; j < kChains; ++j) {
      const double x = logits[i + j];
      most[j] = x > most[j] ? x : most[j];
      odd[j] = x == x ? odd[j] : x;
    }
  }
  for (; i < count; ++i) {
    most[0] = logits[i] > most[0] ? logits[i] : most[0];
    odd[0] = logits[i] == logits[i] ? odd[0] : logits[i];
  }
  for (int64_t j = 1; j < kChains; ++j) {
    most[0] = most[j] > most[0] ? most[j] : most[0];
    odd[0] = odd[j] == odd[j] ? odd[0] : odd[j];
  }
  return odd[0] == odd[0] ? most[0] : odd[0];
}

// scaled: how far a logit is below the largest, over the temperature. A division takes as long as a third of
// an exponential, so that the temperature 1, which changes nothing, is left out.
template <typename Scaled>
void weigh_by(const Weigh& job, const Scaled& scaled) {
  for (int64_t first = 0; first < job.count; first += kBlock) {
    double* values = job.values + first;
    const int64_t count = job.count - first < kBlock ? job.count - first : kBlock;
    double sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const double weight = exponential(scaled(values[i + j]));
        values[i + j] = weight;
        sums[j] += weight;
      }
    }
    for (int64_t j = 0; i < count; ++i, ++j) {
      values[i] = exponential(scaled(values[i]));
      sums[j] += values[i];
    }
    job.sums[first / kBlock] =
        ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }
}

void weigh(const Weigh& job, double most) {
  if (job.temperature == 1) return weigh_by(job, [=](double x) { return x - most; });
  weigh_by(job, [=, by = job.temperature](double x) { return (x - most) / by; });
}

}  // namespace

TierKernels kernels() { return {largest, weigh}; }

}  // namespace earnest::sampling::EARNEST_TIER
