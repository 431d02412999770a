// SPDX-License-Identifier: Apache-2.0
// 32 frames by one block of 16 warps: lane i of every warp works on frame i. Warps share out the sixteen l of
// the first pass, the thirteen rows of the second, and the bands. Between them numbers lie in shared memory,
// always one row for the 32 lanes, so that no two lanes meet in a bank and addresses differ by constants.
//
// Both kernels (clips, streams) call the same function, so a frame's bits are the same wherever it is
// computed.
#pragma once

#include "kernels/common/simt.h"
#include "kernels/logmel/cuda_tables.h"
#include "kernels/logmel/cuda_transform.h"
#include "kernels/logmel/schedule.h"

namespace earnest::logmel {

constexpr int kLanesOfTile = kFramesOfTile, kWarpsOfTile = 16, kThreads = kLanesOfTile * kWarpsOfTile;
constexpr int kBlocksOfMultiprocessor = 2;  // at a time: what registers and shared memory are sized for
static_assert(kLanesOfTile == simt::kWarpSize && kWarpsOfTile == 16 && kRows <= kWarpsOfTile);

// Shared memory: what the passes hand on, then the samples.
constexpr int kSpectrumFloats = 16 * kLanesOfTile * (1 + 2 * (kRows - 1));  // a real row, twelve complex ones
constexpr size_t kSamplesOffset = kSpectrumFloats * sizeof(float);

// Where the lane's frame goes: band m at out[m * stride]; null: nowhere.
struct Place {
  float* out;
  uint32_t stride;
};

// The same place of the next band, in one instruction: told less plainly the compiler multiplies anew for
// each. Where it comes from is then hidden from it, and that it lies in global memory has to be said: else
// 352 of 892 stores in clips_cuda.cu do not know it (nvcc 13.0).
__device__ __forceinline__ float* band_after(float* out, uint32_t stride) {
#if defined(__CUDA_ARCH__)
  float* next;
  asm("mad.wide.u32 %0, %1, 4, %2;" : "=l"(next) : "r"(stride), "l"(out));
  __builtin_assume(__isGlobal(next));
  return next;
#else
  return out + stride;
#endif
}

// The same in all lanes, which only the reduction tells the compiler: what depends on it then takes no
// register.
__device__ __forceinline__ int warp_index() {
  const int warp = static_cast<int>(threadIdx.x / unsigned{simt::kWarpSize});
#if defined(__CUDA_ARCH__)
  return __reduce_max_sync(simt::kFullWarp, warp);
#else
  return warp;
#endif
}
__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x % unsigned{simt::kWarpSize});
}

// To 2^-22 on (1/2, 2). __log2f would first make sure of subnormal numbers.
__device__ __forceinline__ float log2_near_one(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::log2(x);
#endif
}

// log10 to within 1.2e-7 and the rounding of the result for 1e-10 and more; -10 below.
__device__ __forceinline__ float log10_of(float x) {
  const unsigned apart = __float_as_uint(x) - 0x3f3504f3u;  // the mantissa is in [sqrt(1/2), sqrt(2))
  const unsigned exponent = apart & 0xff800000u;            // times 2^23, and so, too, a float
  constexpr float kLog10Of2 = 0.30102999566398120f;
  const float value = fmaf(static_cast<float>(static_cast<int>(exponent)), kLog10Of2 / (1 << 23),
                           product(log2_near_one(__uint_as_float(__float_as_uint(x) - exponent)), kLog10Of2));
  return fmaxf(value, -10.0f);
}

// A number so many bytes behind the first: addresses are sums of two numbers then, without a product.
__device__ __forceinline__ float at_bytes(simt::Shared<float> first, int bytes) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(first) + bytes);
#else
  return first[bytes / static_cast<int>(sizeof(float))];
#endif
}

// The rows of the warp's l. Row 0 is real. sample(r) is one of the frame's, weight(r) that of the window.
template <typename Sample, typename Weight>
__device__ __forceinline__ void first_pass(int l, const Sample& sample, const Weight& weight) {
  const auto real = simt::dynamic_shared<float>(0, 16 * kLanesOfTile);
  const auto pairs =
      simt::dynamic_shared<float2>(16 * kLanesOfTile * sizeof(float), 16 * kLanesOfTile * (kRows - 1));
  const int at = kLanesOfTile * l + lane_index();
  transform_25(sample, weight, [&](int row, Complex x) {
    if (row == 0) {
      real[at] = x.re;
    } else {
      pairs[16 * kLanesOfTile * (row - 1) + at] = make_float2(x.re, x.im);
    }
  });
}

// The powers of one row, over the row itself.
__device__ __forceinline__ void second_pass(int row) {
  const int lane = lane_index();
  if (row >= kRows) return;
  Complex in[16];
  if (row == 0) {
    const auto real = simt::dynamic_shared<float>(0, 16 * kLanesOfTile);
#pragma unroll
    for (int l = 0; l < 16; ++l) in[l] = {real[kLanesOfTile * l + lane], 0.0f};
  } else {
    const auto pairs =
        simt::dynamic_shared<float2>(spectrum_row(row) * kLanesOfTile * sizeof(float), 16 * kLanesOfTile);
#pragma unroll
    for (int l = 0; l < 16; ++l) {
      const float2 x = pairs[kLanesOfTile * l + lane];
      in[l] = {x.x, x.y};
    }
  }
  __syncwarp();  // all lanes have read what others now write over
  const auto powers =
      simt::dynamic_shared<float>(spectrum_row(row) * kLanesOfTile * sizeof(float), 16 * kLanesOfTile);
  transform_16(in, [&](int d, Complex x) { powers[kLanesOfTile * d + lane] = power_of(x); });
}

// The warp's share of the bands, however many there are. Returns the largest of the lane's values, -10 if it
// has none.
__device__ __forceinline__ float bands(const CudaTables& tables, int warp, const Place& place) {
  const int begin = tables.n_mels * warp / kWarpsOfTile, end = tables.n_mels * (warp + 1) / kWarpsOfTile;
  const auto powers = simt::dynamic_shared<float>(0, kSpectrumFloats) + lane_index();
  const bool wanted = place.out != nullptr;
  float* out = place.out + int64_t{place.stride} * begin;
  float highest = -10.0f, sum = 0.0f, rising = 0.0f;
  int k = begin == 0 ? 0 : tables.end[begin - 1];
  const auto next_band = [&](int bins) {  // what falls from this one, and what rises to the next
    sum = rising;
    rising = 0.0f;
#pragma unroll 1
    for (; k < bins; ++k) {
      const float x = at_bytes(powers, tables.bins[k].place);
      sum = fmaf(x, tables.bins[k].falling, sum);
      rising = fmaf(x, tables.bins[k].rising, rising);
    }
  };
  if (begin < end) next_band(tables.end[begin]);
#pragma unroll 1
  for (int m = begin; m < end; ++m) {
    next_band(tables.end[m + 1]);
    const float value = log10_of(sum);
    highest = fmaxf(highest, value);
    if (wanted) *out = value;
    out = band_after(out, place.stride);
  }
  return wanted ? highest : -10.0f;
}

// Raw features of the frames whose samples begin at samples[first], first differing between lanes. All
// threads of the block call it, after a barrier.
struct InLoops {
  __device__ __forceinline__ static void transform(const CudaTables& tables, simt::Shared<float> frame) {
    const int l = warp_index();
    const CudaTables::Sample* table = tables.samples[l];
    first_pass(
        l, [&](int r) { return at_bytes(frame, table[r].place); }, [&](int r) { return table[r].weight; });
  }
  __device__ __forceinline__ static float features(const CudaTables& tables, const Place& place) {
    return bands(tables, warp_index(), place);
  }
};

template <typename Way>
__device__ __forceinline__ float compute_tile(const CudaTables& tables, simt::Shared<float> samples,
                                              int first, const Place& place) {
  Way::transform(tables, samples + first);
  __syncthreads();
  second_pass(warp_index());
  __syncthreads();
  return Way::features(tables, place);
}

}  // namespace earnest::logmel
