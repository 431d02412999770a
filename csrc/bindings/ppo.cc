// SPDX-License-Identifier: Apache-2.0
#include "csrc/bindings/bindings.h"

namespace earnest::bindings {

void bind_ppo(nb::module_& module) { (void)module; }

}  // namespace earnest::bindings
