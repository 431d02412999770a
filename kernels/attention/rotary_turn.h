// SPDX-License-Identifier: Apache-2.0
// Angles of rotary positions, and their cosine and sine, as kernels/rowwise/angles.h has them: every step
// rounded to float, cosine and sine those of double, rounded. CUDA's own cos and sin of double would do, but
// for arguments of any size they keep a table on the stack; angles end at 2^24, where less is enough.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest::attention::rotary_write {

constexpr int64_t kLastPosition = int64_t{1} << 24;  // so that a float holds it

// rates: [dim / 2]. On the host, once a call.
inline void rates_of(int64_t dim, double theta, float* rates) {
  for (int64_t j = 0; j < dim / 2; ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(dim);
    const double base = static_cast<float>(theta);
    rates[j] = 1.0f / static_cast<float>(std::pow(base, static_cast<double>(exponent)));
  }
}

struct Turn {
  float cosine, sine;
};

// Whole quarter turns are taken out with pi / 2 in two doubles (Cody and Waite): up to 2^24 what is left has
// an error of 1e-16 of itself. Then the series of Taylor, which at pi / 4 leave out 5e-17 (sine) and 2e-18.
EARNEST_HOST_DEVICE inline Turn turn_by(float angle) {
  constexpr double kInverse = 0.63661977236758134308;  // 2 / pi
  constexpr double kHigh = 1.5707963267948965580, kLow = 6.123233995736766036e-17;
  const double quarters = rint(angle * kInverse);
  const double r = fma(-quarters, kLow, fma(-quarters, kHigh, static_cast<double>(angle))), square = r * r;
  double sine = -1.0 / 1307674368000.0;  // 1 / 15!
  sine = sine * square + 1.0 / 6227020800.0;
  sine = sine * square - 1.0 / 39916800.0;
  sine = sine * square + 1.0 / 362880.0;
  sine = sine * square - 1.0 / 5040.0;
  sine = sine * square + 1.0 / 120.0;
  sine = sine * square - 1.0 / 6.0;
  sine = r + r * square * sine;
  double cosine = 1.0 / 20922789888000.0;  // 1 / 16!
  cosine = cosine * square - 1.0 / 87178291200.0;
  cosine = cosine * square + 1.0 / 479001600.0;
  cosine = cosine * square - 1.0 / 3628800.0;
  cosine = cosine * square + 1.0 / 40320.0;
  cosine = cosine * square - 1.0 / 720.0;
  cosine = cosine * square + 1.0 / 24.0;
  cosine = cosine * square - 1.0 / 2.0;
  cosine = cosine * square + 1.0;
  const int quarter = static_cast<int>(quarters) & 3;
  const double c = quarter % 2 == 0 ? cosine : sine, s = quarter % 2 == 0 ? sine : cosine;
  return {static_cast<float>(quarter == 1 || quarter == 2 ? -c : c),
          static_cast<float>(quarter >= 2 ? -s : s)};
}

}  // namespace earnest::attention::rotary_write
