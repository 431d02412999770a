// SPDX-License-Identifier: Apache-2.0
// Where a model computes: the CPU, or one of the machine's GPUs. Kernels are told no more than the Device and
// work on the GPU that is current for the calling thread; whoever enters the engine, from whichever thread,
// makes the model's current meanwhile.
#pragma once

#include <string>

#include "kernels/common/device.h"
#include "kernels/common/status.h"

namespace earnest::engine {

struct Place {
  Device device = Device::kCpu;
  int gpu = 0;  // its number, as CUDA counts those that it sees

  Place(Device device = Device::kCpu, int gpu = 0) : device(device), gpu(gpu) {}  // NOLINT: meant to convert
  bool operator==(const Place&) const = default;
};

// "cpu", "cuda" (the first), "cuda:1".
std::string name_of(const Place& place);
Status read_place(const std::string& name, Place* place);

// Whether there is one; if not, the sentence about it: "[engine] device: expected cpu (...), got cuda".
Status check_place(const Place& place);

// As long as this lives, the place is where the calling thread works; afterwards it is where that was before.
class CurrentPlace {
 public:
  explicit CurrentPlace(const Place& place);
  ~CurrentPlace();
  CurrentPlace(const CurrentPlace&) = delete;
  CurrentPlace& operator=(const CurrentPlace&) = delete;

  const Status& status() const { return status_; }

 private:
  Status status_;
  int before_ = 0;
  bool moved_ = false;
};

// The GPU of the calling thread.
Status current_gpu(int* gpu);

}  // namespace earnest::engine
