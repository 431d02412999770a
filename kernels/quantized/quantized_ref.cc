// SPDX-License-Identifier: Apache-2.0
// The definition, by plain loops: every sum in double, one rounding at the end. It reads packed matrices
// number by number, as quantized.h says they lie.
#include <cstring>

#include "kernels/common/bfloat16.h"
#include "kernels/quantized/quantized.h"

namespace earnest::quantized {
namespace {

double weight(Codes codes, const void* packed, int64_t inputs, int64_t n, int64_t k) {
  const auto* panel = static_cast<const unsigned char*>(packed) +
                      n / kPanel * panel_bytes({codes, kPanel, inputs}) + n % kPanel * 4;
  if (codes == Codes::kInt8) {
    float scale;
    std::memcpy(&scale, panel, sizeof scale);
    return static_cast<double>(scale) * (panel[64 + k / 4 * 64 + k % 4] - 128);
  }
  const unsigned char* group = panel + k / 32 * 320;
  BFloat16 pair[2];
  std::memcpy(pair, group, sizeof pair);
  const int both = group[64 + k % 32 / 8 * 64 + k % 4], code = k % 8 < 4 ? both % 16 : both / 16;
  return static_cast<double>(widen(pair[0])) * code + static_cast<double>(widen(pair[1]));
}

template <typename T>
void product(const Product& p) {
  const T* x = static_cast<const T*>(p.left);
  T* y = static_cast<T*>(p.output);
  for (int64_t m = 0; m < p.rows; ++m, x += p.inputs) {
    for (int64_t part = 0; part < p.count; ++part) {
      const T* bias = static_cast<const T*>(p.parts[part].bias);
      for (int64_t n = 0; n < p.parts[part].outputs; ++n) {
        double sum = bias == nullptr ? 0.0 : static_cast<double>(widen(bias[n]));
        for (int64_t k = 0; k < p.inputs; ++k) {
          sum += static_cast<double>(widen(x[k])) * weight(p.codes, p.parts[part].packed, p.inputs, n, k);
        }
        narrow(static_cast<float>(sum), y++);
      }
    }
  }
}

}  // namespace

Status run_reference(const Product& p) {
  if (p.type == Type::kFloat32) product<float>(p);
  if (p.type == Type::kBFloat16) product<BFloat16>(p);
  return {};
}

}  // namespace earnest::quantized
