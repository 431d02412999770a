// SPDX-License-Identifier: Apache-2.0
// A block takes a part of a row, a thread 16 bytes of it, or one where rows do not divide into them.
#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/common/row_pieces.h"
#include "kernels/rowwise/gather.h"

namespace earnest::rowwise {
namespace {

constexpr int kThreads = 128;

// across: blocks for each row; units: of a row.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    copy_rows(const Gather job, const unsigned across, const int64_t units) {
  const int64_t row = blockIdx.x / across, at = job.index[row];
  const bool inside = at < job.source_rows && (at >= 0 || job.other == nullptr || at >= -job.other_rows);
  if (!inside && job.fault != nullptr && threadIdx.x == 0)
    record_fault(job.fault, {FaultOp::kGather, row, 0});
  const int64_t unit = int64_t{blockIdx.x % across} * kThreads + threadIdx.x;
  if (unit >= units) return;
  Unit value = {};
  if (inside && at >= 0) value = static_cast<const Unit*>(job.source)[at * units + unit];
  if (inside && at < 0 && job.other != nullptr)
    value = static_cast<const Unit*>(job.other)[(-1 - at) * units + unit];
  static_cast<Unit*>(job.out)[row * units + unit] = value;
}

template <typename Unit>
Status launch_with(const Gather& job) {
  const int64_t units = job.row_bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t across = (units + kThreads - 1) / kThreads;
  dim3 grid;
  if (Status status = simt::row_grid("gather", job.rows, across, &grid); !status.ok()) return status;
  return simt::launch({"gather", "copy_rows"}, copy_rows<Unit>, grid, dim3(kThreads), 0, job.stream, job,
                      static_cast<unsigned>(across), units);
}

}  // namespace

Status gather_cuda(const Gather& job) {
  cuda::Properties device;
  if (Status status = cuda::properties("gather", &device); !status.ok()) return status;
  if (job.rows == 0) return {};
  const bool whole =
      simt::in_whole_pieces(job.row_bytes, simt::kPieceBytes, {job.source, job.other, job.out});
  return whole ? launch_with<uint4>(job) : launch_with<unsigned char>(job);
}

}  // namespace earnest::rowwise
