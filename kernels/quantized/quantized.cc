// SPDX-License-Identifier: Apache-2.0
// Checks, and the choice of back end.
#include "kernels/quantized/quantized.h"

#include <limits>

#include "kernels/common/cpu_tier.h"
#include "kernels/quantized/quantized_cpu.h"
#include "kernels/quantized/quantized_cuda.h"

namespace earnest::quantized {
namespace {

constexpr int kMostThreads = 4096;
constexpr int64_t kMostParts = 16;

Status wrong(const char* argument, const std::string& expected, const std::string& got) {
  return invalid_argument("quantized", argument, expected, got);
}

Status check_pointer(const char* argument, const void* pointer) {
  return pointer != nullptr ? Status() : wrong(argument, "an array", "null");
}

// Sizes in bytes must not overflow, those of packed and of scratch arrays included.
Status check_area(const char* argument, int64_t rows, int64_t columns) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 64;
  if (rows <= kMost - 512 && columns <= kMost - 512 && (rows + 512) <= kMost / (columns + 512)) return {};
  return wrong(argument, "sizes that fit in memory", std::to_string(rows) + " x " + std::to_string(columns));
}

Status check(const Shape& s) {
  if (s.codes != Codes::kInt8 && s.codes != Codes::kInt4) return wrong("codes", "int8 or int4", "others");
  if (s.outputs < 1) return wrong("outputs", "at least 1", std::to_string(s.outputs));
  if (s.inputs < 1) return wrong("inputs", "at least 1", std::to_string(s.inputs));
  return check_area("weight", s.outputs, s.inputs);
}

Status check(const Product& p) {
  if (p.device == Device::kCuda) {
    std::string name;
    if (Status status = which_cuda(p, 1, &name); !status.ok()) return status;
  } else if (p.path != CudaPath::kBest) {
    return wrong("path", "best on cpu", "one of cuda's");
  }
  if (p.rows < 0) return wrong("rows", "at least 0", std::to_string(p.rows));
  if (p.count < 1 || p.count > kMostParts)
    return wrong("count", "1 to " + std::to_string(kMostParts) + " parts", std::to_string(p.count));
  if (Status status = check_pointer("parts", p.parts); !status.ok()) return status;
  int64_t outputs = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    if (Status status = check(Shape{p.codes, p.parts[i].outputs, p.inputs}); !status.ok()) return status;
    outputs += p.parts[i].outputs;  // each below 2^53
  }
  if (Status status = check_area("left", p.rows, p.inputs); !status.ok()) return status;
  if (Status status = check_area("output", p.rows, outputs); !status.ok()) return status;
  if (p.threads >= 1 && p.threads <= kMostThreads) return {};
  return wrong("threads", "1 to " + std::to_string(kMostThreads), std::to_string(p.threads));
}

const Kernels& kernels_of([[maybe_unused]] CpuTier tier, const Product& p) {
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx512Bf16) return avx512_bf16::kernels(p.type, p.codes, p.activations);
  if (tier == CpuTier::kAvx512) return avx512::kernels(p.type, p.codes, p.activations);
  if (tier == CpuTier::kAvx2) return avx2::kernels(p.type, p.codes, p.activations);
#endif
  return scalar::kernels(p.type, p.codes, p.activations);
}

}  // namespace

Status packed_size(const Shape& shape, size_t* bytes) {
  if (Status status = check(shape); !status.ok()) return status;
  *bytes = static_cast<size_t>(panels(shape)) * static_cast<size_t>(panel_bytes(shape));
  return {};
}

Status pack(const Shape& shape, Type type, const void* source, void* packed, Device device) {
  if (device == Device::kCuda)
    return unsupported("quantized", "device", "cpu (a product on cuda takes the same bytes)", "cuda");
  if (Status status = check(shape); !status.ok()) return status;
  if (Status status = check_pointer("source", source); !status.ok()) return status;
  if (Status status = check_pointer("packed", packed); !status.ok()) return status;
  run_pack(shape, type, source, packed);
  return {};
}

Status unpack(const Shape& shape, const void* packed, int64_t first, int64_t count, Type type, void* rows) {
  if (Status status = check(shape); !status.ok()) return status;
  if (first < 0 || first > shape.outputs)
    return wrong("first", "0 to " + std::to_string(shape.outputs), std::to_string(first));
  if (count < 0 || count > shape.outputs - first)
    return wrong("count", "0 to " + std::to_string(shape.outputs - first), std::to_string(count));
  if (count == 0) return {};
  if (Status status = check_pointer("packed", packed); !status.ok()) return status;
  if (Status status = check_pointer("rows", rows); !status.ok()) return status;
  run_unpack(shape, packed, first, count, type, rows);
  return {};
}

size_t workspace_size(const Product& product) {
  if (!check(product).ok()) return 0;
  return product.device == Device::kCuda ? workspace_size_cuda(product) : product_workspace(product);
}

Status run(const Product& product, void* workspace) {
  if (Status status = check(product); !status.ok()) return status;
  for (int64_t i = 0; i < product.count; ++i) {
    if (Status status = check_pointer("packed", product.parts[i].packed); !status.ok()) return status;
  }
  if (product.rows == 0) return {};
  if (Status status = check_pointer("left", product.left); !status.ok()) return status;
  if (Status status = check_pointer("output", product.output); !status.ok()) return status;
  if (product.device == Device::kCpu || workspace_size_cuda(product) > 0) {
    if (Status status = check_pointer("workspace", workspace); !status.ok()) return status;
  }
  if (product.device == Device::kCuda) return run_cuda(product, workspace);
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  run_product(product, kernels_of(tier, product), workspace);
  return {};
}

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) {
    Product many;
    many.rows = int64_t{1} << 20;
    return which_cuda(many, 1, name);
  }
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

Status which(const Product& product, std::string* name) {
  if (Status status = check(product); !status.ok()) return status;
  if (product.device == Device::kCpu) return which(product.device, name);
  int64_t outputs = 0;
  for (int64_t i = 0; i < product.count; ++i) outputs += product.parts[i].outputs;
  return which_cuda(product, outputs, name);
}

}  // namespace earnest::quantized
