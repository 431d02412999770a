// SPDX-License-Identifier: Apache-2.0
#include "kernels/frames/frames.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/frames/frames_cuda.h"
#include "kernels/frames/frames_tier.h"

namespace earnest::frames {
namespace {

constexpr int64_t kTaskValues = 16 * 1024;  // below this, waking another thread costs more than it saves
constexpr int64_t kGradientRows = 64;       // one partial sum of a weight's gradient each, joined in order

Status tier_in_use(CpuTier* tier) { return current_cpu_tier(tier, CpuTier::kAvx512); }

template <typename Stored>
TierKernels<Stored> kernels_of([[maybe_unused]] CpuTier tier) {
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx512) return avx512::kernels<Stored>();
  if (tier == CpuTier::kAvx2) return avx2::kernels<Stored>();
#endif
  return scalar::kernels<Stored>();
}

Status check_size(const char* op, int64_t rows, int64_t width) {
  if (rows < 0) return invalid_argument(op, "rows", "at least 0", std::to_string(rows));
  if (width < 1) return invalid_argument(op, "width", "at least 1", std::to_string(width));
  if (width > std::numeric_limits<int64_t>::max() / 32 / std::max<int64_t>(rows, 1)) {
    return invalid_argument(op, "rows", "an array that fits an address space",
                            std::to_string(rows) + " rows of " + std::to_string(width));
  }
  return {};
}

template <typename Stored>
Status kernels_for(TierKernels<Stored>* kernels) {
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *kernels = kernels_of<Stored>(tier);
  return {};
}

template <typename Stored>
Status check(const LayerNorm<Stored>& job) {
  if (Status status = check_size("layer_norm", job.rows, job.width); !status.ok()) return status;
  if (job.eps > 0 && std::isfinite(job.eps)) return {};
  return invalid_argument("layer_norm", "eps", "a finite number above 0", std::to_string(job.eps));
}

// Backward passes run on the CPU alone.
Status check_backward(const char* op, Device device) {
  std::string name;
  if (Status status = which(device, &name); !status.ok() || device == Device::kCpu) return status;
  return unsupported(op, "device", "cpu (on cuda there is no backward pass yet)", "cuda");
}

// The job on the device, which knows float and BFloat16.
template <typename Stored, typename Job>
Status on_cuda(const char* op, const Job& job) {
  std::string name;
  if (Status status = which_cuda(&name); !status.ok()) return status;
  if constexpr (std::is_same_v<Stored, double>) {
    return unsupported(op, "x", "float32 or bfloat16 on cuda", "float64");
  } else {
    return run_cuda(job);
  }
}

// body(begin, end) over parts of [0, rows) that are worth a task each; rows as wide as `width` values.
template <typename Body>
void for_parts(int64_t rows, int64_t width, const Body& body) {
  const int64_t step = std::max<int64_t>(1, kTaskValues / width);
  const int64_t tasks = (rows + step - 1) / step;
  parallel_for(tasks, [&](int64_t task) { body(task * step, std::min(rows, (task + 1) * step)); });
}

}  // namespace

template <typename Stored>
Status run(const LayerNorm<Stored>& job, Device device) {
  if (Status status = check(job); !status.ok()) return status;
  if (device == Device::kCuda) return on_cuda<Stored>("layer_norm", job);
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_parts(job.rows, job.width, [&](int64_t begin, int64_t end) { kernels.layer_norm(job, begin, end); });
  return {};
}

template <typename Stored>
Status run_backward(const LayerNorm<Stored>& job, Device device) {
  using T = Arithmetic<Stored>;
  if (Status status = check_backward("layer_norm", device); !status.ok()) return status;
  if (Status status = check(job); !status.ok()) return status;
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  const int64_t blocks = (job.rows + kGradientRows - 1) / kGradientRows, both = 2 * job.width;
  std::vector<T> partial(static_cast<size_t>(blocks * both), T(0));
  parallel_for(blocks, [&](int64_t block) {
    const int64_t begin = block * kGradientRows, end = std::min(job.rows, begin + kGradientRows);
    T* sums = partial.data() + block * both;
    kernels.layer_norm_backward(job, begin, end, sums, sums + job.width);
  });
  std::fill_n(job.grad_weight, job.width, T(0));
  std::fill_n(job.grad_bias, job.width, T(0));
  for (int64_t block = 0; block < blocks; ++block) {
    const T* sums = partial.data() + block * both;
    for (int64_t j = 0; j < job.width; ++j) {
      job.grad_weight[j] += sums[j];
      job.grad_bias[j] += sums[job.width + j];
    }
  }
  return {};
}

template <typename Stored>
Status run(const Gelu<Stored>& job, Device device) {
  if (Status status = check_size("gelu", job.count, 1); !status.ok()) return status;
  if (device == Device::kCuda) return on_cuda<Stored>("gelu", job);
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_parts(job.count, 1,
            [&](int64_t begin, int64_t end) { kernels.gelu(job.x + begin, job.y + begin, end - begin); });
  return {};
}

template <typename Stored>
Status run_backward(const Gelu<Stored>& job, Device device) {
  if (Status status = check_backward("gelu", device); !status.ok()) return status;
  if (Status status = check_size("gelu", job.count, 1); !status.ok()) return status;
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_parts(job.count, 1, [&](int64_t begin, int64_t end) {
    kernels.gelu_backward(job.x + begin, job.grad_y + begin, job.grad_x + begin, end - begin);
  });
  return {};
}

template <typename Stored>
Status run(const Relu<Stored>& job, Device device) {
  if (Status status = check_size("relu", job.count, 1); !status.ok()) return status;
  if (device == Device::kCuda) return on_cuda<Stored>("relu", job);
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_parts(job.count, 1,
            [&](int64_t begin, int64_t end) { kernels.relu(job.x + begin, job.y + begin, end - begin); });
  return {};
}

template <typename Stored>
Status run(const Add<Stored>& job, Device device) {
  if (Status status = check_size("add", job.count, 1); !status.ok()) return status;
  if (device == Device::kCuda) return on_cuda<Stored>("add", job);
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_parts(job.count, 1, [&](int64_t begin, int64_t end) {
    kernels.add(job.x + begin, job.y + begin, job.sum + begin, end - begin);
  });
  return {};
}

template <typename Stored>
Status run(const AveragePool<Stored>& job, Device device) {
  if (Status status = check_size("average_pool", job.rows, job.width); !status.ok()) return status;
  if (device == Device::kCuda) return on_cuda<Stored>("average_pool", job);
  TierKernels<Stored> kernels;
  if (Status status = kernels_for(&kernels); !status.ok()) return status;
  for_parts(job.rows, job.width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Stored* pair = job.x + 2 * i * job.width;
      kernels.add(pair, pair + job.width, job.y + i * job.width, job.width);
      kernels.halve(job.y + i * job.width, job.width);
    }
  });
  return {};
}

template <typename Stored>
Status run(const Transpose<Stored>& job, Device device) {
  if (Status status = check_size("transpose", job.rows, job.width); !status.ok()) return status;
  if (device == Device::kCuda) return on_cuda<Stored>("transpose", job);
  for_parts(job.rows, job.width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < job.width; ++j) narrow(job.x[j * job.rows + i], &job.y[i * job.width + j]);
    }
  });
  return {};
}

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) return which_cuda(name);
  CpuTier tier;
  if (Status status = tier_in_use(&tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

#define EARNEST_FRAMES_INSTANCES(Stored)                          \
  template Status run(const LayerNorm<Stored>&, Device);          \
  template Status run_backward(const LayerNorm<Stored>&, Device); \
  template Status run(const Gelu<Stored>&, Device);               \
  template Status run_backward(const Gelu<Stored>&, Device);      \
  template Status run(const Relu<Stored>&, Device);               \
  template Status run(const Add<Stored>&, Device);                \
  template Status run(const AveragePool<Stored>&, Device);
EARNEST_FRAMES_INSTANCES(float)
EARNEST_FRAMES_INSTANCES(double)
EARNEST_FRAMES_INSTANCES(BFloat16)
template Status run(const Transpose<float>&, Device);
template Status run(const Transpose<BFloat16>&, Device);

}  // namespace earnest::frames
