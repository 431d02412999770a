// SPDX-License-Identifier: Apache-2.0
// Where TMA puts an operand's numbers is where the instruction's descriptors find them. Both views are
// written here a second time, from the PTX ISA; no GPU is needed.
#include <cstdint>
#include <map>
#include <utility>

#include "kernels/common/hopper_layout.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest::hopper;
using Number = std::pair<int, int>;  // row, and step along the depth

// What boxes of 64 lines leave in shared memory from `base`: by address, the number that lies there. With the
// 128-byte swizzle, the 16-byte piece j of line i lies in the place of piece j ^ (i % 8).
std::map<uint32_t, Number> by_tma(uint32_t base, bool transposed, int rows) {
  std::map<uint32_t, Number> found;
  for (int box = 0; box < rows / 64; ++box) {
    for (int line = 0; line < 64; ++line) {
      for (int i = 0; i < 64; ++i) {
        const int piece = i / 8 ^ line % 8;
        const auto address = static_cast<uint32_t>(box * 8192 + line * 128 + piece * 16 + i % 8 * 2);
        found[base + address] = transposed ? Number{box * 64 + i, line} : Number{box * 64 + line, i};
      }
    }
  }
  return found;
}

// Where an instruction looks for (row, k), k below 16: "Strides" and "Canonical layouts" of wgmma.mma_async.
uint32_t by_descriptor(uint64_t descriptor, bool transposed, int row, int k) {
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) * 16; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  CHECK(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0);
  const auto r = static_cast<uint32_t>(row), d = static_cast<uint32_t>(k);
  const uint32_t address = transposed ? start + r / 64 * leading + r % 64 * 2 + d / 8 * stride + d % 8 * 128
                                      : start + r / 8 * stride + r % 8 * 128 + d * 2;
  const uint32_t line = address / 128 % 8, piece = address / 16 % 8;
  return address - piece * 16 + (piece ^ line) * 16;
}

void compare(uint32_t base, bool transposed, int rows, int first, int rows_of_instruction) {
  const auto memory = by_tma(base, transposed, rows);
  for (int k = 0; k < 64; k += 16) {
    const uint64_t one = descriptor(base + operand_offset(transposed, first, k));
    for (int row = 0; row < rows_of_instruction; ++row) {
      for (int step = 0; step < 16; ++step) {
        const auto at = memory.find(by_descriptor(one, transposed, row, step));
        CHECK(at != memory.end() && at->second == Number(first + row, k + step));
        if (at == memory.end()) return;
      }
    }
  }
}

}  // namespace

TEST(descriptors_find_what_tma_brought) {
  for (bool transposed : {false, true}) {
    for (uint32_t base : {1024u, 1024u + 3 * 49152u}) {  // the first and the last of four stages
      compare(base, transposed, 128, 0, 64);             // left: a warpgroup's 64 of 128 rows
      compare(base, transposed, 128, 64, 64);
      compare(base + 16384, transposed, 256, 0, 256);  // right
    }
  }
}
