// SPDX-License-Identifier: Apache-2.0
// Arrays of the types that the pointwise kernels store: float, double and bfloat16.
#pragma once

#include <initializer_list>
#include <string>
#include <type_traits>

#include "csrc/bindings/bindings.h"
#include "kernels/common/bfloat16.h"

namespace earnest::bindings {

// bfloat16 has no numpy type: it comes as its bits in int16.
template <typename Stored>
struct ArrayTypeOf {
  using type = Stored;
};
template <>
struct ArrayTypeOf<BFloat16> {
  using type = int16_t;
};
template <typename Stored, int kDims>
using In = Input<typename ArrayTypeOf<Stored>::type, kDims>;
template <typename Stored, int kDims>
using Out = Output<typename ArrayTypeOf<Stored>::type, kDims>;

template <typename Stored, typename Array>
auto* stored(const char* op, const char* name, const Array& array) {
  auto* data = data_of(op, name, array);
  if constexpr (std::is_const_v<std::remove_pointer_t<decltype(data)>>) {
    return reinterpret_cast<const Stored*>(data);
  } else {
    return reinterpret_cast<Stored*>(data);
  }
}

template <typename Array>
std::string shape_of(const Array& array) {
  std::string text = "[";
  for (size_t axis = 0; axis < array.ndim(); ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(array.shape(axis));
  }
  return text + "]";
}

template <typename Array>
void check_shape(const char* op, const char* name, const Array& array, std::initializer_list<size_t> shape) {
  bool same = array.ndim() == shape.size();
  std::string expected;
  size_t axis = 0;
  for (size_t size : shape) {
    same = same && array.shape(axis) == size;
    expected += (axis++ == 0 ? "[" : ", ") + std::to_string(size);
  }
  if (!same) raise_if_error(invalid_argument(op, name, expected + "]", shape_of(array)));
}

template <typename Run>
void without_gil(const Run& run) {
  Status status;
  {
    nb::gil_scoped_release release;
    status = run();
  }
  raise_if_error(status);
}

}  // namespace earnest::bindings
