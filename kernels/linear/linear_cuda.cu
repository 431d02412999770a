// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: which path, and what it is given.
#include <string>

#include "kernels/common/bfloat16.h"
#include "kernels/common/cuda.h"
#include "kernels/linear/linear_cuda.h"
#include "kernels/linear/linear_paths.h"
#include "kernels/linear/linear_plan.h"
#include "kernels/linear/linear_vendor.h"

namespace earnest::linear {
namespace {

using namespace gpu;

Status check_few(const Product& p) {
  if (p.type == Type::kBFloat16) return {};
  return unsupported(kOp, "path", "few with bfloat16", "float32");
}

Status choose_path(const Product& p, const cuda::Properties& device, CudaPath* path) {
  if (p.type == Type::kFloat64) return unsupported(kOp, "type", "float32 or bfloat16 on cuda", "float64");
  *path = p.path;
  if (p.path == CudaPath::kFew) return check_few(p);
  if (p.path == CudaPath::kVendor) return find_vendor(kOp, "path", "best, sm80 or few");
  if (p.path == CudaPath::kSm80) return {};
  const bool few = p.type == Type::kBFloat16 && is_few(p.rows, p.columns, device.multiprocessors);
  *path = few ? CudaPath::kFew : CudaPath::kSm80;
  return {};
}

// Of our own paths. Blocks of a launch are counted in 31 bits, in the second direction in 16.
Status check_blocks(const Product& p, CudaPath path) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  const bool fits = path == CudaPath::kFew
                        ? blocks_of(p.columns, 16) + kMostParts <= kMost && blocks_of(p.rows, 8) < 65536
                        : blocks_of(p.rows, kTile) <= kMost / (blocks_of(p.columns, kTile) + kMostParts);
  if (fits) return {};
  return unsupported(kOp, "rows", "fewer blocks on cuda than 2^31 (path few: 524,280 rows)",
                     std::to_string(p.rows) + " x " + std::to_string(p.columns));
}

Operands operands_of(const Product& p) {
  const int64_t of_piece = p.type == Type::kBFloat16 ? 8 : 4;
  const auto aligned = [](const void* array) { return reinterpret_cast<uintptr_t>(array) % 16 == 0; };
  const Part whole = {p.packed, p.columns, p.bias};
  const Part* parts = p.parts == nullptr ? &whole : p.parts;
  Operands operands = {};
  operands.left = p.left, operands.output = p.output;
  operands.rows = p.rows, operands.columns = p.columns, operands.depth = p.depth;
  operands.wide = aligned(p.left) && p.depth % of_piece == 0;
  operands.wide_output = aligned(p.output) && p.columns % 8 == 0;
  operands.count = p.parts == nullptr ? 1 : static_cast<int>(p.count);
  int64_t first = 0;
  for (int i = 0; i < operands.count; ++i) {
    operands.parts[i] = {parts[i].right, parts[i].bias, parts[i].columns, first, 0};
    operands.wide = operands.wide && aligned(parts[i].right);
    operands.wide_output = operands.wide_output && parts[i].columns % 8 == 0;
    first += parts[i].columns;
  }
  return operands;
}

}  // namespace

Status find_vendor(const char* op, const char* argument, const char* others) {
  return vendor::available(op, argument, others);
}

Status which_cuda(const Product& p, std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  CudaPath path;
  if (Status status = choose_path(p, device, &path); !status.ok()) return status;
  *name = path == CudaPath::kVendor ? "cuda/vendor" : path == CudaPath::kFew ? "cuda/few" : "cuda/sm80";
  return {};
}

size_t workspace_size_cuda(const Product& p) {
  return p.path == CudaPath::kVendor ? vendor::kWorkspaceBytes + vendor::kAlignment : 0;
}

Status run_cuda(const Product& p, void* workspace) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  CudaPath path;
  if (Status status = choose_path(p, device, &path); !status.ok()) return status;
  const Operands operands = operands_of(p);
  if (path == CudaPath::kVendor) {
    const auto past = reinterpret_cast<uintptr_t>(workspace) % vendor::kAlignment;
    void* const aligned = static_cast<char*>(workspace) + (past == 0 ? 0 : vendor::kAlignment - past);
    return vendor::run(operands, p.type, device, aligned, p.stream);
  }
  if (Status status = check_blocks(p, path); !status.ok()) return status;
  if (path == CudaPath::kFew) return run_few(operands, device.shared_bytes, p.stream);
  return p.type == Type::kFloat32 ? run_tiles<float>(operands, p.stream)
                                  : run_tiles<BFloat16>(operands, p.stream);
}

}  // namespace earnest::linear
