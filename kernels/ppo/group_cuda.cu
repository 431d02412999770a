// SPDX-License-Identifier: Apache-2.0
// Group baselines on a GPU: samples are sorted by group, then by place, so that a group's members stand
// together in the order of the samples, and a warp takes the groups that begin in its 32 places. A group's
// sums depend on its members and their order alone. Groups are expected to be small: a warp goes through its
// own three times.
#include <cmath>
#include <limits>
#include <string>

#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/ppo/ppo_cuda.h"
#include "kernels/ppo/sort_network.h"

namespace earnest::ppo {
namespace {

using namespace sort_network;
using simt::kFullWarp;

constexpr int64_t kNobody =
    std::numeric_limits<int64_t>::max();  // a sample that does not count: sorted to the end
constexpr const char* kOp = "group_advantage";
constexpr int kThreadsOfGroups = 128;

struct Key {
  int64_t group, sample;
};
__device__ bool comes_before(const Key& a, const Key& b) {
  const bool nobody_a = a.sample == kNobody, nobody_b = b.sample == kNobody;
  if (nobody_a || nobody_b) return !nobody_a && nobody_b;
  return a.group != b.group ? a.group < b.group : a.sample < b.sample;
}
template <typename T>
__device__ Key key_of(const GroupParams<T>& p, int64_t sample) {
  return {sample == kNobody ? 0 : p.groups[sample], sample};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) list_samples(GroupParams<T> p, int64_t* order) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool counts = i < p.samples && (p.valid == nullptr || p.valid[i] != 0);
  order[i] = counts ? i : kNobody;
  if (i < p.samples) p.advantages[i] = T(0);
  if (counts && !std::isfinite(p.scores[i])) record_fault(p.fault, {FaultOp::kGroupAdvantage, i, 0});
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sort_in_blocks(GroupParams<T> p, int64_t* order, int64_t first, int64_t last) {
  EARNEST_SHARED(int64_t, groups, kPlaces);
  EARNEST_SHARED(int64_t, samples, kPlaces);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlaces;
  for (int i = thread; i < kPlaces; i += kThreads) {
    const Key key = key_of(p, order[begin + i]);
    groups[i] = key.group;
    samples[i] = key.sample;
  }
  for (int64_t size = first; size <= last; size *= 2) {
    for (int stride = static_cast<int>(size < kPlaces ? size : kPlaces) / 2; stride >= 1; stride /= 2) {
      __syncthreads();
      const int low = 2 * thread - (thread & (stride - 1)), high = low + stride;
      const Key a{groups[low], samples[low]}, b{groups[high], samples[high]};
      const bool upwards = ((begin + low) & size) == 0;
      if (upwards ? comes_before(b, a) : comes_before(a, b)) {
        groups[low] = b.group, samples[low] = b.sample;
        groups[high] = a.group, samples[high] = a.sample;
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < kPlaces; i += kThreads) order[begin + i] = samples[i];
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sort_across_blocks(GroupParams<T> p, int64_t* order, int64_t size, int64_t stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t low = 2 * i - (i & (stride - 1)), high = low + stride;
  const Key a = key_of(p, order[low]), b = key_of(p, order[high]);
  const bool upwards = (low & size) == 0;
  if (upwards ? comes_before(b, a) : comes_before(a, b)) {
    order[low] = b.sample;
    order[high] = a.sample;
  }
}

__device__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step >= 1; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

// Where the group ends that begins at `begin`: the whole warp looks.
template <typename T>
__device__ int64_t end_of_group(const GroupParams<T>& p, const int64_t* order, int64_t begin,
                                int64_t places) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t group = p.groups[order[begin]];
  for (int64_t i = begin;; i += 32) {
    const int64_t sample = i + lane < places ? order[i + lane] : kNobody;
    const unsigned others = __ballot_sync(kFullWarp, sample == kNobody || p.groups[sample] != group);
    if (others) return i + __ffs(static_cast<int>(others)) - 1;
  }
}

template <typename T>
__device__ void advantages_of_group(const GroupParams<T>& p, const int64_t* order, int64_t begin,
                                    int64_t end) {
  if (end - begin < 2) return;  // nothing to compare with
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double n = static_cast<double>(end - begin);
  double total = 0.0, squares = 0.0;
  for (int64_t i = begin + lane; i < end; i += 32) total += p.scores[order[i]];
  const double mean = warp_sum(total) / n;
  for (int64_t i = begin + lane; i < end; i += 32) {
    const double distance = p.scores[order[i]] - mean;
    squares += distance * distance;
  }
  const double variance = warp_sum(squares) / (n - 1.0);
  // s - mean of the others = (s - mean) n / (n - 1)
  double scale = p.baseline == GroupBaseline::kLeaveOneOut ? n / (n - 1.0) : 1.0;
  if (p.normalize_std) scale *= inverse_std(variance, p.eps, p.min_std);
  for (int64_t i = begin + lane; i < end; i += 32)
    p.advantages[order[i]] = static_cast<T>((p.scores[order[i]] - mean) * scale);
}

template <typename T>
__global__ void __launch_bounds__(kThreadsOfGroups)
    compare_in_groups(GroupParams<T> p, const int64_t* order, int64_t places) {
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * kThreadsOfGroups + threadIdx.x;
  const int64_t sample = order[mine];
  const bool begins = sample != kNobody && (mine == 0 || p.groups[order[mine - 1]] != p.groups[sample]);
  for (unsigned heads = __ballot_sync(kFullWarp, begins); heads != 0; heads &= heads - 1) {
    const int64_t begin = mine - threadIdx.x % 32 + __ffs(static_cast<int>(heads)) - 1;
    advantages_of_group(p, order, begin, end_of_group(p, order, begin, places));
  }
}

template <typename T>
Status launch_step(const GroupParams<T>& p, const Step& step, int64_t places, int64_t* order) {
  const auto blocks = static_cast<unsigned>(places / kPlaces);
  if (step.in_block)
    return simt::launch({kOp, "sort_in_blocks"}, sort_in_blocks<T>, blocks, kThreads, 0, p.stream, p, order,
                        step.first, step.last);
  return simt::launch({kOp, "sort_across_blocks"}, sort_across_blocks<T>, blocks, kThreads, 0, p.stream, p,
                      order, step.first, step.stride);
}

}  // namespace

template <typename T>
Status group_advantage_cuda(const GroupParams<T>& p, void* workspace) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  if (p.samples < 0 || p.samples > int64_t{1} << 36)
    return invalid_argument(kOp, "scores", "[0, 2^36] samples", std::to_string(p.samples));
  if (p.samples == 0) return {};
  if (p.fault == nullptr) return invalid_argument(kOp, "fault", "a word on the device", "none");
  if (workspace == nullptr) return invalid_argument(kOp, "workspace", "memory on the device", "none");
  auto* order = static_cast<int64_t*>(workspace);
  const int64_t places = padded(p.samples);
  if (Status status = simt::launch({kOp, "list_samples"}, list_samples<T>,
                                   static_cast<unsigned>(places / kThreads), kThreads, 0, p.stream, p, order);
      !status.ok())
    return status;
  for (const Step& step : steps(places))
    if (Status status = launch_step(p, step, places, order); !status.ok()) return status;
  return simt::launch({kOp, "compare_in_groups"}, compare_in_groups<T>,
                      static_cast<unsigned>(places / kThreadsOfGroups), kThreadsOfGroups, 0, p.stream, p,
                      order, places);
}

template Status group_advantage_cuda<float>(const GroupParams<float>&, void*);
template Status group_advantage_cuda<double>(const GroupParams<double>&, void*);

Status which_cuda(std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties("ppo", &device); !status.ok()) return status;
  *name = "cuda/simt";
  return {};
}

}  // namespace earnest::ppo
