// SPDX-License-Identifier: Apache-2.0
// Arrays of tests in the memory of Device::kCuda: a GPU's, or the host's under the emulator. Exactly as large
// as asked, so that what reads or writes past an end is found (by AddressSanitizer or compute-sanitizer).
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "kernels/common/cuda.h"
#include "tests/cpp/check.h"

template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    void* memory = nullptr;
    CHECK(earnest::cuda::allocate("test", bytes(), &memory).ok());
    data_ = static_cast<T*>(memory);
    CHECK(earnest::cuda::copy("test", data_, values.data(), bytes(), nullptr).ok());
  }
  ~OnDevice() { earnest::cuda::release(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() { return data_; }
  std::vector<T> values() const {  // waits for the default stream
    std::vector<T> found(size_);
    CHECK(earnest::cuda::copy("test", found.data(), data_, bytes(), nullptr).ok());
    return found;
  }

 private:
  size_t bytes() const { return size_ * sizeof(T); }

  size_t size_;
  T* data_ = nullptr;
};
