// SPDX-License-Identifier: Apache-2.0
// Names of devices.
#pragma once

#include "csrc/capi/call.h"
#include "csrc/engine/place.h"

namespace earnest::capi {

// NULL: the CPU. One that this build or machine does not have is refused, whichever call it is asked of, in
// the same words.
inline Outcome read_device(const char* name, engine::Place* place) {
  if (!name) return {};
  if (const Status read = engine::read_place(name, place); !read.ok()) return read;
  return engine::check_place(*place);
}

}  // namespace earnest::capi
