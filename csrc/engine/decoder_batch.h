// SPDX-License-Identifier: Apache-2.0
// What follows from the segments of one pass: their tokens as rows, and what attention and the caches are
// told of them.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/config.h"
#include "csrc/engine/decoder.h"
#include "csrc/engine/parcel.h"
#include "kernels/common/device_fault.h"

namespace earnest::engine {

// The segments in the order in which their caches lie in the pool, as attention wants them. Rows are tokens
// in that order; from the last layer's attention on those whose hidden states are wanted.
struct DecoderBatch {
  // Where the pass reads them.
  struct There {
    const float *cosine = nullptr, *sine = nullptr;
    const int64_t *slots = nullptr, *kept = nullptr, *restored = nullptr;
    const int32_t *cu_seqlens_q = nullptr, *cu_wanted = nullptr, *cu_seqlens_k = nullptr, *used = nullptr;
  };

  std::vector<Segment> segments;
  std::vector<int64_t> positions;  // of each row
  std::vector<int64_t> slots;      // of each row's key and value, from the first cache on
  std::vector<int64_t> kept;       // which rows are wanted
  std::vector<int64_t> restored;   // which of these make the caller's order
  std::vector<int32_t> cu_seqlens_q, cu_wanted, cu_seqlens_k, used;
  std::vector<float> cosine, sine;
  int64_t rows = 0, wanted = 0;
  There there;
  FaultWord* fault = nullptr;  // on a GPU

  explicit DecoderBatch(const std::vector<Segment>& given);  // at least one

  int64_t places() const { return cu_seqlens_k.back(); }

  // The angles of all positions.
  Status turn_by(const TextConfig& config);

  // To where the pass runs.
  void pack(Parcel* parcel);

  // On a GPU, a word for what kernels find that must not be there; and what it says, once the pass is over.
  Status watch(Arena* arena);
  Status check_faults() const;

  // From now on the rows are the wanted ones. Segments without any need no attention.
  void become_wanted() {
    there.cu_seqlens_q = there.cu_wanted;
    rows = wanted;
  }
};

}  // namespace earnest::engine
