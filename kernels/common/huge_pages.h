// SPDX-License-Identifier: Apache-2.0
// Advice to the operating system about memory that is read over and over. Kernels allocate nothing; whoever
// gives them memory may be a program that knows nothing of pages.
#pragma once

#include <cstddef>

namespace earnest {

// Best called before memory is first written: its whole 2 MiB parts should then lie in one page each, of
// which a processor finds the address without a walk every 4 KiB. Only for large memory; for small, and where
// the system has no such pages or does not want to give them, nothing happens. Contents are left alone.
void advise_huge_pages(void* memory, size_t bytes);

}  // namespace earnest
