// SPDX-License-Identifier: Apache-2.0
// Where a kernel runs. A device asked for by name that this build cannot use is an error, never a fallback.
#pragma once

namespace earnest {

enum class Device { kCpu, kCuda };

inline const char* name_of(Device device) { return device == Device::kCuda ? "cuda" : "cpu"; }

}  // namespace earnest
