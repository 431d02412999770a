// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: a block takes a row of a norm, which it reads from memory once and from the nearest
// cache then; where values stand alone, a thread takes a piece of 16 bytes; a block turns a square of 32
// by 32.
#include <cmath>

#include "kernels/common/cuda.h"
#include "kernels/common/row_pieces.h"
#include "kernels/frames/frames_cuda.h"

namespace earnest::frames {
namespace {

using namespace simt;

template <typename Stored, bool kWhole>
__global__ void __launch_bounds__(kMostThreads) norm_rows(const LayerNorm<Stored> job) {
  constexpr int kCount = kPiece<Stored>;
  EARNEST_SHARED(float, partial, kMostWarps);
  const int64_t row = blockIdx.x, width = job.width, step = int64_t{blockDim.x} * kCount;
  const int64_t first = int64_t{threadIdx.x} * kCount;
  const Stored* x = job.x + row * width;
  float values[kCount], total = 0, squares = 0;
  for (int64_t j = first; j < width; j += step) {
    load<kWhole>(x + j, width - j, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) total += values[i];
  }
  const float mean = sum_of_block(total, partial) / static_cast<float>(width);
  for (int64_t j = first; j < width; j += step) {
    load<kWhole>(x + j, width - j, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float off = kWhole || i < width - j ? values[i] - mean : 0.0f;
      squares += off * off;
    }
  }
  const float variance = sum_of_block(squares, partial) / static_cast<float>(width);
  const float inverse = 1.0f / std::sqrt(variance + static_cast<float>(job.eps));
  if (threadIdx.x == 0) {
    job.mean[row] = mean;
    job.inverse[row] = inverse;
  }
  for (int64_t j = first; j < width; j += step) {
    float weight[kCount], bias[kCount];
    load<kWhole>(x + j, width - j, values);
    load<kWhole>(job.weight + j, width - j, weight);
    load<kWhole>(job.bias + j, width - j, bias);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = (values[i] - mean) * inverse * weight[i] + bias[i];
    store<kWhole>(values, width - j, job.y + row * width + j);
  }
}

// ---- values that stand alone: y = value(x, other), other only where kTwo ----

struct GeluOf {
  static constexpr bool kTwo = false;
  // Phi(x) by the complementary error function, with which nothing cancels far to the left.
  __device__ float operator()(float x, float) const { return x * (0.5f * std::erfc(-0.70710678f * x)); }
};
struct ReluOf {
  static constexpr bool kTwo = false;
  __device__ float operator()(float x, float) const { return x < 0 ? 0.0f : x; }
};
struct SumOf {
  static constexpr bool kTwo = true;
  __device__ float operator()(float x, float y) const { return x + y; }
};

template <typename Value, typename Stored, bool kWhole>
__global__ void __launch_bounds__(kMostThreads)
    map_values(const Stored* x, const Stored* other, Stored* y, const int64_t count) {
  constexpr int kCount = kPiece<Stored>;
  const int64_t j = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kCount;
  if (j >= count) return;
  float values[kCount], others[kCount] = {};
  load<kWhole>(x + j, count - j, values);
  if constexpr (Value::kTwo) load<kWhole>(other + j, count - j, others);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = Value()(values[i], others[i]);
  store<kWhole>(values, count - j, y + j);
}

// `across` blocks for each row.
template <typename Stored, bool kWhole>
__global__ void __launch_bounds__(kMostThreads)
    average_rows(const AveragePool<Stored> job, const unsigned across) {
  constexpr int kCount = kPiece<Stored>;
  const int64_t row = blockIdx.x / across, width = job.width;
  const int64_t j = (int64_t{blockIdx.x % across} * blockDim.x + threadIdx.x) * kCount;
  if (j >= width) return;
  const Stored* pair = job.x + 2 * row * width;
  float values[kCount], others[kCount];
  load<kWhole>(pair + j, width - j, values);
  load<kWhole>(pair + width + j, width - j, others);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = 0.5f * rounded(values[i] + others[i], pair);
  store<kWhole>(values, width - j, job.y + row * width + j);
}

constexpr int kSide = kWarpSize;  // of a square

// Neighbours in a warp are neighbours in x, and then in y. `across` squares side by side in y. A row of the
// square more than its width apart, a column's numbers lie in different banks.
template <typename Stored>
__global__ void __launch_bounds__(kMostThreads)
    transpose_squares(const Transpose<Stored> job, const unsigned across) {
  constexpr int kStride = kSide + 1, kPlaces = kSide * kStride;
  EARNEST_SHARED(float, square, kPlaces);
  const int64_t row = int64_t{blockIdx.x / across} * kSide, column = int64_t{blockIdx.x % across} * kSide;
  const int lane = static_cast<int>(threadIdx.x) % kSide;
  for (int j = static_cast<int>(threadIdx.x) / kSide; j < kSide; j += kMostWarps) {
    if (column + j < job.width && row + lane < job.rows)
      square[kStride * j + lane] = job.x[(column + j) * job.rows + row + lane];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) / kSide; i < kSide; i += kMostWarps) {
    if (row + i < job.rows && column + lane < job.width)
      narrow(square[kStride * lane + i], job.y + (row + i) * job.width + column + lane);
  }
}

template <typename Value, typename Stored>
Status map(const Label& label, const Stored* x, const Stored* other, Stored* y, int64_t count, void* stream) {
  if (count == 0) return {};
  const int64_t across = (pieces_of(count, kPiece<Stored>) + kMostThreads - 1) / kMostThreads;
  dim3 grid;
  if (Status status = row_grid(label.op, 1, across, &grid); !status.ok()) return status;
  const bool whole = in_whole_pieces(count, kPiece<Stored>, {x, other, y});
  return launch(label, whole ? map_values<Value, Stored, true> : map_values<Value, Stored, false>, grid,
                dim3(kMostThreads), 0, stream, x, other, y, count);
}

}  // namespace

Status which_cuda(std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties("frames", &device); !status.ok()) return status;
  *name = "cuda";
  return {};
}

template <typename Stored>
Status run_cuda(const LayerNorm<Stored>& job) {
  if (job.rows == 0) return {};
  dim3 grid;
  if (Status status = row_grid("layer_norm", job.rows, 1, &grid); !status.ok()) return status;
  const bool whole = in_whole_pieces(job.width, kPiece<Stored>, {job.x, job.weight, job.bias, job.y});
  return launch({"layer_norm", "norm_rows"}, whole ? norm_rows<Stored, true> : norm_rows<Stored, false>, grid,
                threads_for(pieces_of(job.width, kPiece<Stored>)), 0, job.stream, job);
}

template <typename Stored>
Status run_cuda(const Gelu<Stored>& job) {
  return map<GeluOf, Stored>({"gelu", "map_values"}, job.x, nullptr, job.y, job.count, job.stream);
}
template <typename Stored>
Status run_cuda(const Relu<Stored>& job) {
  return map<ReluOf, Stored>({"relu", "map_values"}, job.x, nullptr, job.y, job.count, job.stream);
}
template <typename Stored>
Status run_cuda(const Add<Stored>& job) {
  return map<SumOf>({"add", "map_values"}, job.x, job.y, job.sum, job.count, job.stream);
}

template <typename Stored>
Status run_cuda(const AveragePool<Stored>& job) {
  if (job.rows == 0) return {};
  RowLaunch of;
  if (Status status = piece_launch("average_pool", job.rows, job.width, kPiece<Stored>, &of); !status.ok())
    return status;
  const bool whole = in_whole_pieces(job.width, kPiece<Stored>, {job.x, job.y});
  return launch({"average_pool", "average_rows"},
                whole ? average_rows<Stored, true> : average_rows<Stored, false>, of.grid, of.threads, 0,
                job.stream, job, of.across);
}

template <typename Stored>
Status run_cuda(const Transpose<Stored>& job) {
  if (job.rows == 0) return {};
  const int64_t down = (job.rows + kSide - 1) / kSide, across = (job.width + kSide - 1) / kSide;
  dim3 grid;
  if (Status status = row_grid("transpose", down, across, &grid); !status.ok()) return status;
  return launch({"transpose", "transpose_squares"}, transpose_squares<Stored>, grid, dim3(kMostThreads), 0,
                job.stream, job, static_cast<unsigned>(across));
}

#define EARNEST_FRAMES_INSTANCES(Stored)                \
  template Status run_cuda(const LayerNorm<Stored>&);   \
  template Status run_cuda(const Gelu<Stored>&);        \
  template Status run_cuda(const Relu<Stored>&);        \
  template Status run_cuda(const Add<Stored>&);         \
  template Status run_cuda(const AveragePool<Stored>&); \
  template Status run_cuda(const Transpose<Stored>&);
EARNEST_FRAMES_INSTANCES(float)
EARNEST_FRAMES_INSTANCES(BFloat16)

}  // namespace earnest::frames
