// SPDX-License-Identifier: Apache-2.0
// How a kernel says that an entry is not as it must be, without anybody waiting for it: the first fault goes
// into a word of device memory, and whoever waits for the results anyway looks there.
//
// The caller allocates the word, sets it to kNoFault (all bits 1), passes it with any number of calls, and
// after the stream has been waited for reads it. Kernels record by record_fault.h; a family's X_fault(params,
// word) makes the CPU's message of it. Words order by call (FaultOp), then index, then argument, so that the
// least is the first: the same at every run.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest {

using FaultWord = unsigned long long;  // what atomicMin takes
constexpr FaultWord kNoFault = ~0ull;

enum class FaultOp : uint8_t {
  kGae = 1,
  kPpoLoss,
  kWhiten,
  kGroupAdvantage,
  kLogMel,
  kLogProb,
  kAttention,
  kPagedAttention,
  kRotaryWrite,
  kRotary,
  kGather
};

struct Fault {
  FaultOp op;
  int64_t index;  // the token, sample or frame: below 2^48
  int argument;   // which array, as the family numbers them
};

EARNEST_HOST_DEVICE inline FaultWord word_of(const Fault& fault) {
  return static_cast<FaultWord>(fault.op) << 56 | static_cast<FaultWord>(fault.index) << 8 |
         static_cast<FaultWord>(fault.argument);
}

inline Fault fault_of(FaultWord word) {
  return {static_cast<FaultOp>(word >> 56), static_cast<int64_t>(word >> 8 & ((1ull << 48) - 1)),
          static_cast<int>(word & 0xff)};
}

}  // namespace earnest
