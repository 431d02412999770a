// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/huge_pages.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace earnest {

void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kPage = size_t{2} << 20;
  // What is smaller is found again without walks: the processor remembers some thousand small pages.
  constexpr size_t kLeast = 2 * kPage;
  if (bytes < kLeast) return;
  const size_t skipped = (kPage - reinterpret_cast<uintptr_t>(memory) % kPage) % kPage;
  const size_t whole = (bytes - skipped) / kPage * kPage;
  char* first = static_cast<char*>(memory) + skipped;
  // Advice that is not taken is no error: the memory works as well as before.
  (void)::madvise(first, whole, MADV_HUGEPAGE);
  // What an allocator gives out again has its small pages already; they are moved together, which takes as
  // long as their first use did. Where there are large ones it takes microseconds. Linux 6.1 and later.
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
  (void)::madvise(first, whole, kCollapse);
#endif
}

}  // namespace earnest
