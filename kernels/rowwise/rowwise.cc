// SPDX-License-Identifier: Apache-2.0
#include "kernels/rowwise/rowwise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/rowwise/rowwise_cuda.h"
#include "kernels/rowwise/rowwise_tier.h"

namespace earnest::rowwise {
namespace {

constexpr int64_t kTaskElements = 16 * 1024;  // below this, waking another thread costs more than it saves
constexpr int64_t kGradientRows = 64;         // one partial sum of grad_weight each, joined in order

Status tier_in_use(CpuTier* tier) { return current_cpu_tier(tier, CpuTier::kAvx512); }

template <typename Kernels>
Kernels chosen(CpuTier tier, Kernels (*scalar)(), [[maybe_unused]] Kernels (*avx2)(),
               [[maybe_unused]] Kernels (*avx512)()) {
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx512) return avx512();
  if (tier == CpuTier::kAvx2) return avx2();
#endif
  (void)tier;
  return scalar();
}

#if defined(__x86_64__)
#define EARNEST_ROWWISE_CHOOSE(tier, ...) \
  chosen(tier, &scalar::__VA_ARGS__, &avx2::__VA_ARGS__, &avx512::__VA_ARGS__)
#else
#define EARNEST_ROWWISE_CHOOSE(tier, ...) \
  chosen(tier, &scalar::__VA_ARGS__, &scalar::__VA_ARGS__, &scalar::__VA_ARGS__)
#endif

Status check_size(const char* op, int64_t rows, int64_t width) {
  if (rows < 0) return invalid_argument(op, "rows", "at least 0", std::to_string(rows));
  if (width < 1) return invalid_argument(op, "width", "at least 1", std::to_string(width));
  if (width > std::numeric_limits<int64_t>::max() / 16 / std::max<int64_t>(rows, 1)) {
    return invalid_argument(op, "rows", "an array that fits an address space",
                            std::to_string(rows) + " rows of " + std::to_string(width));
  }
  return {};
}

template <typename Body>
void for_rows(int64_t rows, int64_t width, const Body& body) {
  const int64_t step = std::max<int64_t>(1, kTaskElements / width);
  const int64_t tasks = (rows + step - 1) / step;
  parallel_for(tasks, [&](int64_t task) { body(task * step, std::min(rows, (task + 1) * step)); });
}

template <typename Stored>
Status kernels_for(TierKernels<Stored>* kernels) {
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *kernels = EARNEST_ROWWISE_CHOOSE(tier, kernels<Stored>);
  return {};
}

template <typename Fused, typename Apart>
Status kernels_for(RotaryKernels<Fused, Apart>* kernels) {
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *kernels = EARNEST_ROWWISE_CHOOSE(tier, rotary_kernels<Fused, Apart>);
  return {};
}

// Backward passes run on the CPU alone.
Status check_backward(const char* op, Device device) {
  std::string name;
  if (Status status = which(device, &name); !status.ok() || device == Device::kCpu) return status;
  return unsupported(op, "device", "cpu (on cuda there is no backward pass yet)", "cuda");
}

template <typename Fused, typename Apart>
Status check_rotary(const Rotary<Fused, Apart>& job) {
  constexpr int64_t kMost = 1 << 20;
  for (int64_t size : {job.heads, job.kv_heads, job.dim}) {
    if (size >= 1 && size <= kMost) continue;
    return invalid_argument("rotary", "qkv", "heads, kv_heads and dim in [1, 2^20]", std::to_string(size));
  }
  if (job.dim % 2 != 0) return invalid_argument("rotary", "dim", "an even number", std::to_string(job.dim));
  const int64_t width = (job.heads + 2 * job.kv_heads) * job.dim;
  return check_size("rotary", job.rows, width);
}

template <typename Fused, typename Apart>
Status check_slots(const Rotary<Fused, Apart>& job) {
  for (int64_t i = 0; job.slots != nullptr && i < job.rows; ++i) {
    if (job.slots[i] >= 0 && job.slots[i] < job.places) continue;
    return invalid_argument("rotary", "slots", "rows in [0, " + std::to_string(job.places) + ")",
                            std::to_string(job.slots[i]));
  }
  return {};
}

// run(job), which is there for float and BFloat16.
template <typename Stored, typename Job, typename Run>
Status on_cuda(const char* op, const Job& job, const Run& run) {
  std::string name;
  if (Status status = which_cuda(&name); !status.ok()) return status;
  if constexpr (std::is_same_v<Stored, double>) {
    return unsupported(op, "x", "float32 or bfloat16 on cuda", "float64");
  } else {
    return run(job);
  }
}

template <typename Stored>
Status check_norm(const RmsNorm<Stored>& job) {
  if (Status status = check_size("rms_norm", job.rows, job.width); !status.ok()) return status;
  if (job.eps > 0 && std::isfinite(job.eps)) return {};
  return invalid_argument("rms_norm", "eps", "a finite number above 0", std::to_string(job.eps));
}

}  // namespace

template <typename Stored>
Status rms_norm(const RmsNorm<Stored>& job, Device device) {
  if (Status status = check_norm(job); !status.ok()) return status;
  if (device == Device::kCuda)
    return on_cuda<Stored>("rms_norm", job, [](const auto& one) { return rms_norm_cuda(one); });
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_rows(job.rows, job.width, [&](int64_t begin, int64_t end) { kernels.rms_norm(job, begin, end); });
  return {};
}

template <typename Stored>
Status rms_norm_backward(const RmsNorm<Stored>& job, Device device) {
  using T = Arithmetic<Stored>;
  if (Status status = check_backward("rms_norm", device); !status.ok()) return status;
  if (Status status = check_norm(job); !status.ok()) return status;
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  const int64_t blocks = (job.rows + kGradientRows - 1) / kGradientRows;
  std::vector<T> partial(static_cast<size_t>(blocks * job.width), T(0));
  parallel_for(blocks, [&](int64_t block) {
    const int64_t begin = block * kGradientRows, end = std::min(job.rows, begin + kGradientRows);
    kernels.rms_norm_backward(job, begin, end, partial.data() + block * job.width);
  });
  std::fill_n(job.grad_weight, job.width, T(0));
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t j = 0; j < job.width; ++j)
      job.grad_weight[j] += partial[static_cast<size_t>(block * job.width + j)];
  }
  return {};
}

template <typename Fused, typename Apart>
Status rotary(const Rotary<Fused, Apart>& job, Device device) {
  if (Status status = check_rotary(job); !status.ok()) return status;
  if (device == Device::kCuda)
    return on_cuda<Fused>("rotary", job, [](const auto& one) { return rotary_cuda(one); });
  if (Status status = check_slots(job); !status.ok()) return status;
  RotaryKernels<Fused, Apart> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  const int64_t width = (job.heads + 2 * job.kv_heads) * job.dim;
  for_rows(job.rows, width, [&](int64_t begin, int64_t end) { kernels.forward(job, begin, end); });
  return {};
}

template <typename Fused, typename Apart>
Status rotary_backward(const Rotary<Fused, Apart>& job, Device device) {
  if (Status status = check_backward("rotary", device); !status.ok()) return status;
  if (Status status = check_rotary(job); !status.ok()) return status;
  RotaryKernels<Fused, Apart> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  const int64_t width = (job.heads + 2 * job.kv_heads) * job.dim;
  for_rows(job.rows, width, [&](int64_t begin, int64_t end) { kernels.backward(job, begin, end); });
  return {};
}

template <typename Stored>
Status swiglu(const SwiGlu<Stored>& job, Device device) {
  if (Status status = check_size("swiglu", job.rows, job.width); !status.ok()) return status;
  if (device == Device::kCuda)
    return on_cuda<Stored>("swiglu", job, [](const auto& one) { return swiglu_cuda(one); });
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_rows(job.rows, job.width, [&](int64_t begin, int64_t end) { kernels.swiglu(job, begin, end); });
  return {};
}

template <typename Stored>
Status swiglu_backward(const SwiGlu<Stored>& job, Device device) {
  if (Status status = check_backward("swiglu", device); !status.ok()) return status;
  if (Status status = check_size("swiglu", job.rows, job.width); !status.ok()) return status;
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_rows(job.rows, job.width,
           [&](int64_t begin, int64_t end) { kernels.swiglu_backward(job, begin, end); });
  return {};
}

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) return which_cuda(name);
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

Status fault(FaultWord word) {
  if (word == kNoFault) return {};
  return invalid_argument("rotary", "slots", "rows of the cache",
                          "another at row " + std::to_string(fault_of(word).index));
}

#define EARNEST_ROWWISE_INSTANCES(Stored)                            \
  template Status rms_norm(const RmsNorm<Stored>&, Device);          \
  template Status rms_norm_backward(const RmsNorm<Stored>&, Device); \
  template Status swiglu(const SwiGlu<Stored>&, Device);             \
  template Status swiglu_backward(const SwiGlu<Stored>&, Device);
EARNEST_ROWWISE_INSTANCES(float)
EARNEST_ROWWISE_INSTANCES(double)
EARNEST_ROWWISE_INSTANCES(BFloat16)
#define EARNEST_ROTARY_INSTANCES(Fused, Apart)                 \
  template Status rotary(const Rotary<Fused, Apart>&, Device); \
  template Status rotary_backward(const Rotary<Fused, Apart>&, Device);
EARNEST_ROTARY_INSTANCES(float, float)
EARNEST_ROTARY_INSTANCES(double, double)
EARNEST_ROTARY_INSTANCES(BFloat16, BFloat16)
EARNEST_ROTARY_INSTANCES(BFloat16, float)

}  // namespace earnest::rowwise
