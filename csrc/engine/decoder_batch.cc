// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/decoder_batch.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "csrc/engine/device_memory.h"
#include "csrc/engine/guard.h"
#include "kernels/rowwise/angles.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "decoder";

}  // namespace

DecoderBatch::DecoderBatch(const std::vector<Segment>& given) {
  std::vector<size_t> order(given.size());  // segments[i] is the caller's order[i]
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return given[a].cache->start() < given[b].cache->start(); });
  for (const size_t i : order) segments.push_back(given[i]);
  first = segments.front().cache->start();
  cu_seqlens_q.push_back(0);
  cu_wanted.push_back(0);
  for (const Segment& segment : segments) {
    const KVCache& cache = *segment.cache;
    for (int64_t i = 0; i < segment.count; ++i) {
      positions.push_back(cache.length() + i);
      slots.push_back(cache.start() - first + positions.back());
      if (i >= segment.count - segment.wanted) kept.push_back(rows + i);
    }
    rows += segment.count;
    wanted += segment.wanted;
    cu_seqlens_q.push_back(static_cast<int32_t>(rows));
    cu_wanted.push_back(static_cast<int32_t>(wanted));
    // A span of keys runs up to the next cache; `used` ends it at its own length.
    cu_seqlens_k.push_back(static_cast<int32_t>(cache.start() - first));
    used.push_back(static_cast<int32_t>(cache.length() + segment.count));
    most_keys = std::max<int64_t>(most_keys, used.back());
  }
  const KVCache& last = *segments.back().cache;
  cu_seqlens_k.push_back(static_cast<int32_t>(last.start() + last.capacity() - first));

  std::vector<size_t> place(order.size());  // the caller's i is segments[place[i]]
  for (size_t i = 0; i < order.size(); ++i) place[order[i]] = i;
  for (const size_t i : place) {
    for (int64_t row = cu_wanted[i]; row < cu_wanted[i + 1]; ++row) restored.push_back(row);
  }
}

void DecoderBatch::fill_up(int64_t count) {
  const auto end = static_cast<int32_t>(segments.front().cache->pool()->tokens());
  for (int64_t& slot : slots) slot += first;
  for (int32_t& begin : cu_seqlens_k) begin += static_cast<int32_t>(first);
  cu_seqlens_k.back() = end;
  first = 0;
  for (auto* bounds : {&cu_seqlens_q, &cu_wanted, &cu_seqlens_k, &used}) bounds->insert(bounds->begin(), 0);
  for (; rows < count; ++rows, ++wanted) {
    positions.push_back(0);
    slots.push_back(-1);
    kept.push_back(rows);
    restored.push_back(rows);
    cu_seqlens_q.push_back(static_cast<int32_t>(rows + 1));
    cu_wanted.push_back(static_cast<int32_t>(rows + 1));
    cu_seqlens_k.push_back(end);
    used.push_back(0);
  }
  int64_t keys = 512;
  while (keys < most_keys) keys *= 2;
  most_keys = keys;
}

Status DecoderBatch::turn_by(const TextConfig& config) {
  rowwise::RotaryAngles angles;
  angles.rows = rows;
  angles.dim = config.head_dim();
  angles.theta = config.rope_theta;
  angles.positions = positions.data();
  cosine.resize(static_cast<size_t>(rows * angles.dim / 2));
  sine.resize(cosine.size());
  angles.cosine = cosine.data();
  angles.sine = sine.data();
  return rowwise::run(angles);
}

void DecoderBatch::pack(Parcel* parcel) {
  parcel->add(cosine, &there.cosine);
  parcel->add(sine, &there.sine);
  parcel->add(slots, &there.slots);
  parcel->add(kept, &there.kept);
  parcel->add(restored, &there.restored);
  parcel->add(cu_seqlens_q, &there.cu_seqlens_q);
  parcel->add(cu_wanted, &there.cu_wanted);
  parcel->add(cu_seqlens_k, &there.cu_seqlens_k);
  parcel->add(used, &there.used);
  parcel->add(index, &there.index);
  parcel->add(sent, &there.sent);
}

Status DecoderBatch::watch(void* stream) const {
  return fill(kOp, Device::kCuda, fault, 0xff, sizeof *fault, stream);
}

Status DecoderBatch::check_faults() const {
  FaultWord word = kNoFault;
  EARNEST_RETURN_IF_ERROR(copy(kOp, Device::kCuda, &word, fault, sizeof word));
  return check_fault(word);
}

Status DecoderBatch::check_fault(FaultWord word) {
  if (word == kNoFault) return {};
  const Fault found = fault_of(word);
  return {StatusCode::kInternal, "[decoder] rows: expected places inside of their arrays, got fault " +
                                     std::to_string(static_cast<int>(found.op)) + " at " +
                                     std::to_string(found.index)};
}

}  // namespace earnest::engine
