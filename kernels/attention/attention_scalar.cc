// SPDX-License-Identifier: Apache-2.0
// The attention kernels compiled for any machine (16-byte vectors, no fused multiply-add).
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/attention/attention_backend.h"

namespace earnest::attention {
namespace scalar {
#include "kernels/attention/attention_simd.h"
//
#include "kernels/attention/attention_product.h"
//
#include "kernels/attention/attention_tile.h"
//
#include "kernels/attention/attention_forward.h"
//
#include "kernels/attention/attention_few.h"
//
#include "kernels/attention/attention_backward.h"
//
#include "kernels/attention/attention_table.h"
}  // namespace scalar

Backend scalar_backend(Type type) {
  using namespace scalar;
  return type == Type::kFloat64    ? functions_for<double, double, false>()
         : type == Type::kBFloat16 ? functions_for<float, BFloat16, false>()
                                   : functions_for<float, float, false>();
}

}  // namespace earnest::attention
