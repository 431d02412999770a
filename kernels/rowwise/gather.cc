// SPDX-License-Identifier: Apache-2.0
#include "kernels/rowwise/gather.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/common/thread_pool.h"

namespace earnest::rowwise {
namespace {

constexpr char kOp[] = "gather";
constexpr int64_t kTaskBytes = int64_t{64}
                               << 10;  // below this, waking another thread costs more than it saves

Status check(const Gather& job) {
  if (job.row_bytes < 1)
    return invalid_argument(kOp, "row_bytes", "at least 1", std::to_string(job.row_bytes));
  for (const auto& [name, rows] : {std::pair{"rows", job.rows}, std::pair{"source", job.source_rows},
                                   std::pair{"other", job.other_rows}}) {
    if (rows >= 0 && rows <= std::numeric_limits<int64_t>::max() / 2 / job.row_bytes) continue;
    return invalid_argument(kOp, name, "rows that fit an address space", std::to_string(rows));
  }
  return {};
}

Status wrong_index(const Gather& job, const std::string& got) {
  return invalid_argument(kOp, "index",
                          "rows in [" + std::to_string(job.other == nullptr ? -1 : -job.other_rows) + ", " +
                              std::to_string(job.source_rows) + ")",
                          got);
}

}  // namespace

Status run(const Gather& job) {
  if (Status status = check(job); !status.ok()) return status;
  if (job.device == Device::kCuda) return gather_cuda(job);
  const bool zeros = job.other == nullptr;
  for (int64_t i = 0; i < job.rows; ++i) {
    const int64_t at = job.index[i];
    if (at < job.source_rows && (at >= 0 || zeros || at >= -job.other_rows)) continue;
    return wrong_index(job, std::to_string(at));
  }
  const auto bytes = static_cast<size_t>(job.row_bytes);
  const int64_t step = std::max<int64_t>(1, kTaskBytes / job.row_bytes);
  parallel_for((job.rows + step - 1) / step, [&](int64_t task) {
    for (int64_t i = task * step; i < std::min(job.rows, (task + 1) * step); ++i) {
      char* to = static_cast<char*>(job.out) + i * job.row_bytes;
      const int64_t at = job.index[i];
      if (at >= 0) {
        std::memcpy(to, static_cast<const char*>(job.source) + at * job.row_bytes, bytes);
      } else if (zeros) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, static_cast<const char*>(job.other) + (-1 - at) * job.row_bytes, bytes);
      }
    }
  });
  return {};
}

Status fault(const Gather& job, FaultWord word) {
  if (word == kNoFault) return {};
  return wrong_index(job, "another at row " + std::to_string(fault_of(word).index));
}

}  // namespace earnest::rowwise
