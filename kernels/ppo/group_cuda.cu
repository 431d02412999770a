// SPDX-License-Identifier: Apache-2.0
// Group baselines on a GPU, in a few passes over the samples. The first finds each sample's leader, one
// member that stands for the group: by a hash table, where whoever comes first takes the place. Later ones
// gather the group's size and largest magnitude, its sum, and where it is asked for the spread about the mean
// at the leader's record; the last one writes. Who leads differs from run to run and in which order members
// are added too, but no result: group_sums.h.
//
// Members often stand side by side: a warp joins runs of them before it touches a record. Few samples are all
// one block's, in one launch.
#include <cmath>
#include <initializer_list>
#include <string>

#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/ppo/group_sums.h"
#include "kernels/ppo/ppo_cuda.h"

namespace earnest::ppo {
namespace {

using namespace group_sums;
using simt::kFullWarp;

constexpr const char* kOp = "group_advantage";
constexpr int kThreads = 256, kThreadsOfOne = 1024;
constexpr int64_t kSamplesOfOne = 4096;  // the most that one block takes
constexpr int64_t kMostSamples = int64_t{1} << 31;

// The lane's sample in a row of 32, and which lanes beside it have the same leader.
struct Member {
  int64_t sample;
  uint32_t leader;  // kNobody: it does not count
  double score;
  int before;  // members of the run on lanes before this one
  bool last;   // of the run in this warp
};

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % simt::kWarpSize; }

// How many lanes before this one belong to its run, where runs begin at `heads`.
__device__ inline int since_head(unsigned heads) {
  const int lane = lane_index();
  return lane - 31 + __clz(static_cast<int>(heads & (kFullWarp >> (31 - lane))));
}

// Every row of samples that is this warp's, lane by lane, lanes beyond the last sample too.
template <typename Function>
__device__ void for_each_row(int64_t samples, const Function& function) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = first; i - lane_index() < samples; i += threads) function(i);
}

template <typename T, typename Function>
__device__ void for_each_member(const GroupParams<T>& p, const Workspace& w, const Function& function) {
  for_each_row(p.samples, [&](int64_t i) {
    Member m = {i, i < p.samples ? w.leaders[i] : kNobody, 0.0, 0, false};
    if (m.leader != kNobody) m.score = p.scores[i];
    if (!std::isfinite(m.score)) m.score = 0.0;  // a fault by now
    const uint32_t before = __shfl_up_sync(kFullWarp, m.leader, 1);
    const unsigned heads = __ballot_sync(kFullWarp, lane_index() == 0 || before != m.leader);
    m.before = since_head(heads);
    m.last = lane_index() == 31 || (heads >> (lane_index() + 1) & 1u) != 0;
    function(m);
  });
}

// The run's values up to this lane's, joined in any order.
template <typename Join>
__device__ unsigned long long joined(unsigned long long x, const Member& m, const Join& join) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned long long other = __shfl_up_sync(kFullWarp, x, step);
    if (m.before >= step) x = join(x, other);
  }
  return x;
}
__device__ inline unsigned long long largest(double x, const Member& m) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(fabs(x)));
  return joined(bits, m, [](auto a, auto b) { return a > b ? a : b; });
}
__device__ inline unsigned long long summed(int64_t x, const Member& m) {
  return joined(static_cast<unsigned long long>(x), m, [](auto a, auto b) { return a + b; });
}

// Steele, Lea and Flood 2014.
__device__ inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Whoever leads the sample's group: itself, if it comes first.
template <typename T>
__device__ uint32_t leader_of(const GroupParams<T>& p, const Workspace& w, int64_t places, int64_t sample) {
  const int64_t group = p.groups[sample];
  for (auto place = static_cast<int64_t>(mixed(static_cast<uint64_t>(group)));; ++place) {
    const uint32_t found = atomicCAS(&w.table[place & (places - 1)], kNobody, static_cast<uint32_t>(sample));
    if (found == kNobody) return static_cast<uint32_t>(sample);
    if (p.groups[found] == group) return found;
  }
}

// ---- the passes ----

__device__ inline void clear(const Workspace& w, int64_t places) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < places; i += threads)
    w.table[i] = kNobody;
}

template <typename T>
__device__ void find_leaders(const GroupParams<T>& p, const Workspace& w, int64_t places) {
  for_each_row(p.samples, [&](int64_t i) {
    const bool counts = i < p.samples && (p.valid == nullptr || p.valid[i] != 0);
    const int64_t group = counts ? p.groups[i] : 0, before = __shfl_up_sync(kFullWarp, group, 1);
    const unsigned all = __ballot_sync(kFullWarp, counts);
    const bool follows = lane_index() > 0 && (all >> (lane_index() - 1) & 1u) != 0 && before == group;
    const bool leads = counts && !follows;
    uint32_t leader = kNobody;
    if (leads) leader = leader_of(p, w, places, i);
    if (leads && leader == i) w.records[i] = {};
    const unsigned heads = __ballot_sync(kFullWarp, leads || !counts);
    leader = __shfl_sync(kFullWarp, leader, lane_index() - since_head(heads));
    if (i < p.samples) w.leaders[i] = leader;
    if (counts && !std::isfinite(p.scores[i])) record_fault(p.fault, {FaultOp::kGroupAdvantage, i, 0});
  });
}

template <typename T>
__device__ void measure(const GroupParams<T>& p, const Workspace& w) {
  for_each_member(p, w, [&](const Member& m) {
    const unsigned long long most = largest(m.score, m);
    if (!m.last || m.leader == kNobody) return;
    atomicAdd(&w.records[m.leader].members, static_cast<uint32_t>(m.before + 1));
    atomicMax(&w.records[m.leader].most, most);
  });
}

template <typename T>
__device__ void add_up(const GroupParams<T>& p, const Workspace& w) {
  for_each_member(p, w, [&](const Member& m) {
    int64_t x = 0;
    if (m.leader != kNobody) {
      const Record& r = w.records[m.leader];
      x = rounded(m.score, exponent_of(r.most), r.members);
    }
    const unsigned long long total = summed(x, m);
    if (m.last && m.leader != kNobody) atomicAdd(&w.records[m.leader].total, total);
  });
}

template <typename T>
__device__ void measure_distances(const GroupParams<T>& p, const Workspace& w) {
  for_each_member(p, w, [&](const Member& m) {
    double distance = 0.0;
    if (m.leader != kNobody) distance = m.score - mean_of(w.records[m.leader]);
    const unsigned long long farthest = largest(distance, m);
    if (m.last && m.leader != kNobody) atomicMax(&w.records[m.leader].farthest, farthest);
  });
}

template <typename T>
__device__ void add_squares(const GroupParams<T>& p, const Workspace& w) {
  for_each_member(p, w, [&](const Member& m) {
    int64_t x = 0;
    if (m.leader != kNobody) {
      const Record& r = w.records[m.leader];
      const double distance = scalbn(m.score - mean_of(r), -exponent_of(r.farthest));
      x = rounded(distance * distance, 0, r.members);
    }
    const unsigned long long squares = summed(x, m);
    if (m.last && m.leader != kNobody) atomicAdd(&w.records[m.leader].squares, squares);
  });
}

template <typename T>
__device__ void compare(const GroupParams<T>& p, const Workspace& w) {
  for_each_member(p, w, [&](const Member& m) {
    if (m.sample >= p.samples) return;
    double advantage = 0.0;
    if (m.leader != kNobody && w.records[m.leader].members > 1) {
      const Record& r = w.records[m.leader];
      const double n = r.members;
      // s - mean of the others = (s - mean) n / (n - 1)
      double scale = p.baseline == GroupBaseline::kLeaveOneOut ? n / (n - 1.0) : 1.0;
      if (p.normalize_std) scale *= inverse_std(sum_of_squares(r) / (n - 1.0), p.eps, p.min_std);
      advantage = (m.score - mean_of(r)) * scale;
    }
    p.advantages[m.sample] = static_cast<T>(advantage);
  });
}

// ---- their launches ----

enum Pass : int { kClear, kFindLeaders, kMeasure, kAddUp, kMeasureDistances, kAddSquares, kCompare };

template <int kPass, typename T>
__device__ void run_pass(const GroupParams<T>& p, const Workspace& w, int64_t places) {
  if constexpr (kPass == kClear) clear(w, places);
  if constexpr (kPass == kFindLeaders) find_leaders(p, w, places);
  if constexpr (kPass == kMeasure) measure(p, w);
  if constexpr (kPass == kAddUp) add_up(p, w);
  if constexpr (kPass == kMeasureDistances) measure_distances(p, w);
  if constexpr (kPass == kAddSquares) add_squares(p, w);
  if constexpr (kPass == kCompare) compare(p, w);
}

template <int kPass, typename T>
__global__ void __launch_bounds__(kThreads) group_pass(GroupParams<T> p, Workspace w, int64_t places) {
  run_pass<kPass>(p, w, places);
}

template <typename T>
__global__ void __launch_bounds__(kThreadsOfOne)
    group_in_one_block(GroupParams<T> p, Workspace w, int64_t places) {
  run_pass<kClear>(p, w, places);
  __syncthreads();
  run_pass<kFindLeaders>(p, w, places);
  __syncthreads();
  run_pass<kMeasure>(p, w, places);
  __syncthreads();
  run_pass<kAddUp>(p, w, places);
  __syncthreads();
  if (p.normalize_std) {
    run_pass<kMeasureDistances>(p, w, places);
    __syncthreads();
    run_pass<kAddSquares>(p, w, places);
    __syncthreads();
  }
  run_pass<kCompare>(p, w, places);
}

template <typename T>
Status launch_passes(const GroupParams<T>& p, const Workspace& w, int64_t places, int multiprocessors) {
  const int64_t needed = (p.samples + kThreads - 1) / kThreads, most = int64_t{8} * multiprocessors;
  const auto blocks = static_cast<unsigned>(needed < most ? needed : most);
  using Kernel = void (*)(GroupParams<T>, Workspace, int64_t);
  const Kernel distances = p.normalize_std ? &group_pass<kMeasureDistances, T> : nullptr;
  const Kernel squares = p.normalize_std ? &group_pass<kAddSquares, T> : nullptr;
  for (const Kernel kernel : std::initializer_list<Kernel>{
           &group_pass<kClear, T>, &group_pass<kFindLeaders, T>, &group_pass<kMeasure, T>,
           &group_pass<kAddUp, T>, distances, squares, &group_pass<kCompare, T>}) {
    if (kernel == nullptr) continue;
    if (Status status =
            simt::launch({kOp, "group_pass"}, kernel, blocks, kThreads, 0, p.stream, p, w, places);
        !status.ok())
      return status;
  }
  return {};
}

}  // namespace

template <typename T>
Status group_advantage_cuda(const GroupParams<T>& p, void* workspace) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  if (p.samples < 0 || p.samples > kMostSamples)
    return invalid_argument(kOp, "scores", "[0, 2^31] samples", std::to_string(p.samples));
  if (p.samples == 0) return {};
  if (p.fault == nullptr) return invalid_argument(kOp, "fault", "a word on the device", "none");
  if (workspace == nullptr) return invalid_argument(kOp, "workspace", "memory on the device", "none");
  const Workspace w = workspace_at(workspace, p.samples);
  const int64_t places = num_places(p.samples);
  if (p.samples > kSamplesOfOne) return launch_passes(p, w, places, device.multiprocessors);
  return simt::launch({kOp, "group_in_one_block"}, group_in_one_block<T>, 1, kThreadsOfOne, 0, p.stream, p, w,
                      places);
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
