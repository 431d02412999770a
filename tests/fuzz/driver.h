// SPDX-License-Identifier: Apache-2.0
// What a fuzzer needs where the compiler has none: a main that makes inputs and counts them.
//
//   PROGRAM SECONDS [SEED]     runs so long
//   PROGRAM 0 SEED NUMBER      one input again
//
// Input NUMBER depends on (SEED, NUMBER) alone, so that a crash can be had again; the sanitizer's report is
// followed by the command that does so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// What inputs are made of: whole examples, and words that the format knows.
struct FuzzMaterial {
  std::vector<std::string> seeds, words;
  size_t longest = 1 << 16;
};
FuzzMaterial fuzz_material();
