// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/byte_level.h"

#include <array>
#include <cstdint>

#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

constexpr char32_t kEnd = 0x144;  // 256 bytes and the 68 that are not printable

constexpr bool printable(int byte) {
  return (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte != 173);
}

constexpr std::array<int16_t, kEnd> make_table() {
  std::array<int16_t, kEnd> table{};
  table.fill(-1);
  size_t extra = 256;
  for (int byte = 0; byte < 256; ++byte) {
    table[printable(byte) ? static_cast<size_t>(byte) : extra++] = static_cast<int16_t>(byte);
  }
  return table;
}

constexpr std::array<int16_t, kEnd> kByteOf = make_table();

}  // namespace

bool from_byte_level(std::string_view token, std::string* bytes) {
  bytes->clear();
  while (!token.empty()) {
    const CodePoint c = decode(token);
    if (c.value >= kEnd || kByteOf[c.value] < 0) return false;
    bytes->push_back(static_cast<char>(kByteOf[c.value]));
    token.remove_prefix(c.bytes);
  }
  return true;
}

}  // namespace earnest::engine
