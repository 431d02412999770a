// SPDX-License-Identifier: Apache-2.0
// The attention kernels for bfloat16 compiled for AVX-512 with vdpbf16ps.
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/attention/attention_backend.h"

#if defined(__AVX512BF16__)
namespace earnest::attention {
namespace avx512_bf16 {
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
}  // namespace avx512_bf16

Backend avx512_bf16_backend() { return avx512_bf16::functions_for<float, avx512_bf16::BFloat16, true>(); }

}  // namespace earnest::attention

#else

namespace earnest::attention {
Backend avx512_bf16_backend() { return {}; }
}  // namespace earnest::attention

#endif
