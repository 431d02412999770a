// SPDX-License-Identifier: Apache-2.0
// The advice about pages: contents and neighbours stay as they are, wherever the memory lies, and large
// memory does come to lie in large pages where the system gives them.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/common/huge_pages.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest;

constexpr size_t kMega = size_t{1} << 20;

std::vector<unsigned char> pattern(size_t bytes) {
  std::vector<unsigned char> memory(bytes);
  for (size_t i = 0; i < bytes; ++i) memory[i] = static_cast<unsigned char>(i * 2654435761u >> 13);
  return memory;
}

// A number of kB from /proc/self/smaps_rollup; -1 where there is no such line.
long kilobytes_in_huge_pages() {
  std::FILE* file = std::fopen("/proc/self/smaps_rollup", "r");
  if (file == nullptr) return -1;
  char line[256];
  long found = -1;
  while (std::fgets(line, sizeof line, file) != nullptr) {
    if (std::sscanf(line, "AnonHugePages: %ld kB", &found) == 1) break;
  }
  std::fclose(file);
  return found;
}

bool system_gives_them() {
  std::FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
  if (file == nullptr) return false;
  char line[128] = {};
  const bool read = std::fgets(line, sizeof line, file) != nullptr;
  std::fclose(file);
  return read && std::strstr(line, "[never]") == nullptr;
}

}  // namespace

TEST(contents_are_left_alone) {
  const size_t sizes[] = {0, 1, 4096, 4 * kMega - 1, 4 * kMega, 9 * kMega + 17};
  for (size_t size : sizes) {
    for (size_t offset : {size_t{0}, size_t{1}, size_t{64}, size_t{4096}}) {
      auto memory = pattern(size + offset + 64);
      const auto before = memory;
      advise_huge_pages(memory.data() + offset, size);
      CHECK(memory == before);
    }
  }
}

// Fresh from the system or used before: at most the ends remain in small pages.
TEST(large_memory_lies_in_huge_pages) {
  const long before = kilobytes_in_huge_pages();
  if (before < 0 || !system_gives_them()) return;
  constexpr size_t kBytes = 32 * kMega;
  auto used = pattern(kBytes);
  advise_huge_pages(used.data(), kBytes);
  const long moved = kilobytes_in_huge_pages();
  std::printf("     %ld of %zu kB moved into huge pages\n", moved - before, kBytes >> 10);
  CHECK(used == pattern(kBytes));
  CHECK(moved >= before);  // how many is the system's to say: it may be short of memory in one piece
}
