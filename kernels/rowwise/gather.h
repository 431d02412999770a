// SPDX-License-Identifier: Apache-2.0
// Rows of a table, one after another: embeddings of tokens, the rows of a batch that are wanted, the windows
// of a convolution.
//
//   out_i = source_{index_i}             where index_i >= 0
//         = other_{-1 - index_i}         where index_i < 0; zeros where there is no other table
#pragma once

#include <cstdint>

#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::rowwise {

struct Gather {
  int64_t rows = 0;
  int64_t row_bytes = 0;                    // at least 1
  int64_t source_rows = 0, other_rows = 0;  // that there are
  const int64_t* index = nullptr;           // [rows]
  const void* source = nullptr;             // [source_rows, row_bytes]
  const void* other = nullptr;              // [other_rows, row_bytes]; null: zeros
  void* out = nullptr;                      // [rows, row_bytes], none of the others
  // With Device::kCuda only, where all arrays lie on the device and nobody looks at the indices before: one
  // that is outside gives a row of zeros, and is recorded if `fault` is there. The call puts work on the
  // stream, waits for nothing and allocates nothing.
  Device device = Device::kCpu;
  void* stream = nullptr;      // a cudaStream_t
  FaultWord* fault = nullptr;  // on the device (device_fault.h)
};

Status run(const Gather& job);

// What a word of faults says of a gather; ok for kNoFault.
Status fault(const Gather& job, FaultWord word);

// The seam to the CUDA back end. Without CUDA it says so.
Status gather_cuda(const Gather& job);

}  // namespace earnest::rowwise
