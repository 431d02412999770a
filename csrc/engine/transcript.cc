// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/transcript.h"

#include <algorithm>

namespace earnest::engine {
namespace {

// One more number into a hash: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
uint64_t mixed(uint64_t hash, uint64_t number) {
  uint64_t z = (hash ^ number) + 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

uint64_t mixed(uint64_t hash, const Digest& digest) {
  for (size_t i = 0; i < digest.size(); i += 8) {
    uint64_t word = 0;
    for (size_t j = 0; j < 8; ++j) word = word << 8 | digest[i + j];
    hash = mixed(hash, word);
  }
  return hash;
}

}  // namespace

void Transcript::append(std::span<const int32_t> ids, std::span<const AudioPlace> audio) {
  const int64_t base = size();
  append(ids);
  for (const AudioPlace& place : audio) audio_.push_back({base + place.start, place.chunk});
}

void Transcript::truncate(int64_t size) {
  ids_.resize(static_cast<size_t>(size));
  while (!audio_.empty() && audio_.back().start >= size) audio_.pop_back();
  hashes_.resize(std::min(hashes_.size(), static_cast<size_t>(size / kBlock)));
}

std::vector<AudioPlace>::const_iterator Transcript::audio_from(int64_t position) const {
  return std::partition_point(audio_.begin(), audio_.end(), [&](const AudioPlace& place) {
    return place.start + place.chunk->rows <= position;
  });
}

uint64_t Transcript::hash(int64_t block) const {
  for (auto next = static_cast<int64_t>(hashes_.size()); next <= block; ++next) {
    uint64_t hash = next == 0 ? 0 : hashes_.back();
    auto place = audio_from(next * kBlock);
    if (place != audio_.end() && place->start < next * kBlock) ++place;  // began in the block before
    for (int64_t i = next * kBlock; i < (next + 1) * kBlock; ++i) {
      hash = mixed(hash, static_cast<uint64_t>(ids_[static_cast<size_t>(i)]));
      if (place != audio_.end() && place->start == i) hash = mixed(hash, (place++)->chunk->digest);
    }
    hashes_.push_back(hash);
  }
  return hashes_[static_cast<size_t>(block)];
}

int64_t Transcript::common(const Transcript& other, int64_t limit) const {
  const int64_t most = std::min({limit, size(), other.size()});
  const auto differs = std::mismatch(ids_.begin(), ids_.begin() + most, other.ids_.begin()).first;
  int64_t same = differs - ids_.begin();
  for (size_t i = 0; i < std::max(audio_.size(), other.audio_.size()); ++i) {
    const int64_t mine = i < audio_.size() ? audio_[i].start : INT64_MAX;
    const int64_t theirs = i < other.audio_.size() ? other.audio_[i].start : INT64_MAX;
    if (std::min(mine, theirs) >= same) break;
    if (mine != theirs || audio_[i].chunk->digest != other.audio_[i].chunk->digest) {
      same = std::min(mine, theirs);
      break;
    }
  }
  return same;
}

}  // namespace earnest::engine
