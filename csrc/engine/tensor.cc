// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/tensor.h"

#include <cstring>

#include "csrc/engine/device_memory.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/mapped_file.h"

namespace earnest::engine {
namespace {

// IEEE 754 binary16, exactly.
float widen_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu, fraction = half & 0x3FFu;
  uint32_t bits = sign;
  if (exponent == 31) {
    bits |= 0x7F800000u | (fraction << 13);
  } else if (exponent != 0) {
    bits |= ((exponent + 112) << 23) | (fraction << 13);
  } else {
    // A subnormal, fraction / 2^24, is a normal float.
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    uint32_t magnitude;
    std::memcpy(&magnitude, &value, sizeof magnitude);
    bits |= magnitude;
  }
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <typename Number>
Number at(const void* data, int64_t index) {
  Number number;
  std::memcpy(&number, static_cast<const char*>(data) + static_cast<size_t>(index) * sizeof number,
              sizeof number);
  return number;
}

template <typename To>
void read_as(const TensorView& view, int64_t first, int64_t count, To* out) {
  switch (view.type) {
    case StoredType::kFloat32:
      for (int64_t i = 0; i < count; ++i) narrow(at<float>(view.data, first + i), out + i);
      break;
    case StoredType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) narrow(widen(at<BFloat16>(view.data, first + i)), out + i);
      break;
    case StoredType::kFloat16:
      for (int64_t i = 0; i < count; ++i) narrow(widen_half(at<uint16_t>(view.data, first + i)), out + i);
      break;
    case StoredType::kBytes:
      for (int64_t i = 0; i < count; ++i) {
        narrow(static_cast<float>(at<uint8_t>(view.data, first + i)), out + i);
      }
      break;
  }
}

}  // namespace

size_t size_of(StoredType type) {
  return type == StoredType::kFloat32 ? 4 : type == StoredType::kBytes ? 1 : 2;
}

const char* name_of(StoredType type) {
  switch (type) {
    case StoredType::kFloat32:
      return "F32";
    case StoredType::kBFloat16:
      return "BF16";
    case StoredType::kFloat16:
      return "F16";
    case StoredType::kBytes:
      break;
  }
  return "U8";
}

int64_t TensorView::count() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

void read(const TensorView& view, int64_t first, int64_t count, float* out) {
  read_as(view, first, count, out);
}

void read(const TensorView& view, int64_t first, int64_t count, BFloat16* out) {
  if (view.type == StoredType::kBFloat16) {  // NaNs keep their bits
    std::memcpy(out, static_cast<const char*>(view.data) + static_cast<size_t>(first) * sizeof(BFloat16),
                static_cast<size_t>(count) * sizeof(BFloat16));
    return;
  }
  read_as(view, first, count, out);
}

Status bring_here(const char* op, const TensorView& view, std::unique_ptr<char[]>* memory, TensorView* here) {
  *here = view;
  if (view.device == Device::kCpu) return {};
  const size_t bytes = static_cast<size_t>(view.count()) * size_of(view.type);
  *memory = std::make_unique_for_overwrite<char[]>(bytes);
  EARNEST_RETURN_IF_ERROR(copy(op, view.device, memory->get(), view.data, bytes));
  here->data = memory->get();
  here->device = Device::kCpu;
  return {};
}

void let_go(const TensorView& view) {
  if (view.mapped == nullptr) return;
  view.mapped->let_go(view.data, static_cast<size_t>(view.count()) * size_of(view.type));
}

}  // namespace earnest::engine
