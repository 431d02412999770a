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
    const int64_t* index = nullptr;
    const char* sent = nullptr;
  };

  std::vector<Segment> segments;
  std::vector<int64_t> positions;  // of each row
  std::vector<int64_t> slots;      // of each row's key and value, from the first cache on
  std::vector<int64_t> kept;       // which rows are wanted
  std::vector<int64_t> restored;   // which of these make the caller's order
  std::vector<int32_t> cu_seqlens_q, cu_wanted, cu_seqlens_k, used;
  std::vector<float> cosine, sine;
  std::vector<int64_t> index;  // on a GPU: of each row's embedding in the table, or -1 - its place in `sent`
  std::vector<char> sent;      // embeddings that are not in a table there
  int64_t rows = 0, wanted = 0;
  int64_t first = 0;         // the pool's token that slots and keys count from
  int64_t most_keys = 0;     // that one sequence uses
  bool only_wanted = false;  // rows are the wanted ones
  There there;
  FaultWord* fault = nullptr;  // on a GPU

  explicit DecoderBatch(const std::vector<Segment>& given);  // at least one

  int64_t places() const { return cu_seqlens_k.back(); }
  // Where the rows of each sequence begin, as they are now.
  const std::vector<int32_t>& queries() const { return only_wanted ? cu_wanted : cu_seqlens_q; }

  // For work that is recorded, and has to serve other sequences of single tokens of this pool: places count
  // from the pool's first token, up to the first cache a sequence that asks nothing; rows that nobody asked
  // for, which see no keys and keep none, make up `count`; most_keys becomes 512 times a power of two.
  void fill_up(int64_t count);

  // The angles of all positions.
  Status turn_by(const TextConfig& config);

  // To where the pass runs.
  void pack(Parcel* parcel);

  // The word on a GPU for what kernels find that must not be there: made ready, and what it says in the end.
  Status watch(void* stream) const;
  Status check_faults() const;
  static Status check_fault(FaultWord word);

  // From now on the rows are the wanted ones. Segments without any need no attention.
  void become_wanted() {
    there.cu_seqlens_q = there.cu_wanted;
    only_wanted = true;
    rows = wanted;
  }
};

}  // namespace earnest::engine
