// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4): contents by name. Two sounds, or two models, that anybody may choose must never pass
// for each other, so that nothing less will do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace earnest::engine {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void add(const void* bytes, size_t count);
  void add(uint64_t number);  // as 8 bytes, little endian
  Digest finish();            // nothing may be added afterwards

 private:
  void compress(const uint8_t* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_ = {};
  uint64_t bytes_ = 0;
};

std::string hexadecimal(const Digest& digest);

}  // namespace earnest::engine
