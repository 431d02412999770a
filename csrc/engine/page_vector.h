// SPDX-License-Identifier: Apache-2.0
// A vector of numbers that are many and do not stay: their pages go back to the system with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "kernels/common/pages.h"

namespace earnest::engine {

template <typename T>
class PageAllocator {
 public:
  using value_type = T;

  T* allocate(size_t count) {
    if (count > SIZE_MAX / 4 / sizeof(T)) throw std::bad_array_new_length();
    void* pages = take_pages(count * sizeof(T));
    if (pages == nullptr) throw std::bad_alloc();
    return static_cast<T*>(pages);
  }
  void deallocate(T* pages, size_t count) noexcept { give_pages_back(pages, count * sizeof(T)); }

  bool operator==(const PageAllocator&) const = default;
};

template <typename T>
using PageVector = std::vector<T, PageAllocator<T>>;

}  // namespace earnest::engine
