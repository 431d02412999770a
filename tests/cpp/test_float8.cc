// SPDX-License-Identifier: Apache-2.0
// e4m3 against its definition: every byte, and for numbers between two bytes the nearer one.
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/common/float8.h"
#include "tests/cpp/check.h"

namespace {

using earnest::Float8;
using earnest::narrow;
using earnest::widen;

Float8 of_bits(int bits) { return {static_cast<uint8_t>(bits)}; }
int narrowed(float x) {
  Float8 y;
  narrow(x, &y);
  return y.bits;
}

}  // namespace

TEST(every_byte_is_the_number_it_is_and_comes_back) {
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    const float x = widen(of_bits(bits));
    if ((bits & 0x7f) == 0x7f) {
      CHECK(std::isnan(x) && (narrowed(x) & 0x7f) == 0x7f);
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    CHECK(x == (bits < 128 ? magnitude : -magnitude) && std::signbit(x) == (bits >= 128));
    CHECK(narrowed(x) == bits);
  }
  CHECK(widen(of_bits(0x7e)) == 448.0f);
}

TEST(between_two_bytes_the_nearer_is_taken_and_of_equals_the_even) {
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = widen(of_bits(bits)), high = widen(of_bits(bits + 1)), middle = (low + high) / 2;
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(narrowed(std::nextafter(middle, 0.0f)) == bits);
    CHECK(narrowed(std::nextafter(middle, infinity)) == bits + 1);
    CHECK(narrowed(middle) == (bits % 2 == 0 ? bits : bits + 1));
    CHECK(narrowed(-middle) == (bits % 2 == 0 ? bits : bits + 1) + 0x80);
  }
}

TEST(beyond_the_largest_it_stays_the_largest_but_what_is_not_finite_becomes_nan) {
  for (float x : {449.0f, 1e30f, std::numeric_limits<float>::max()}) {
    CHECK(narrowed(x) == 0x7e && narrowed(-x) == 0xfe);
  }
  CHECK(narrowed(1e-30f) == 0 && narrowed(-1e-30f) == 0x80);
  CHECK(narrowed(std::numeric_limits<float>::infinity()) == 0x7f);
  CHECK(narrowed(-std::numeric_limits<float>::infinity()) == 0xff);
}
