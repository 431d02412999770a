// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/device_draws.h"

#include <algorithm>

#include "csrc/engine/guard.h"
#include "csrc/engine/parcel.h"

namespace earnest::engine {

Status DeviceDraws::send(std::span<const Drawing> rows, Arena* arena) {
  there_.clear(), temperatures_.clear(), uniforms_.clear(), suppressed_.clear();
  const bool few = static_cast<int64_t>(rows.size()) <= sampling::kMostDraws;
  for (const Drawing& row : rows) {
    const bool there = row.sampler != nullptr && row.sampler->is_plain() && few;
    there_.push_back(there);
    temperatures_.push_back(there ? row.sampler->temperature() : 0);  // the least work for nothing
    uniforms_.push_back(row.uniform);
    if (!there) continue;
    const auto index = static_cast<int32_t>(there_.size() - 1);
    for (const Sampler::Run& run : row.sampler->suppressed())
      suppressed_.push_back({index, run.first, run.count});
  }
  job_ = {};
  if (std::find(there_.begin(), there_.end(), true) == there_.end()) return {};
  job_.rows = static_cast<int64_t>(rows.size());
  job_.ranges = static_cast<int64_t>(suppressed_.size());
  Parcel parcel;
  parcel.add(temperatures_, &job_.temperatures);
  parcel.add(uniforms_, &job_.uniforms);
  if (job_.ranges > 0) parcel.add(suppressed_, &job_.suppressed);
  return parcel.send("generate", arena);
}

Status DeviceDraws::launch(BFloat16* logits, int64_t vocabulary, int32_t* tokens, Arena* arena) {
  if (!any()) return {};
  job_.count = vocabulary;
  job_.logits = logits;
  job_.tokens = tokens;
  return sampling::run(job_, arena->take<char>(static_cast<int64_t>(sampling::workspace_size(job_))));
}

void DeviceDraws::take(const int32_t* tokens, std::span<Drawing> rows) const {
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].drawn = has(static_cast<int64_t>(i));
    if (!rows[i].drawn) continue;
    rows[i].status = sampling::status_of(tokens[i]);
    rows[i].token = tokens[i];
  }
}

Status DeviceDraws::bring(const BFloat16* there, int64_t rows, int64_t vocabulary, BFloat16* rounded,
                          float* logits) const {
  for (int64_t row = 0; row < rows;) {
    int64_t end = row;
    while (end < rows && !has(end)) ++end;
    const int64_t first = row * vocabulary, count = (end - row) * vocabulary;
    if (count > 0)
      EARNEST_RETURN_IF_ERROR(copy("logits", Device::kCuda, rounded + first, there + first,
                                   static_cast<size_t>(count) * sizeof(BFloat16)));
    for (int64_t i = first; i < first + count; ++i) logits[i] = widen(rounded[i]);
    row = end + 1;  // which is drawn, or none
  }
  return {};
}

}  // namespace earnest::engine
