// SPDX-License-Identifier: Apache-2.0
// The loops, written once, plainly enough for the compiler to put them into vectors; each tier compiles them
// with its own instructions, without fusing products and sums (CMakeLists.txt), so that all give the same
// bits.
#include <cstring>

#include "kernels/sampling/sampling_tier.h"

namespace earnest::sampling::EARNEST_TIER {
namespace {

constexpr int64_t kLanes = 8;  // partial sums and maxima; kBlock is a multiple
constexpr double kLowest = -700;

// exp(x) of x <= 0: x = k log 2 + r with |r| <= log(2) / 2, the series of exp(r) up to r^13 (what is left out
// is below 5e-18), and k added to the exponent. log 2 in two parts, of which the first has 21 zeros at its
// end, so that k times it is exact (Cody and Waite, "Software manual for the elementary functions", 1980).
inline double exponential(double x) {
  constexpr double kShift = 0x1.8p52;  // adding it leaves the nearest whole number in the last bits
  constexpr double kLog2E = 0x1.71547652b82fep0;
  constexpr double kHigh = 0x1.62e42feep-1, kLow = 0x1.a39ef35793c76p-33;
  const double kept = x < kLowest ? kLowest : x;
  const double shifted = kept * kLog2E + kShift;
  const double k = shifted - kShift;
  const double r = (kept - k * kHigh) - k * kLow;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r;
  p = p + 1.0;
  uint64_t bits, exponent;
  std::memcpy(&exponent, &shifted, 8);
  std::memcpy(&bits, &p, 8);
  bits += exponent << 52;
  double result;
  std::memcpy(&result, &bits, 8);
  return x < kLowest ? 0.0 : result;
}

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
