// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cuda_path.h"

#include <atomic>
#include <cstdlib>

namespace earnest {
namespace {

constexpr const char* kVariable = "EARNEST_CUDA_TIER";

std::atomic<CudaPath> forced_tier{CudaPath::kBest};

Status parse_tier(const std::string& name, CudaPath* path) {
  for (const CudaPath candidate : {CudaPath::kSm80, CudaPath::kSm90a}) {
    if (name != name_of(candidate)) continue;
    *path = candidate;
    return {};
  }
  return invalid_argument("cuda_tier", kVariable, "sm80 or sm90a", "'" + name + "'");
}

}  // namespace

const char* name_of(CudaPath path) {
  return path == CudaPath::kSm90a ? "sm90a" : path == CudaPath::kSm80 ? "sm80" : "best";
}

Status force_cuda_tier(const std::string& name) {
  CudaPath path = CudaPath::kBest;
  if (!name.empty()) {
    if (Status status = parse_tier(name, &path); !status.ok()) return status;
  }
  forced_tier = path;
  return {};
}

Status forced_cuda_tier(CudaPath* path) {
  *path = forced_tier;
  if (*path != CudaPath::kBest) return {};
  static const char* environment = std::getenv(kVariable);
  if (environment == nullptr || *environment == '\0') return {};
  return parse_tier(environment, path);
}

namespace cuda {

Status choose_path(const char* op, const Properties& device, const PathRequest& request, CudaPath forced,
                   CudaPath* path, CudaPath last_met) {
  const bool is_asked = request.asked != CudaPath::kBest, lacks_code = request.highest != CudaPath::kSm90a;
  // An environment that asks for what is not there is as wrong as one that says an unknown word: who goes by
  // torch's operators where a kernel is unsupported does not do so then.
  const auto refuse = [&](const std::string& expected, const std::string& got) {
    return is_asked ? unsupported(op, "path", expected, got) : invalid_argument(op, kVariable, expected, got);
  };
  *path = is_asked ? request.asked : forced;
  if (*path == CudaPath::kSm90a && !device.runs_sm90a) {
    return refuse("sm90a on compute capability 9.0",
                  "compute capability " + std::to_string(device.major) + "." + std::to_string(device.minor));
  }
  if (*path == CudaPath::kSm90a && lacks_code) {
    if (is_asked) return refuse("sm80 for this type", "sm90a");
    *path = request.highest;
  }
  if (*path == CudaPath::kSm90a && request.beyond_sm90a != nullptr)
    return refuse(std::string("sm80 for ") + request.beyond_sm90a, "sm90a");
  if (*path != CudaPath::kBest) return {};
  const bool is_choice = device.major == 9 && device.minor == 0 && last_met == CudaPath::kSm90a;
  *path = is_choice && !lacks_code && request.beyond_sm90a == nullptr ? CudaPath::kSm90a : CudaPath::kSm80;
  return {};
}

Status choose_path(const char* op, const PathRequest& request, CudaPath* path) {
  CudaPath forced = CudaPath::kBest;
  if (request.asked == CudaPath::kBest) {
    if (Status status = forced_cuda_tier(&forced); !status.ok()) return status;
  }
  Properties device;
  if (Status status = properties(op, &device); !status.ok()) return status;
  return choose_path(op, device, request, forced, path);
}

}  // namespace cuda
}  // namespace earnest
