// SPDX-License-Identifier: Apache-2.0
#include "kernels/rowwise/angles.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common/thread_pool.h"

namespace earnest::rowwise {
namespace {

constexpr int64_t kLastPosition = int64_t{1} << 24;
constexpr int64_t kMostDim = int64_t{1} << 20;
constexpr int64_t kTaskAngles = 512;

Status check(const RotaryAngles& job) {
  const char* op = "rotary_angles";
  if (job.dim < 2 || job.dim > kMostDim || job.dim % 2 != 0)
    return invalid_argument(op, "dim", "an even number in [2, 2^20]", std::to_string(job.dim));
  if (job.rows < 0 || job.rows > std::numeric_limits<int64_t>::max() / kMostDim)
    return invalid_argument(op, "rows", "a number of rows that fits in memory", std::to_string(job.rows));
  if (!(job.theta > 0) || !std::isfinite(job.theta))
    return invalid_argument(op, "theta", "a finite number above 0", std::to_string(job.theta));
  for (int64_t i = 0; i < job.rows; ++i) {
    if (job.positions[i] >= 0 && job.positions[i] <= kLastPosition) continue;
    return invalid_argument(op, "positions", "0 to 2^24", std::to_string(job.positions[i]));
  }
  return {};
}

}  // namespace

Status run(const RotaryAngles& job) {
  if (Status status = check(job); !status.ok()) return status;
  const int64_t half = job.dim / 2;
  std::vector<float> rates(static_cast<size_t>(half));
  for (int64_t j = 0; j < half; ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(job.dim);
    const double theta = static_cast<float>(job.theta);
    rates[static_cast<size_t>(j)] = 1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
  }
  const int64_t step = std::max<int64_t>(1, kTaskAngles / half);
  parallel_for((job.rows + step - 1) / step, [&](int64_t task) {
    for (int64_t i = task * step; i < std::min(job.rows, (task + 1) * step); ++i) {
      const float position = static_cast<float>(job.positions[i]);
      for (int64_t j = 0; j < half; ++j) {
        const float angle = position * rates[static_cast<size_t>(j)];
        job.cosine[i * half + j] = static_cast<float>(std::cos(static_cast<double>(angle)));
        job.sine[i * half + j] = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
  });
  return {};
}

}  // namespace earnest::rowwise
