// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling/draws.h"

#include <limits>
#include <string>

#include "kernels/sampling/draws_plan.h"
#include "kernels/sampling/sampling.h"

namespace earnest::sampling {
namespace {

constexpr char kOp[] = "generate";
constexpr int64_t kMostOfARow = std::numeric_limits<int32_t>::max();

Status in_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return {};
  return invalid_argument(kOp, name, std::to_string(least) + " to " + std::to_string(most),
                          std::to_string(value));
}

Status there(const char* name, const void* array, bool needed) {
  return array != nullptr || !needed ? Status() : invalid_argument(kOp, name, "an array", "none");
}

}  // namespace

size_t workspace_size(const Draws& job) { return DrawsWorkspace::bytes(job); }

Status run(const Draws& job, void* workspace) {
  Status status = in_range("rows", job.rows, 0, kMostDraws);
  if (status.ok()) status = in_range("count", job.count, 1, kMostOfARow);
  if (status.ok()) status = in_range("ranges", job.ranges, 0, kMostOfARow);
  if (!status.ok() || job.rows == 0) return status;
  status = there("logits", job.logits, true);
  if (status.ok()) status = there("temperatures", job.temperatures, true);
  if (status.ok()) status = there("uniforms", job.uniforms, true);
  if (status.ok()) status = there("suppressed", job.suppressed, job.ranges > 0);
  if (status.ok()) status = there("tokens", job.tokens, true);
  if (status.ok()) status = there("workspace", workspace, true);
  if (!status.ok()) return status;
  return draw_on_device(job, workspace);
}

Status status_of(int32_t token) {
  if (token >= 0) return {};
  return token == kNoneToDraw ? none_to_draw() : not_finite();
}

}  // namespace earnest::sampling
