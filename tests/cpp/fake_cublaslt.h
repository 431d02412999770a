// SPDX-License-Identifier: Apache-2.0
// What a test asks of the library that stands for cuBLASLt, and tells it.
#pragma once

#include <cstdint>
#include <functional>

struct FakeCublasLt {
  int64_t searches = 0, products = 0;  // for an algorithm; that were called
  int64_t done = 0;                    // products, those of graphs each time
  bool fails = false;                  // every product
  bool depends_on_batch = false;       // numbers are larger, by a sixteenth for each row
  // Puts work on a stream; false: it was refused. Empty: work is done at once.
  std::function<bool(void* stream, std::function<void()> work)> put;
};

// The one of a library, which has this name for it.
using FindFakeCublasLt = FakeCublasLt* (*)();
constexpr const char* kFakeCublasLt = "fake_cublaslt";
