// SPDX-License-Identifier: Apache-2.0
// Names of devices.
#pragma once

#include <cstring>

#include "csrc/capi/call.h"
#include "csrc/engine/device_memory.h"

namespace earnest::capi {

// NULL: the CPU. One that this build or machine does not have is refused, whichever call it is asked of, in
// the same words.
inline Outcome read_device(const char* name, Device* device) {
  const bool on_cuda = name && std::strcmp(name, "cuda") == 0;
  if (name && !on_cuda && std::strcmp(name, "cpu") != 0)
    return invalid("engine", "device", "cpu or cuda", name);
  *device = on_cuda ? Device::kCuda : Device::kCpu;
  return engine::check_device(*device);
}

}  // namespace earnest::capi
