// SPDX-License-Identifier: Apache-2.0
// Where a call runs, for families with CUDA code: on the device of its first array, where all others must
// lie, on the stream and with the scratch memory that the caller brings. Nothing here waits for a GPU.
#pragma once

#include <nanobind/stl/optional.h>

#include <memory>
#include <new>
#include <optional>

#include "csrc/bindings/bindings.h"
#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/pages.h"

namespace earnest::bindings {

// Contiguous arrays in CPU memory or on a GPU.
template <typename T, int kDims>
using AnyInput = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig>;
template <typename T, int kDims>
using AnyOutput = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig>;

using FaultArray = std::optional<AnyOutput<int64_t, 1>>;

// What a Python caller passes last (earnest.ops.cuda.Launch). Left out on the CPU.
struct Launch {
  uintptr_t stream = 0;
  const std::optional<nb::callable>& allocate;  // bytes -> uint8 array on the device
  const FaultArray& fault;
};

// In an EMULATED build: whether arrays in CPU memory are the emulated GPU's.
bool emulating_cuda();

// Whether this build has CUDA kernels at all; if not, the one sentence about it.
Status check_cuda_build(const char* op);

// Where an array lies: for kernels, and in words.
inline Device device_of(int type) {
  return type == nb::device::cuda::value || emulating_cuda() ? Device::kCuda : Device::kCpu;
}
inline std::string name_of(int type, int id) {
  if (type == nb::device::cpu::value) return "cpu";
  return (type == nb::device::cuda::value ? "cuda:" : "device " + std::to_string(type) + ":") +
         std::to_string(id);
}
template <typename Array>
std::string place_of(const Array& array) {
  return name_of(array.device_type(), array.device_id());
}

class Place {
 public:
  template <typename Array>
  Place(const char* op, const Array& first, const Launch& launch)
      : op_(op), type_(first.device_type()), id_(first.device_id()), launch_(launch) {
    if (type_ != nb::device::cpu::value && type_ != nb::device::cuda::value)
      raise_if_error(unsupported(op, "device", "cpu or cuda", name_of(type_, id_)));
    if (device() == Device::kCuda) raise_if_error(check_cuda_build(op));
  }

  Device device() const { return device_of(type_); }
  void* stream() const { return reinterpret_cast<void*>(launch_.stream); }

  template <typename Array>
  auto* data(const char* name, const Array& array) const {
    if (array.device_type() != type_ || array.device_id() != id_) {
      raise_if_error(invalid_argument(op_, name, "an array on " + name_of(type_, id_) + " as the first",
                                      "one on " + place_of(array)));
    }
    return data_of(op_, name, array);
  }
  template <typename Array>
  auto data(const char* name, const std::optional<Array>& array) const -> decltype(array->data()) {
    return array ? data(name, *array) : nullptr;
  }

  FaultWord* fault() const {
    return launch_.fault ? reinterpret_cast<FaultWord*>(data("fault", *launch_.fault)) : nullptr;
  }
  const char* op() const { return op_; }
  const std::optional<nb::callable>& allocate() const { return launch_.allocate; }

 private:
  const char* op_;
  int type_, id_;
  Launch launch_;
};

// Scratch memory of a call, not cleared: of the heap, large memory of the system, or on a GPU of the caller's
// allocator, which may give it away again when the call has returned, as everything on a stream comes in its
// turn.
class Workspace {
 public:
  // From here on straight from the system: malloc keeps what it got back once, and the scratch memory of a
  // forward pass would lie beside that of its backward pass. Its pages are made anew in each call: so not for
  // little memory, whose calls are short.
  static constexpr size_t kFromSystem = size_t{12} << 20;

  Workspace(const Place& place, size_t bytes) : bytes_(bytes) {
    if (place.device() == Device::kCpu) {
      if (bytes < kFromSystem) {
        heap_.reset(new char[bytes]);
      } else if ((pages_ = take_pages(bytes)) == nullptr) {
        throw std::bad_alloc();
      }
    } else if (bytes > 0) {
      if (!place.allocate()) {
        raise_if_error(invalid_argument(place.op(), "allocate", "a function on cuda", "none"));
      }
      lent_ = nb::cast<AnyOutput<uint8_t, 1>>((*place.allocate())(bytes));
      place.data("workspace", lent_);
    }
  }
  ~Workspace() { give_pages_back(pages_, bytes_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() {
    if (pages_ != nullptr) return pages_;
    return heap_ ? static_cast<void*>(heap_.get()) : lent_.is_valid() ? lent_.data() : nullptr;
  }

 private:
  const size_t bytes_;
  void* pages_ = nullptr;
  std::unique_ptr<char[]> heap_;
  AnyOutput<uint8_t, 1> lent_;
};

}  // namespace earnest::bindings
