// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/limits.h"

#include <cstdint>

#include "csrc/bindings/bindings.h"

namespace earnest::bindings {
namespace {

template <typename Measure>
double measured(const Measure& measure) {
  double rate = 0;
  Status status;
  {
    nb::gil_scoped_release release;
    status = measure(&rate);
  }
  raise_if_error(status);
  return rate;
}

}  // namespace

void bind_limits(nb::module_& module) {
  module.def(
      "read_rate",
      [](int64_t bytes, double seconds) {
        return measured([&](double* rate) { return limits::read_rate(bytes, seconds, rate); });
      },
      nb::arg("bytes"), nb::arg("seconds"));
  module.def(
      "copy_rate",
      [](int64_t bytes, double seconds) {
        return measured([&](double* rate) { return limits::copy_rate(bytes, seconds, rate); });
      },
      nb::arg("bytes"), nb::arg("seconds"));
  module.def(
      "arithmetic_rate",
      [](bool bfloat16, double seconds) {
        const auto kind = bfloat16 ? limits::Arithmetic::kBfloat16 : limits::Arithmetic::kFloat32;
        return measured([&](double* rate) { return limits::arithmetic_rate(kind, seconds, rate); });
      },
      nb::arg("bfloat16"), nb::arg("seconds"));
}

}  // namespace earnest::bindings
