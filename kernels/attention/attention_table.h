// SPDX-License-Identifier: Apache-2.0
// The tier's functions by element type. Included inside the tier's own namespace, after attention_backward.h.

template <typename T, typename E>
static Backend functions_for(int64_t dim) {
  return {&forward_unit<T, E>, &backward_unit<T, E>, !sums_in_place<T, E>(dim)};
}

static Backend backend(Type type, int64_t dim) {
  switch (type) {
    case Type::kFloat64:
      return functions_for<double, double>(dim);
    case Type::kBFloat16:
      return functions_for<float, BFloat16>(dim);
    case Type::kFloat32:
      break;
  }
  return functions_for<float, float>(dim);
}
