// SPDX-License-Identifier: Apache-2.0
// Sequences on a GPU that go on token by token, as CUDA graphs or by plain passes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "csrc/engine/decode_graphs.h"
#include "csrc/engine/model.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiny_model.h"

namespace tiny {

inline Segment segment_of(KVCache* cache, const std::vector<int64_t>& ids) {
  Segment segment;
  segment.cache = cache;
  segment.ids = ids.data();
  segment.count = static_cast<int64_t>(ids.size());
  return segment;
}

// Sequences in a pool of their own, which go on step by step as graphs, or by plain passes.
class World {
 public:
  World(const Model& model, bool graphs, int64_t tokens) : model_(model), graphs_(graphs) {
    CHECK(KVPool::create(model.config().text, Precision::kBFloat16, tokens, &pool_, earnest::Device::kCuda)
              .ok());
  }

  void join(const std::vector<int64_t>& prompt, int64_t room) {
    caches_.push_back(std::make_unique<KVCache>());
    CHECK(pool_->allocate(room, caches_.back().get()).ok());
    std::vector<char> hidden(row_bytes());
    Arena arena;
    CHECK(model_.forward({segment_of(caches_.back().get(), prompt)}, hidden.data(), &arena).ok());
  }
  // With keys and values of tokens that nobody has computed.
  void join_long(int64_t length, int64_t room) {
    caches_.push_back(std::make_unique<KVCache>());
    CHECK(pool_->allocate(room, caches_.back().get()).ok());
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0.0F, 1.0F);
    const auto fill = [&](char* memory, size_t bytes) {
      auto* const numbers = reinterpret_cast<earnest::BFloat16*>(memory);
      for (size_t i = 0; i < bytes / sizeof(earnest::BFloat16); ++i)
        earnest::narrow(normal(random), &numbers[i]);
    };
    CHECK(pool_->write(caches_.back()->start(), length, fill).ok());
    CHECK(caches_.back()->extend(length).ok());
  }
  // All sequences go, and keys and values come to lie elsewhere.
  void move(int64_t tokens) {
    caches_.clear();
    std::shared_ptr<KVPool> next;  // made while the other one is still there
    CHECK(KVPool::create(model_.config().text, Precision::kBFloat16, tokens, &next, earnest::Device::kCuda)
              .ok());
    pool_ = std::move(next);
  }
  void leave(size_t i) { caches_.erase(caches_.begin() + static_cast<std::ptrdiff_t>(i)); }
  void fork(size_t i, int64_t room) {
    caches_.push_back(std::make_unique<KVCache>());
    CHECK(pool_->allocate(room, caches_.back().get()).ok());
    CHECK(caches_.back()->copy(*caches_[i], caches_[i]->length()).ok());
  }
  void cut(size_t i, int64_t length) { CHECK(caches_[i]->truncate(length).ok()); }
  size_t size() const { return caches_.size(); }
  int64_t length(size_t i) const { return caches_[i]->length(); }

  // One token each -> hidden states, then logits, but of rows that are drawn.
  std::vector<char> step(const std::vector<int64_t>& ids, bool decode, std::span<Drawing> drawings = {}) {
    std::vector<std::vector<int64_t>> own;
    for (const int64_t id : ids) own.push_back({id});
    std::vector<Segment> segments;
    for (size_t i = 0; i < caches_.size(); ++i) segments.push_back(segment_of(caches_[i].get(), own[i]));
    const auto rows = static_cast<int64_t>(ids.size());
    std::vector<char> hidden(ids.size() * row_bytes());
    std::vector<float> logits(ids.size() * static_cast<size_t>(model_.config().text.vocab_size));
    Status status;
    if (decode) {
      status = model_.decode(segments, drawings, hidden.data(), logits.data(), &arena_, &graphs_);
    } else {
      arena_.reset();
      status = model_.forward(segments, hidden.data(), &arena_);
      if (status.ok()) status = model_.logits(hidden.data(), rows, logits.data(), &arena_);
    }
    if (!status.ok()) std::printf("%s\n", status.message().c_str());
    CHECK(status.ok());
    const auto* bytes = reinterpret_cast<const char*>(logits.data());
    hidden.insert(hidden.end(), bytes, bytes + logits.size() * sizeof(float));
    return hidden;
  }
  const DecodeGraphs& graphs() const { return graphs_; }

 private:
  size_t row_bytes() const { return static_cast<size_t>(model_.config().text.hidden_size) * 2; }
  const Model& model_;
  std::shared_ptr<KVPool> pool_;
  std::vector<std::unique_ptr<KVCache>> caches_;
  Arena arena_;
  DecodeGraphs graphs_;
};

inline std::vector<int64_t> some_ids(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(2 + static_cast<int64_t>(random() % 400));
  return ids;
}

}  // namespace tiny
