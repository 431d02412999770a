// SPDX-License-Identifier: Apache-2.0
// Large memory straight from the system. Given back it is gone from the process, where malloc keeps what
// comes back to it, in holes between what stays. Pages that nobody has written to take no memory, so that
// room can be reserved for the most there may be.
#pragma once

#include <cstddef>

namespace earnest {

// Zeros on a page's boundary; null where there is no memory, or for no bytes.
void* take_pages(size_t bytes);
void give_pages_back(void* pages, size_t bytes);  // as many as were taken; null is nothing

}  // namespace earnest
