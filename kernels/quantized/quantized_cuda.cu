// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: which path, what it is given, and float32 rows as sums of three bfloat16.
#include <cmath>
#include <string>

#include "kernels/common/bfloat16.h"
#include "kernels/common/cuda.h"
#include "kernels/common/simt.h"
#include "kernels/quantized/quantized_cuda.h"
#include "kernels/quantized/quantized_paths.h"

namespace earnest::quantized {
namespace {

using namespace gpu;

constexpr int kPlanes = 3, kThreads = 256;
constexpr size_t kAlignment = 16;

// What is left of x goes through the upper half of its bits three times: 24 bits are three times 8, so that
// the three are x exactly (but for parts below 1e-38). What is not finite stands in the first alone.
__global__ void __launch_bounds__(kThreads)
    split(const float* x, int64_t rows, int64_t inputs, int64_t pitch, BFloat16* planes) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x, row = index / pitch, k = index % pitch;
  if (row >= rows) return;
  float left = k < inputs ? x[row * inputs + k] : 0;
  const bool finite = fabsf(left) <= 3.402823466e38f;
  for (int plane = 0; plane < kPlanes; ++plane) {
    BFloat16 part;
    if (finite) {
      part.bits = static_cast<uint16_t>(__float_as_uint(left) >> 16);
      left -= widen(part);
    } else {
      narrow(plane == 0 ? left : 0.0f, &part);
    }
    planes[plane * rows * pitch + index] = part;
  }
}

int64_t pitch_of(const Product& p) { return blocks_of(p.inputs, 8) * 8; }

Status choose_path(const Product& p, int64_t outputs, const cuda::Properties& device, CudaPath* path) {
  if (p.activations != Activations::kExact) return unsupported(kOp, "activations", "exact on cuda", "int8");
  *path = p.path;
  if (p.path == CudaPath::kBest)
    *path = is_few(p.rows, outputs, device.multiprocessors) ? CudaPath::kFew : CudaPath::kSm80;
  return {};
}

Status check_arrays(const Product& p, CudaPath path, int64_t outputs) {
  for (int64_t i = 0; i < p.count; ++i) {
    const auto past = reinterpret_cast<uintptr_t>(p.parts[i].packed) % 16;
    if (past != 0)
      return invalid_argument(kOp, "packed", "memory on a 16-byte boundary",
                              std::to_string(past) + " bytes past one");
  }
  // Blocks of a launch are counted in 31 bits, in the second direction in 16; each part may begin a new one.
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  const bool fits =
      path == CudaPath::kFew
          ? blocks_of(outputs, kPair) + p.count <= kMost && blocks_of(p.rows, 8) < 65536
          : blocks_of(p.rows, kTileRows) <= kMost / (blocks_of(outputs, kTileOutputs) + p.count);
  if (fits && p.rows <= kMost * kThreads / pitch_of(p)) return {};
  return unsupported(kOp, "rows", "fewer blocks on cuda than 2^31 (path few: 524,280 rows)",
                     std::to_string(p.rows) + " x " + std::to_string(outputs));
}

int64_t outputs_of(const Product& p) {
  int64_t outputs = 0;
  for (int64_t i = 0; i < p.count; ++i) outputs += p.parts[i].outputs;
  return outputs;
}

Job job_of(const Product& p, int64_t outputs) {
  Job job = {};
  job.left = static_cast<const BFloat16*>(p.left);
  job.pitch = p.inputs;
  job.planes = 1;
  job.wide = reinterpret_cast<uintptr_t>(p.left) % 16 == 0 && p.inputs % 8 == 0;
  job.float32 = p.type == Type::kFloat32;
  job.output = p.output;
  job.rows = p.rows, job.inputs = p.inputs, job.outputs = outputs;
  job.panel_bytes = panel_bytes({p.codes, kPanel, p.inputs});
  job.count = static_cast<int>(p.count);
  int64_t first = 0;
  for (int i = 0; i < job.count; ++i) {
    job.parts[i] = {static_cast<const unsigned char*>(p.parts[i].packed), p.parts[i].bias, p.parts[i].outputs,
                    first, 0};
    first += p.parts[i].outputs;
  }
  return job;
}

// The job reads the planes of x from then on.
Status split_rows(const Product& p, void* workspace, Job* job) {
  const int64_t pitch = pitch_of(p), count = p.rows * pitch;
  auto* const planes = reinterpret_cast<BFloat16*>((reinterpret_cast<uintptr_t>(workspace) + kAlignment - 1) /
                                                   kAlignment * kAlignment);
  job->left = planes;
  job->pitch = pitch, job->plane = count;
  job->planes = kPlanes;
  job->wide = true;
  return simt::launch({kOp, "split"}, split, dim3(static_cast<unsigned>(blocks_of(count, kThreads))),
                      dim3(kThreads), 0, p.stream, static_cast<const float*>(p.left), p.rows, p.inputs, pitch,
                      planes);
}

template <int kBits>
Status run_path(CudaPath path, const Job& job, const cuda::Properties& device, void* stream) {
  return path == CudaPath::kFew ? run_few<kBits>(job, device.shared_bytes, stream)
                                : run_tiles<kBits>(job, stream);
}

}  // namespace

Status which_cuda(const Product& p, int64_t outputs, std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  CudaPath path;
  if (Status status = choose_path(p, outputs, device, &path); !status.ok()) return status;
  *name = path == CudaPath::kFew ? "cuda/few" : "cuda/sm80";
  return {};
}

size_t workspace_size_cuda(const Product& p) {
  if (p.type != Type::kFloat32 || p.rows == 0) return 0;
  return kAlignment + static_cast<size_t>(kPlanes * p.rows * pitch_of(p)) * sizeof(BFloat16);
}

Status run_cuda(const Product& p, void* workspace) {
  const int64_t outputs = outputs_of(p);
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  CudaPath path;
  if (Status status = choose_path(p, outputs, device, &path); !status.ok()) return status;
  if (Status status = check_arrays(p, path, outputs); !status.ok()) return status;
  Job job = job_of(p, outputs);
  if (p.type == Type::kFloat32) {
    if (Status status = split_rows(p, workspace, &job); !status.ok()) return status;
  }
  return p.codes == Codes::kInt8 ? run_path<8>(path, job, device, p.stream)
                                 : run_path<4>(path, job, device, p.stream);
}

}  // namespace earnest::quantized
