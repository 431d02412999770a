// SPDX-License-Identifier: Apache-2.0
// Memory of packed weights: pieces of large blocks, for which the system is asked for huge pages. A step of
// decoding reads all weights once, and with pages of 4 KiB it looks one up for every 64 lines. All threads
// touch a piece before it is given out: the system clears a page for whoever touches it first, and clearing
// takes as long as reading.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels/common/thread_pool.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace earnest::engine {

class WeightMemory {
 public:
  // On a 64-byte boundary, until this is destroyed; throws std::bad_alloc.
  void* take(size_t bytes) {
    if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > left_) {
      const size_t size = (std::max(bytes, kLeast) + kHugePage - 1) / kHugePage * kHugePage;
      blocks_.emplace_back(::operator new(size, std::align_val_t{kHugePage}));
      next_ = static_cast<char*>(blocks_.back().get());
      left_ = size;
      touched_ = next_;
#if defined(__linux__)
      (void)madvise(next_, size, MADV_HUGEPAGE);  // a wish: without it the memory is as good, only slower
#endif
    }
    void* piece = next_;
    next_ += bytes;
    left_ -= bytes;
    touch();
    return piece;
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kLeast = size_t{64} << 20;  // each may end in a huge page that is hardly used

  // The pages up to what is still to be taken.
  void touch() {
    char* const first = touched_;
    const int64_t pages = next_ <= first ? 0 : (next_ - first - 1) / static_cast<int64_t>(kHugePage) + 1;
    parallel_for(pages, [first](int64_t page) { first[static_cast<size_t>(page) * kHugePage] = 0; });
    touched_ += static_cast<size_t>(pages) * kHugePage;
  }

  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kHugePage}); }
  };

  std::vector<std::unique_ptr<void, Free>> blocks_;
  char *next_ = nullptr, *touched_ = nullptr;
  size_t left_ = 0;
};

}  // namespace earnest::engine
