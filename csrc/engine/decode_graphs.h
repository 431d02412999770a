// SPDX-License-Identifier: Apache-2.0
// Steps of decoding on a GPU as CUDA graphs: the launches of one step, some ten a layer, recorded once and
// done again by one call. What changes from step to step (ids, positions, places, lengths) is read from
// memory that is sent before; what a recording holds for good is how many rows there are, how many keys they
// may see, and addresses. So there is one for each power of two of rows and of 512 keys, and all go when
// memory moves.
//
// A size is recorded when it comes for the second time: the first time its launches are plain, and leave an
// arena that is large enough. Where nothing can be recorded, launches stay plain, with the same bits;
// `counts` says how many steps were what.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/decoder.h"
#include "csrc/engine/device_draws.h"
#include "csrc/engine/head.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class DecodeGraphs {
 public:
  static constexpr int64_t kMostRows = 64;

  // Of what is computed. `version`: another one has its numbers elsewhere.
  struct Computed {
    const Decoder& decoder;
    const Head& head;
    int64_t version;
  };
  struct Counts {
    int64_t plain = 0, replayed = 0;  // steps
    int64_t recorded = 0;             // graphs
  };

  explicit DecodeGraphs(bool wanted = true) : wanted_(wanted) {}
  ~DecodeGraphs();
  DecodeGraphs(const DecodeGraphs&) = delete;
  DecodeGraphs& operator=(const DecodeGraphs&) = delete;

  // One token of the vocabulary each, whose hidden state is wanted, and no more than kMostRows.
  static bool can_take(const std::vector<Segment>& segments);

  // hidden [rows, hidden_size] and logits [rows, vocab_size] in memory of the host, these but for rows of
  // `drawings` [rows, or none] that are drawn where they are; refused input leaves the caches as they were.
  // May throw std::bad_alloc.
  Status run(const Computed& computed, const std::vector<Segment>& segments, std::span<Drawing> drawings,
             void* hidden, float* logits);

  const Counts& counts() const { return counts_; }
  // Why recording failed, after which it is not tried again.
  const Status& trouble() const { return trouble_; }

 private:
  struct Delete {
    void operator()(void* graph) const;
  };
  struct Recording {
    bool met = false;
    std::unique_ptr<void, Delete> graph;
  };
  // What a step leaves on the GPU, in one run of memory: the word of faults, hidden states, tokens, logits.
  struct Made {
    size_t hidden, tokens, logits, bytes;  // where they begin, and all of it
    char* there;
  };

  void forget_what_moved(const KVPool& pool, int64_t version);
  Made take(const Computed& computed, int64_t rows);
  Status launch(const Computed& computed, DecoderBatch* batch, const Made& made);
  Status capture(const Computed& computed, const DecoderBatch& batch, const Made& made, Recording* recording);

  bool wanted_;
  Status trouble_;
  Counts counts_;
  Arena arena_{Device::kCuda};
  void* stream_ = nullptr;                                       // to record on
  std::map<std::pair<int64_t, int64_t>, Recording> recordings_;  // by rows and keys
  const void* pool_ = nullptr;                                   // where its keys begin
  int64_t moves_ = 0, version_ = 0;
  DeviceDraws draws_;
  Arena draws_arena_{Device::kCuda};  // apart: draws are no part of a recording
  std::vector<char> made_;            // brought to the host
};

}  // namespace earnest::engine
