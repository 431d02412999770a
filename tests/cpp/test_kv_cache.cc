// SPDX-License-Identifier: Apache-2.0
// Room given, taken back and joined again, against a plain map of which token belongs to whom.
#include <cstring>
#include <random>
#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/kv_cache.h"
#include "tests/cpp/check.h"

using earnest::Status;
using earnest::StatusCode;
using namespace earnest::engine;

namespace {

TextConfig small() {
  TextConfig config;
  config.hidden_size = 16;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.num_hidden_layers = 2;
  return config;
}

std::shared_ptr<KVPool> pool_of(int64_t tokens) {
  std::shared_ptr<KVPool> pool;
  CHECK(KVPool::create(small(), Precision::kBFloat16, tokens, &pool).ok());
  return pool;
}

}  // namespace

TEST(a_pool_never_gives_a_token_twice_and_loses_none) {
  std::mt19937 random(5);
  const int64_t tokens = 64;
  const auto pool = pool_of(tokens);
  std::vector<KVCache> caches;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0 && !caches.empty()) {
      caches.erase(caches.begin() + static_cast<int64_t>(random() % caches.size()));
    } else {
      KVCache cache;
      const auto capacity = static_cast<int64_t>(1 + random() % 20);
      const Status status = pool->allocate(capacity, &cache);
      if (status.ok()) caches.push_back(std::move(cache));
      if (!status.ok()) CHECK(status.code() == StatusCode::kContextFull && cache.capacity() == 0);
    }
    std::vector<int> owner(tokens, 0);
    int64_t used = 0;
    for (const KVCache& cache : caches) {
      used += cache.capacity();
      for (int64_t i = 0; i < cache.capacity(); ++i) ++owner[static_cast<size_t>(cache.start() + i)];
    }
    for (const int count : owner) CHECK(count <= 1);
    CHECK(pool->free_tokens() == tokens - used);
  }
  caches.clear();
  KVCache whole;
  CHECK(pool->allocate(tokens, &whole).ok());
}

TEST(a_pool_lives_as_long_as_its_caches) {
  KVCache cache;
  {
    const auto pool = pool_of(8);
    CHECK(pool->allocate(8, &cache).ok());
  }
  std::memset(cache.pool()->keys(1, cache.start() + 7), 1, cache.pool()->token_bytes());
  cache.clear();
  CHECK(cache.pool() == nullptr);
}

TEST(sizes_that_make_no_sense_are_refused) {
  std::shared_ptr<KVPool> pool;
  for (const int64_t tokens : {int64_t{0}, int64_t{-1}, int64_t{1} << 31}) {
    CHECK(KVPool::create(small(), Precision::kFloat32, tokens, &pool).code() == StatusCode::kInvalidArgument);
  }
  pool = pool_of(8);
  KVCache cache, other;
  CHECK(!pool->allocate(0, &cache).ok() && !pool->allocate(-5, &cache).ok());
  CHECK(pool->allocate(4, &cache).ok() && pool->allocate(4, &other).ok());
  CHECK(!cache.truncate(1).ok() && !cache.truncate(-1).ok() && cache.truncate(0).ok());
  CHECK(!cache.copy(other, 1).ok() && cache.copy(other, 0).ok());
}

TEST(an_arena_gives_memory_that_does_not_overlap_and_keeps_it) {
  Arena arena;
  std::mt19937 random(9);
  size_t held = 0;
  for (int round = 0; round < 20; ++round) {
    arena.reset();
    std::vector<std::pair<char*, int64_t>> taken;
    for (int i = 0; i < 30; ++i) {
      {
        const Arena::Scope scope(&arena);
        std::memset(arena.take<char>(500000), 0x55, 500000);  // given back, and taken again below
      }
      const auto count = static_cast<int64_t>(random() % 300000);
      char* memory = arena.take<char>(count);
      CHECK(reinterpret_cast<uintptr_t>(memory) % 64 == 0);
      std::memset(memory, i, static_cast<size_t>(count));
      taken.emplace_back(memory, count);
    }
    for (size_t i = 0; i < taken.size(); ++i) {
      for (int64_t j = 0; j < taken[i].second; j += 97) CHECK(taken[i].first[j] == static_cast<char>(i));
    }
    if (round == 10) held = arena.held();
  }
  CHECK(held > 0 && arena.held() <= 2 * held);
  bool refused = false;
  try {
    (void)arena.take<double>(INT64_MAX / 2);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  CHECK(refused);
}

TEST(caches_grow_in_place_or_move_and_keep_what_they_hold) {
  std::mt19937 random(6);
  const int64_t tokens = 96;
  const auto pool = pool_of(tokens);
  std::vector<KVCache> caches;
  std::vector<char> marks;
  const auto mark = [&](KVCache* cache, char value) {
    for (int64_t layer = 0; layer < pool->layers(); ++layer) {
      for (char* part : {pool->keys(layer, cache->start()), pool->values(layer, cache->start())}) {
        std::memset(part, value + static_cast<char>(layer),
                    static_cast<size_t>(cache->length()) * pool->token_bytes());
      }
    }
  };
  int grown = 0, refused = 0;
  for (int step = 0; step < 20000; ++step) {
    const uint32_t kind = random() % 8;
    if (kind == 0 && !caches.empty()) {
      const auto at = static_cast<int64_t>(random() % caches.size());
      caches.erase(caches.begin() + at);
      marks.erase(marks.begin() + at);
    } else if (kind == 1 || caches.empty()) {
      KVCache cache;
      if (!pool->allocate(static_cast<int64_t>(1 + random() % 10), &cache).ok()) continue;
      CHECK(cache.extend(cache.capacity()).ok() && !cache.extend(cache.capacity() + 1).ok());
      caches.push_back(std::move(cache));
      marks.push_back(static_cast<char>(random() % 100));
      mark(&caches.back(), marks.back());
    } else {
      const size_t at = random() % caches.size();
      const int64_t before = caches[at].capacity(), wanted = before + static_cast<int64_t>(random() % 12);
      const Status status = pool->grow(wanted, &caches[at]);
      status.ok() ? ++grown : ++refused;
      CHECK(status.ok() || status.code() == StatusCode::kContextFull);
      CHECK(caches[at].capacity() == (status.ok() ? wanted : before) && caches[at].length() <= before);
      if (caches.size() == 1) CHECK(status.ok() || wanted > tokens);  // alone, it can have all there is
    }
    int64_t used = 0;
    for (size_t i = 0; i < caches.size(); ++i) {
      used += caches[i].capacity();
      const char* last = pool->values(1, caches[i].start() + caches[i].length() - 1);
      const char* first = pool->keys(0, caches[i].start());
      CHECK(*first == marks[i] && *last == marks[i] + 1);
    }
    CHECK(pool->free_tokens() == tokens - used);
  }
  CHECK(grown > 1000 && refused > 100);
  CHECK(!pool->grow(caches[0].capacity() - 1, &caches[0]).ok());
}

TEST(memory_of_others_is_adopted_run_by_run_and_stays_theirs) {
  std::vector<char> memory[4];
  for (auto& part : memory) part.assign(10 * 8 * 2, 0);
  std::shared_ptr<KVPool> pool;
  const auto over = [&](std::vector<void*> keys) {
    return KVPool::over(small(), Precision::kBFloat16, 10, keys, {memory[2].data(), memory[3].data()}, &pool);
  };
  CHECK(!over({memory[0].data()}).ok());
  CHECK(over({memory[0].data(), memory[1].data()}).ok());
  KVCache first, second, third;
  CHECK(pool->adopt(4, 3, 2, &first).ok() && first.start() == 4 && first.capacity() == 3 &&
        first.length() == 2);
  CHECK(pool->free_tokens() == 7);
  CHECK(!pool->adopt(6, 2, 0, &second).ok() && !pool->adopt(2, 3, 0, &second).ok());  // overlap
  CHECK(!pool->adopt(8, 3, 0, &second).ok() && !pool->adopt(-1, 2, 0, &second).ok());
  CHECK(!pool->adopt(0, 2, 3, &second).ok() && !pool->adopt(0, 0, 0, &second).ok());
  CHECK(pool->adopt(7, 3, 0, &second).ok() && pool->adopt(0, 4, 4, &third).ok() && pool->free_tokens() == 0);
  first.clear();
  CHECK(pool->adopt(4, 3, 0, &first).ok());
  CHECK(pool->keys(1, 4) == memory[1].data() + 4 * 16 && pool->values(0, 0) == memory[2].data());
  first.clear();
  second.clear();
  third.clear();
  CHECK(pool->free_tokens() == 10);
}
