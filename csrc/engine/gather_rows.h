// SPDX-License-Identifier: Apache-2.0
// What encoder, adaptor and decoder ask of kernels/rowwise/gather.h in the same way.
#pragma once

#include <cstdint>

#include "kernels/rowwise/gather.h"

namespace earnest::engine {

// A table of rows, where the pass runs.
template <typename T>
struct RowsOf {
  const T* rows = nullptr;
  int64_t count = 0;
};

// out [count, width]: row index[i] of the table, or row -1 - index[i] of the other; zeros where there is
// none.
template <typename T>
Status gather_rows(Device device, RowsOf<T> table, RowsOf<T> other, int64_t width, const int64_t* index,
                   int64_t count, T* out, FaultWord* fault = nullptr, void* stream = nullptr) {
  rowwise::Gather job;
  job.rows = count;
  job.row_bytes = width * static_cast<int64_t>(sizeof(T));
  job.source_rows = table.count;
  job.other_rows = other.count;
  job.index = index;
  job.source = table.rows;
  job.other = other.rows;
  job.out = out;
  job.device = device;
  job.fault = fault;
  job.stream = stream;
  return rowwise::run(job);
}

}  // namespace earnest::engine
