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
#include "kernels/attention/attention_tile.h"
//
#include "kernels/attention/attention_forward.h"
//
#include "kernels/attention/attention_backward.h"
//
#include "kernels/attention/attention_table.h"
}  // namespace scalar

Backend scalar_backend(Type type, int64_t dim) { return scalar::backend(type, dim); }

}  // namespace earnest::attention
