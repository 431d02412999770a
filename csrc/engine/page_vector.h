// SPDX-License-Identifier: Apache-2.0
// A vector of numbers that are many and do not stay. Its pages are the system's and go back there with it;
// malloc keeps what it takes back, and once large pieces have come back to it, large ones as well. Pages that
// nobody has written to take no memory, so that room can be reserved for the most there may be.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace earnest::engine {

template <typename T>
class PageAllocator {
 public:
  using value_type = T;

  T* allocate(size_t count) {
    if (count > SIZE_MAX / 4 / sizeof(T)) throw std::bad_array_new_length();
    void* pages =
        ::mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    return static_cast<T*>(pages);
  }
  void deallocate(T* pages, size_t count) noexcept { (void)::munmap(pages, count * sizeof(T)); }

  bool operator==(const PageAllocator&) const = default;
};

template <typename T>
using PageVector = std::vector<T, PageAllocator<T>>;

}  // namespace earnest::engine
