// SPDX-License-Identifier: Apache-2.0
// Arrays of tests in the memory of Device::kCuda: a GPU's, or the host's under the emulator. Exactly as large
// as asked, so that what reads or writes past an end is found (by AddressSanitizer or compute-sanitizer).
#pragma once

#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "kernels/common/cuda.h"
#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "tests/cpp/check.h"

// A program that was built to test a device ends, with the reason, where there is none.
inline void require_device() {
  earnest::cuda::Properties device;
  const earnest::Status status = earnest::cuda::properties("test", &device);
  if (status.ok()) return;
  std::printf("%s\n", status.message().c_str());
  std::exit(1);
}

// Those that a build has.
inline std::vector<earnest::Device> devices() {
#if defined(EARNEST_WITH_CUDA)
  return {earnest::Device::kCpu, earnest::Device::kCuda};
#else
  return {earnest::Device::kCpu};
#endif
}

template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    require_device();
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

// Lends arrays of the host to a call on `device`: as they are to the CPU, as copies to a GPU or the emulator.
// Results come back with finish().
class Lent {
 public:
  explicit Lent(earnest::Device device) : on_device_(device == earnest::Device::kCuda) {
    if (on_device_) require_device();
  }
  ~Lent() {
    for (const Copy& copy : copies_) earnest::cuda::release(copy.device);
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;

  template <typename T>
  const T* in(const T* host, size_t count) {
    return host && on_device_ ? static_cast<const T*>(copy_of(host, count * sizeof(T), nullptr)) : host;
  }
  template <typename T>
  T* out(T* host, size_t count) {
    return host && on_device_ ? static_cast<T*>(copy_of(host, count * sizeof(T), host)) : host;
  }
  // Memory of which nothing may be expected.
  void* scratch(size_t bytes) {
    scratch_.emplace_back(bytes, 0x5a);
    return on_device_ ? copy_of(scratch_.back().data(), bytes, nullptr) : scratch_.back().data();
  }
  earnest::FaultWord* fault() { return out(&fault_, 1); }

  // After this the host's arrays hold what the call has written.
  earnest::FaultWord finish() {
    for (const Copy& copy : copies_)
      if (copy.host) CHECK(earnest::cuda::copy("test", copy.host, copy.device, copy.bytes, nullptr).ok());
    return fault_;
  }

 private:
  struct Copy {
    void *device, *host;
    size_t bytes;
  };
  void* copy_of(const void* host, size_t bytes, void* back) {
    void* memory = nullptr;
    CHECK(earnest::cuda::allocate("test", bytes, &memory).ok());
    CHECK(earnest::cuda::copy("test", memory, host, bytes, nullptr).ok());
    copies_.push_back({memory, back, bytes});
    return memory;
  }

  bool on_device_;
  std::vector<Copy> copies_;
  std::vector<std::vector<char>> scratch_;
  earnest::FaultWord fault_ = earnest::kNoFault;
};
