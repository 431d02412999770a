// SPDX-License-Identifier: Apache-2.0
// The attention kernels compiled for AVX2 and FMA.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/attention/attention_backend.h"

#if defined(__AVX2__)
namespace earnest::attention {
namespace avx2 {
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
}  // namespace avx2

Backend avx2_backend(Type type) {
  using namespace avx2;
  return type == Type::kFloat64    ? functions_for<double, double, false>()
         : type == Type::kBFloat16 ? functions_for<float, BFloat16, false>()
                                   : functions_for<float, float, false>();
}

}  // namespace earnest::attention

#else

namespace earnest::attention {
Backend avx2_backend(Type) { return {}; }
}  // namespace earnest::attention

#endif
