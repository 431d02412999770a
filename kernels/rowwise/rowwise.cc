// SPDX-License-Identifier: Apache-2.0
#include "kernels/rowwise/rowwise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
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
Status prepare(const char* op, int64_t rows, int64_t width, Device device, TierKernels<Stored>* kernels) {
  if (Status status = check_device(device); !status.ok()) return status;
  if (Status status = check_size(op, rows, width); !status.ok()) return status;
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *kernels = EARNEST_ROWWISE_CHOOSE(tier, kernels<Stored>);
  return {};
}

template <typename Fused, typename Apart>
Status prepare_rotary(const Rotary<Fused, Apart>& job, Device device, RotaryKernels<Fused, Apart>* kernels) {
  if (Status status = check_device(device); !status.ok()) return status;
  constexpr int64_t kMost = 1 << 20;
  for (int64_t size : {job.heads, job.kv_heads, job.dim}) {
    if (size >= 1 && size <= kMost) continue;
    return invalid_argument("rotary", "qkv", "heads, kv_heads and dim in [1, 2^20]", std::to_string(size));
  }
  if (job.dim % 2 != 0) return invalid_argument("rotary", "dim", "an even number", std::to_string(job.dim));
  const int64_t width = (job.heads + 2 * job.kv_heads) * job.dim;
  if (Status status = check_size("rotary", job.rows, width); !status.ok()) return status;
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *kernels = EARNEST_ROWWISE_CHOOSE(tier, rotary_kernels<Fused, Apart>);
  return {};
}

template <typename Stored>
Status check_eps(const RmsNorm<Stored>& job) {
  if (job.eps > 0 && std::isfinite(job.eps)) return {};
  return invalid_argument("rms_norm", "eps", "a finite number above 0", std::to_string(job.eps));
}

}  // namespace

template <typename Stored>
Status rms_norm(const RmsNorm<Stored>& job, Device device) {
  TierKernels<Stored> kernels;
  if (Status status = prepare("rms_norm", job.rows, job.width, device, &kernels); !status.ok()) return status;
  if (Status status = check_eps(job); !status.ok()) return status;
  for_rows(job.rows, job.width, [&](int64_t begin, int64_t end) { kernels.rms_norm(job, begin, end); });
  return {};
}

template <typename Stored>
Status rms_norm_backward(const RmsNorm<Stored>& job, Device device) {
  using T = Arithmetic<Stored>;
  TierKernels<Stored> kernels;
  if (Status status = prepare("rms_norm", job.rows, job.width, device, &kernels); !status.ok()) return status;
  if (Status status = check_eps(job); !status.ok()) return status;
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
  RotaryKernels<Fused, Apart> kernels;
  if (Status status = prepare_rotary(job, device, &kernels); !status.ok()) return status;
  const int64_t width = (job.heads + 2 * job.kv_heads) * job.dim;
  for_rows(job.rows, width, [&](int64_t begin, int64_t end) { kernels.forward(job, begin, end); });
  return {};
}

template <typename Fused, typename Apart>
Status rotary_backward(const Rotary<Fused, Apart>& job, Device device) {
  RotaryKernels<Fused, Apart> kernels;
  if (Status status = prepare_rotary(job, device, &kernels); !status.ok()) return status;
  const int64_t width = (job.heads + 2 * job.kv_heads) * job.dim;
  for_rows(job.rows, width, [&](int64_t begin, int64_t end) { kernels.backward(job, begin, end); });
  return {};
}

template <typename Stored>
Status swiglu(const SwiGlu<Stored>& job, Device device) {
  TierKernels<Stored> kernels;
  if (Status status = prepare("swiglu", job.rows, job.width, device, &kernels); !status.ok()) return status;
  for_rows(job.rows, job.width, [&](int64_t begin, int64_t end) { kernels.swiglu(job, begin, end); });
  return {};
}

template <typename Stored>
Status swiglu_backward(const SwiGlu<Stored>& job, Device device) {
  TierKernels<Stored> kernels;
  if (Status status = prepare("swiglu", job.rows, job.width, device, &kernels); !status.ok()) return status;
  for_rows(job.rows, job.width,
           [&](int64_t begin, int64_t end) { kernels.swiglu_backward(job, begin, end); });
  return {};
}

Status which(Device device, std::string* name) {
  if (Status status = check_device(device); !status.ok()) return status;
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
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
