// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/decode_graphs.h"

#include <algorithm>
#include <cstring>

#include "csrc/engine/decoder_batch.h"
#include "csrc/engine/guard.h"
#include "kernels/common/cuda.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "decoder";

int64_t power_of_two(int64_t least) {
  int64_t power = 1;
  while (power < least) power *= 2;
  return power;
}

}  // namespace

void DecodeGraphs::Delete::operator()(void* graph) const { cuda::destroy_graph(graph); }

DecodeGraphs::~DecodeGraphs() {
  if (stream_ != nullptr) cuda::destroy_stream(stream_);
}

bool DecodeGraphs::can_take(const std::vector<Segment>& segments) {
  return !segments.empty() && static_cast<int64_t>(segments.size()) <= kMostRows &&
         std::all_of(segments.begin(), segments.end(), [](const Segment& s) {
           return s.count == 1 && s.wanted == 1 && s.ids != nullptr && s.ids[0] != kGivenEmbedding;
         });
}

Status DecodeGraphs::run(const Computed& computed, const std::vector<Segment>& segments,
                         std::span<Drawing> drawings, void* hidden, float* logits) {
  const TextConfig& config = computed.decoder.config();
  const auto asked = static_cast<int64_t>(segments.size());
  EARNEST_RETURN_IF_ERROR(computed.decoder.check(segments));
  draws_arena_.reset();
  EARNEST_RETURN_IF_ERROR(draws_.send(drawings, &draws_arena_));
  DecoderBatch batch(segments);
  batch.fill_up(power_of_two(asked));
  EARNEST_RETURN_IF_ERROR(batch.turn_by(config));
  arena_.reset();
  forget_what_moved(*segments[0].cache->pool(), computed.version);
  EARNEST_RETURN_IF_ERROR(computed.decoder.send(&batch, &arena_));
  const Made made = take(computed, batch.rows);
  batch.fault = reinterpret_cast<FaultWord*>(made.there);

  Recording& recording = recordings_[{batch.rows, batch.most_keys}];
  if (wanted_ && trouble_.ok() && recording.met && recording.graph == nullptr)
    trouble_ = capture(computed, batch, made, &recording);
  if (recording.graph != nullptr) {
    EARNEST_RETURN_IF_ERROR(cuda::launch_graph(kOp, recording.graph.get(), nullptr));
    ++counts_.replayed;
  } else {
    EARNEST_RETURN_IF_ERROR(launch(computed, &batch, made));
    recording.met = true;
    ++counts_.plain;
  }

  auto* const made_logits = reinterpret_cast<BFloat16*>(made.there + made.logits);
  EARNEST_RETURN_IF_ERROR(draws_.launch(made_logits, config.vocab_size,
                                        reinterpret_cast<int32_t*>(made.there + made.tokens), &draws_arena_));
  if (made_.size() < made.bytes) made_.resize(made.bytes);  // never less: growing again sets zeros
  EARNEST_RETURN_IF_ERROR(copy(kOp, Device::kCuda, made_.data(), made.there, made.logits));
  FaultWord word = kNoFault;
  std::memcpy(&word, made_.data(), sizeof word);
  EARNEST_RETURN_IF_ERROR(DecoderBatch::check_fault(word));
  std::memcpy(hidden, made_.data() + made.hidden,
              static_cast<size_t>(asked * config.hidden_size) * sizeof(BFloat16));
  draws_.take(reinterpret_cast<const int32_t*>(made_.data() + made.tokens), drawings);
  EARNEST_RETURN_IF_ERROR(draws_.bring(made_logits, asked, config.vocab_size,
                                       reinterpret_cast<BFloat16*>(made_.data() + made.logits), logits));
  Decoder::advance(segments);
  return {};
}

// Addresses that recordings hold: of scratch memory, of keys and values, of weights.
void DecodeGraphs::forget_what_moved(const KVPool& pool, int64_t version) {
  const void* const begins = pool.keys(0, 0);
  if (arena_.moves() == moves_ && begins == pool_ && version == version_) return;
  for (auto& [size, recording] : recordings_) recording.graph.reset();
  moves_ = arena_.moves(), pool_ = begins, version_ = version;
}

DecodeGraphs::Made DecodeGraphs::take(const Computed& computed, int64_t rows) {
  constexpr size_t kAlignment = 64;
  const auto whole = [](size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  const TextConfig& config = computed.decoder.config();
  Made made;
  made.hidden = kAlignment;
  made.tokens = made.hidden + whole(static_cast<size_t>(rows * config.hidden_size) * sizeof(BFloat16));
  made.logits = made.tokens + whole(static_cast<size_t>(rows) * sizeof(int32_t));
  made.bytes = made.logits + static_cast<size_t>(rows * config.vocab_size) * sizeof(BFloat16);
  made.there = arena_.take<char>(static_cast<int64_t>(made.bytes));
  return made;
}

Status DecodeGraphs::launch(const Computed& computed, DecoderBatch* batch, const Made& made) {
  const Arena::Scope scope(&arena_);
  auto* const hidden = reinterpret_cast<BFloat16*>(made.there + made.hidden);
  auto* const logits = reinterpret_cast<BFloat16*>(made.there + made.logits);
  EARNEST_RETURN_IF_ERROR(computed.decoder.launch(batch, &arena_, hidden));
  return computed.head.launch(hidden, batch->rows, logits, &arena_);
}

// The launches of such a batch. Whatever fails on the way, the capture is ended.
Status DecodeGraphs::capture(const Computed& computed, const DecoderBatch& batch, const Made& made,
                             Recording* recording) {
  if (stream_ == nullptr) EARNEST_RETURN_IF_ERROR(cuda::create_stream(kOp, &stream_));
  EARNEST_RETURN_IF_ERROR(cuda::begin_capture(kOp, stream_));
  arena_.set_stream(stream_);
  DecoderBatch recorded = batch;
  const Status launched = guarded(kOp, [&] { return launch(computed, &recorded, made); });
  arena_.set_stream(nullptr);
  void* graph = nullptr;
  const Status ended = cuda::end_capture(kOp, stream_, &graph);
  std::unique_ptr<void, Delete> kept(graph);
  EARNEST_RETURN_IF_ERROR(launched);
  EARNEST_RETURN_IF_ERROR(ended);
  recording->graph = std::move(kept);
  ++counts_.recorded;
  return {};
}

}  // namespace earnest::engine
