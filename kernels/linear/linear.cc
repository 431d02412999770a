// SPDX-License-Identifier: Apache-2.0
// Checks, and the choice of back end.
#include "kernels/linear/linear.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/huge_pages.h"
#include "kernels/common/parts.h"
#include "kernels/linear/linear_cpu.h"
#include "kernels/linear/linear_cuda.h"

namespace earnest::linear {
namespace {

constexpr int kMostThreads = 4096;

Status check_pointer(const char* argument, const void* pointer) {
  if (pointer != nullptr) return {};
  return invalid_argument("linear", argument, "an array", "null");
}

// Packed memory holds words of up to eight bytes.
Status check_packed_memory(const void* packed) {
  if (Status status = check_pointer("packed", packed); !status.ok()) return status;
  const auto past = reinterpret_cast<uintptr_t>(packed) % 8;
  if (past == 0) return {};
  return invalid_argument("linear", "packed", "memory on an 8-byte boundary",
                          std::to_string(past) + " bytes past one");
}

// Sizes in bytes must not overflow, those of padded and packed arrays included.
Status check_area(const char* argument, int64_t rows, int64_t columns) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 64;
  if (rows <= kMost - 64 && columns <= kMost - 64 && (rows + 64) <= kMost / (columns + 64)) return {};
  return invalid_argument("linear", argument, "sizes that fit in memory",
                          std::to_string(rows) + " x " + std::to_string(columns));
}

Status check_sizes(int64_t rows, int64_t columns, int64_t depth) {
  if (rows < 0) return invalid_argument("linear", "rows", "at least 0", std::to_string(rows));
  if (columns < 1) return invalid_argument("linear", "columns", "at least 1", std::to_string(columns));
  if (depth < 1) return invalid_argument("linear", "depth", "at least 1", std::to_string(depth));
  if (Status status = check_area("left", rows, depth); !status.ok()) return status;
  if (Status status = check_area("right", columns, depth); !status.ok()) return status;
  return check_area("output", rows, columns);
}

Status check_threads(int threads) {
  if (threads >= 1 && threads <= kMostThreads) return {};
  return invalid_argument("linear", "threads", "1 to " + std::to_string(kMostThreads),
                          std::to_string(threads));
}

Status check_packed(const Product& p) {
  if (Status status = check_packed_memory(p.packed); !status.ok()) return status;
  PackedHeader header;
  std::memcpy(&header, p.packed, sizeof header);
  if (header.magic == PackedHeader::kMagic && header.type == static_cast<int64_t>(p.type) &&
      header.columns == p.columns && header.depth == p.depth) {
    return {};
  }
  return invalid_argument("linear", "packed",
                          "a packed matrix of " + std::to_string(p.columns) + " columns and depth " +
                              std::to_string(p.depth) + " of the same type",
                          "something else");
}

Status check_cpu(Device device, const char* reason) {
  if (device == Device::kCpu) return {};
  return unsupported("linear", "device", std::string("cpu (") + reason + ")", "cuda");
}

Status check(const Pack& p) {
  if (Status status = check_cpu(p.device, "on cuda a product takes the matrix itself"); !status.ok())
    return status;
  return check_sizes(0, p.columns, p.depth);
}

Status check_path(const Product& p) {
  if (p.device == Device::kCuda || p.path == CudaPath::kBest) return {};
  return invalid_argument("linear", "path", "best on cpu", "one of cuda's");
}

Status check(const Product& p) {
  if (p.device == Device::kCuda) {
    std::string name;
    if (Status status = which_cuda(p, &name); !status.ok()) return status;
  }
  if (Status status = check_path(p); !status.ok()) return status;
  if (Status status = check_sizes(p.rows, p.columns, p.depth); !status.ok()) return status;
  return check_threads(p.threads);
}

Status check(const WeightGradient& g) {
  if (Status status = check_cpu(g.device, "cuda has products alone"); !status.ok()) return status;
  if (Status status = check_sizes(g.rows, g.outputs, g.inputs); !status.ok()) return status;
  return check_threads(g.threads);
}

Status check_arrays(const Product& p) {
  if (Status status = check_pointer("left", p.left); !status.ok()) return status;
  return check_pointer("output", p.output);
}

Status check_parts(const Product& p) {
  if (p.count < 1 || p.count > kMostParts)
    return invalid_argument("linear", "parts", "1 to " + std::to_string(kMostParts), std::to_string(p.count));
  int64_t columns = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const Part& part = p.parts[i];
    if (part.columns < 1 || part.columns > p.columns)
      return invalid_argument("linear", "parts", "1 to " + std::to_string(p.columns) + " columns each",
                              std::to_string(part.columns));
    if (Status status = check_pointer("parts", part.right); !status.ok()) return status;
    columns += part.columns;
  }
  if (columns == p.columns) return {};
  return invalid_argument("linear", "parts", std::to_string(p.columns) + " columns in all",
                          std::to_string(columns));
}

Status run_on_cuda(const Product& p, void* workspace) {
  if (Status status = p.parts == nullptr ? check_pointer("packed", p.packed) : check_parts(p); !status.ok())
    return status;
  if (p.rows == 0) return {};
  if (Status status = check_arrays(p); !status.ok()) return status;
  if (workspace_size_cuda(p) > 0) {
    if (Status status = check_pointer("workspace", workspace); !status.ok()) return status;
  }
  return run_cuda(p, workspace);
}

const TileKernels& kernels_of([[maybe_unused]] CpuTier tier, Type type) {
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx512Bf16) return avx512_bf16::kernels(type);
  if (tier == CpuTier::kAvx512) return avx512::kernels(type);
  if (tier == CpuTier::kAvx2) return avx2::kernels(type);
#endif
  return scalar::kernels(type);
}

}  // namespace

Status packed_size(const Pack& pack, size_t* bytes) {
  if (Status status = check(pack); !status.ok()) return status;
  *bytes = packed_bytes(pack.type, pack.columns, pack.depth);
  return {};
}

Status fingerprint(const Pack& pack, uint64_t* digest) {
  if (Status status = check(pack); !status.ok()) return status;
  if (Status status = check_pointer("source", pack.source); !status.ok()) return status;
  constexpr int64_t kSamples = 64;
  const int64_t count = pack.columns * pack.depth;
  const size_t size = element_size(pack.type);
  *digest = 0xcbf29ce484222325;  // FNV-1a, a number at a time instead of a byte
  for (int64_t i = 0; i < std::min(count, kSamples); ++i) {
    // From the middle of equal parts; never count * i, which could overflow.
    const int64_t index = count <= kSamples ? i : count / kSamples * i + count / kSamples / 2;
    uint64_t number = 0;
    std::memcpy(&number, static_cast<const char*>(pack.source) + static_cast<size_t>(index) * size, size);
    *digest = (*digest ^ number) * 0x100000001b3;
  }
  return {};
}

size_t workspace_size(const Product& product) {
  if (!check(product).ok()) return 0;
  if (product.device == Device::kCuda) return workspace_size_cuda(product);
  return product_workspace(product.type, product.threads);
}

size_t workspace_size(const WeightGradient& g) {
  if (!check(g).ok()) return 0;
  size_t bytes = product_workspace(g.type, g.threads);
  const size_t bias = g.grad_bias == nullptr ? 0 : static_cast<size_t>(g.outputs) * sizeof(double);
  const size_t packed = g.grad_weight == nullptr || g.rows == 0 ? 0 : packed_bytes(g.type, g.inputs, g.rows);
  return bytes + std::max(bias, packed);
}

Status run(const Pack& pack, void* packed) {
  if (Status status = check(pack); !status.ok()) return status;
  if (Status status = check_pointer("source", pack.source); !status.ok()) return status;
  if (Status status = check_packed_memory(packed); !status.ok()) return status;
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  advise_huge_pages(packed, packed_bytes(pack.type, pack.columns, pack.depth));
  run_pack(pack, kernels_of(tier, pack.type), packed);
  return {};
}

Status run(const Product& product, void* workspace) {
  if (Status status = check(product); !status.ok()) return status;
  if (product.device == Device::kCuda) return run_on_cuda(product, workspace);
  if (product.parts != nullptr) return invalid_argument("linear", "parts", "none on the cpu", "some");
  if (Status status = check_packed(product); !status.ok()) return status;
  if (product.rows == 0) return {};
  if (Status status = check_arrays(product); !status.ok()) return status;
  if (Status status = check_pointer("workspace", workspace); !status.ok()) return status;
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  run_product(product, kernels_of(tier, product.type), workspace);
  return {};
}

Status run(const WeightGradient& g, void* workspace) {
  if (Status status = check(g); !status.ok()) return status;
  if (g.rows > 0) {
    if (Status status = check_pointer("grad_output", g.grad_output); !status.ok()) return status;
    if (g.grad_weight != nullptr) {
      if (Status status = check_pointer("input", g.input); !status.ok()) return status;
    }
  }
  if (Status status = check_pointer("workspace", workspace); !status.ok()) return status;
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  run_weight_gradient(g, kernels_of(tier, g.type), workspace);
  return {};
}

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) {
    Product many;
    many.type = Type::kBFloat16;
    many.rows = many.columns = many.depth = int64_t{1} << 20;
    return which_cuda(many, name);
  }
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

Status which(const Product& product, std::string* name) {
  if (product.device == Device::kCuda) return which_cuda(product, name);
  if (Status status = check_path(product); !status.ok()) return status;
  return which(product.device, name);
}

}  // namespace earnest::linear
