// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: what it takes, the order of tiles, and the launches.
#include <algorithm>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_paths.h"
#include "kernels/common/cuda_path.h"
#include "kernels/common/simt.h"

namespace earnest::attention {
namespace {

using namespace gpu;

// ---- the order of tiles: a stable sort by class, of the longest first, by counting ----

constexpr int kThreads = 128;
constexpr int kPitch = kClasses + 1;  // of a thread's counts: those of one class lie in different banks

struct ByRows {  // tiles of rows
  static __device__ Tile tile(const Params& p, const Plan& plan, int64_t slot) {
    return tile_of(p, plan, slot);
  }
  static __device__ int kind(const Params& p, const Plan& plan, const Tile& tile) {
    return class_of(p, plan, tile);
  }
};
struct ByKeys {  // tiles of keys
  static __device__ Tile tile(const Params& keys, const Plan& plan, int64_t slot) {
    return key_tile_of(keys, plan, slot);
  }
  static __device__ int kind(const Params& p, const Plan& plan, const Tile& tile) {
    return class_of_keys(p, plan, tile);
  }
};

// One block. Each thread takes a range of slots: it counts how many of each class it has, learns where its
// first of each class belongs, and lists them there. `listed`: the problem whose rows tiles are of.
template <typename By>
__global__ void __launch_bounds__(kThreads)
    order_tiles(const Params p, const Params listed, const Plan plan, Tile* const order) {
  EARNEST_SHARED(int64_t, first, kClasses);
  EARNEST_SHARED(uint32_t, counts, kThreads* kPitch);
  const int thread = static_cast<int>(threadIdx.x), own = thread * kPitch;
  const int64_t share = blocks_of(plan.slots, kThreads);
  const int64_t begin = between(0, thread * share, plan.slots), end = between(0, begin + share, plan.slots);

  for (int c = 0; c < kClasses; ++c) counts[own + c] = 0;
  for (int64_t slot = begin; slot < end; ++slot)
    ++counts[own + By::kind(p, plan, By::tile(listed, plan, slot))];
  __syncthreads();

  if (thread < kClasses) {  // a class each: what the threads before have of it
    uint32_t sum = 0;
    for (int t = 0; t < kThreads; ++t) {
      const uint32_t count = counts[t * kPitch + thread];
      counts[t * kPitch + thread] = sum;
      sum += count;
    }
    first[thread] = sum;
  }
  __syncthreads();
  int64_t longer = 0;
  for (int c = thread + 1; c < kClasses; ++c) longer += first[c];
  __syncthreads();
  if (thread < kClasses) first[thread] = longer;
  __syncthreads();

  for (int64_t slot = begin; slot < end; ++slot) {
    const Tile tile = By::tile(listed, plan, slot);
    const int c = By::kind(p, plan, tile);
    order[first[c] + counts[own + c]++] = tile;
  }
}

}  // namespace

namespace gpu {

Status order_rows(const Params& p, const Plan& plan, Tile* order) {
  return simt::launch({kOp, "order_tiles"}, order_tiles<ByRows>, dim3(1), dim3(kThreads), 0, p.stream, p, p,
                      plan, order);
}

Status order_keys(const Params& p, const Plan& plan, Tile* order) {
  return simt::launch({kOp, "order_tiles"}, order_tiles<ByKeys>, dim3(1), dim3(kThreads), 0, p.stream, p,
                      with_keys_as_rows(p), plan, order);
}

Status check_slots(const char* argument, const Params& p, const Plan& plan) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid: of 64 rows, 2^37 numbers at the least
  const int64_t most = kMostBlocks / p.kv_heads, further = p.most_keys > 0 ? most_pieces(p) - 1 : 0;
  if (plan.slots <= most && further <= (most - plan.slots) / std::max<int64_t>(p.sequences, 1)) return {};
  return unsupported(kOp, argument, "fewer than 2^31 tiles and key heads on cuda",
                     std::to_string(plan.slots + p.sequences * further) + " x " + std::to_string(p.kv_heads));
}

}  // namespace gpu

// Whatever either path takes the other one takes too.
Status settle_path(Params* p) {
  if (Status status = cuda::choose_path(kOp, {.asked = p->path}, &p->path); !status.ok()) return status;
  if (p->type != Type::kBFloat16 && p->type != Type::kFloat16)
    return unsupported(kOp, "q", "bfloat16 or float16 on cuda",
                       p->type == Type::kFloat32 ? "float32" : "float64");
  if (p->dim != 64 && p->dim != 128)
    return unsupported(kOp, "q", "a head size of 64 or 128 on cuda", std::to_string(p->dim));
  return {};
}

namespace {

size_t order_bytes(const Plan& plan) {
  return plan.ordered ? static_cast<size_t>(plan.slots) * sizeof(Tile) : 0;
}

}  // namespace

size_t workspace_size_cuda(const Params& p) {
  const int64_t floats = p.most_keys > 0 ? parts_floats(p) : 0;
  return order_bytes(plan_of(p)) + static_cast<size_t>(floats) * sizeof(float);
}

Status forward_cuda(const Params& p, const Output& output) {
  const Plan plan = plan_of(p);
  if (plan.slots == 0) return {};
  if (Status status = check_slots("q", p, plan); !status.ok()) return status;
  auto* const order = plan.ordered ? static_cast<Tile*>(p.workspace) : nullptr;
  if (plan.ordered) {
    if (Status status = order_rows(p, plan, order); !status.ok()) return status;
  }
  const bool by_sm90a = p.path == CudaPath::kSm90a && p.tokens_k > 0;  // TMA has a key to bring
  if (p.most_keys == 0 || p.tokens_k == 0)
    return (by_sm90a ? sm90a::forward : sm80::forward)(p, output, plan, order);
  const Parts parts = parts_at(p, static_cast<char*>(p.workspace) + order_bytes(plan));
  const auto forward_in_pieces = by_sm90a ? sm90a::forward_in_pieces : sm80::forward_in_pieces;
  if (Status status = forward_in_pieces(p, output, plan, order, parts); !status.ok()) return status;
  return join_parts(p, output, plan, parts);
}

}  // namespace earnest::attention
