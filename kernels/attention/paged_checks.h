// SPDX-License-Identifier: Apache-2.0
// What attention over pages and the write to them ask of the same arguments, in the same words.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/attention/paged_attention.h"
#include "kernels/common/host_device.h"

namespace earnest::attention::paged {

constexpr int64_t kMostElements = int64_t{1} << 52;  // of an array: bytes are a small multiple of it

// argument: what is of this type and head size.
inline Status check_numbers(const char* op, const char* argument, Type type, int64_t dim) {
  if (type != Type::kBFloat16 && type != Type::kFloat16)
    return unsupported(op, argument, "bfloat16 or float16", "another type");
  if (dim == 64 || dim == 128) return {};
  return invalid_argument(op, argument, "a head size of 64 or 128", std::to_string(dim));
}

inline Status check_page_size(const char* op, int64_t size) {
  if (size >= kLeastPage && size <= kMostPage && (size & (size - 1)) == 0) return {};
  return invalid_argument(op, "page_size", "a power of two from 16 to 256", std::to_string(size));
}

// alignment: in bytes, of what CUDA reads.
inline Status check_array(const char* op, const char* argument, const void* data, int64_t size, Device device,
                          size_t alignment) {
  if (size > kMostElements) return invalid_argument(op, argument, "at most 2^52 elements", "more");
  if (size > 0 && data == nullptr) return invalid_argument(op, argument, "an array", "none");
  if (device == Device::kCpu || reinterpret_cast<uintptr_t>(data) % alignment == 0) return {};
  return invalid_argument(op, argument, "an array that begins on " + std::to_string(alignment) + " bytes",
                          "another address");
}

// Whether e4m3 can have been divided by it.
EARNEST_HOST_DEVICE inline bool is_scale(float scale) { return scale > 0 && std::isfinite(scale); }

inline Status scale_fault(const char* op, int64_t kv_head) {
  return invalid_argument(op, "k_scale, v_scale", "finite numbers above 0",
                          "another for key head " + std::to_string(kv_head));
}

}  // namespace earnest::attention::paged
