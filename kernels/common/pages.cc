// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/pages.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace earnest {

// The address sanitizer watches the ends of what comes from its own malloc alone.
#if defined(__SANITIZE_ADDRESS__)
void* take_pages(size_t bytes) {
  void* pages = nullptr;
  if (bytes == 0 || ::posix_memalign(&pages, 4096, bytes) != 0) return nullptr;
  return std::memset(pages, 0, bytes);
}
void give_pages_back(void* pages, size_t) { std::free(pages); }
#else
void* take_pages(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* pages = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return pages == MAP_FAILED ? nullptr : pages;
}
void give_pages_back(void* pages, size_t bytes) {
  if (pages != nullptr) (void)::munmap(pages, bytes);
}
#endif

}  // namespace earnest
