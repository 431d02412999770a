// SPDX-License-Identifier: Apache-2.0
// The strings of bytes that ids stand for, and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace earnest::engine {

constexpr int32_t kNoToken = -1;

class Vocabulary {
 public:
  // Room for so many tokens.
  void reserve(size_t tokens);

  // Where the id or the bytes are taken already, nothing is added.
  enum class Added { kYes, kIdTaken, kBytesTaken };
  Added add(int32_t id, std::string_view bytes);
  // An id that stands for bytes which are not looked up.
  Added add_unreachable(int32_t id, std::string_view bytes);

  int32_t find(std::string_view bytes) const;  // kNoToken where no token has these bytes
  std::string_view bytes(int32_t id) const;    // none of an id that is not here
  bool has(int32_t id) const;
  int32_t end() const { return static_cast<int32_t>(spans_.size()); }  // one more than the highest id
  size_t longest() const { return longest_; }

 private:
  struct Span {
    uint32_t begin = 0, length = kAbsent;
  };
  static constexpr uint32_t kAbsent = UINT32_MAX;
  size_t slot_of(std::string_view bytes) const;
  void grow(size_t slots);
  void put(int32_t id, std::string_view bytes);

  std::string all_;  // the bytes of every token, one after the other
  std::vector<Span> spans_;
  std::vector<int32_t> slots_;  // open addressing, a power of two, at most half full
  size_t count_ = 0, longest_ = 0;
};

}  // namespace earnest::engine
