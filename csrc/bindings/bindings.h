// SPDX-License-Identifier: Apache-2.0
// What every binding file shares: array types (anything that speaks DLPack: torch, numpy, ...), and errors.
// Bindings convert and nothing else; shapes are checked again by the kernels.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "kernels/common/status.h"

namespace earnest::bindings {

namespace nb = nanobind;

// Contiguous arrays in CPU memory. Input is read in place, never copied or cast: bind with
// nb::arg("x").noconvert().
template <typename T, int kDims>
using Input = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
template <typename T, int kDims>
using Output = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

inline void raise_if_error(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
    case StatusCode::kNotFound:
    case StatusCode::kCorrupt:
    case StatusCode::kContextFull:
      throw nb::value_error(status.message().c_str());
    case StatusCode::kOutOfMemory:
      throw std::bad_alloc();
    default:
      throw std::runtime_error(status.message());
  }
}

// The memory of an array, every binding's way to it. Elements at an address that is not a multiple of their
// size, such as numpy's views of bytes can have, may not be read as their type: they are refused.
template <typename Array>
auto* data_of(const char* op, const char* name, const Array& array) {
  const size_t bytes = array.dtype().bits / 8;
  if (const auto past = reinterpret_cast<uintptr_t>(array.data()) % bytes; past != 0) {
    raise_if_error(invalid_argument(
        op, name, "memory at a multiple of its elements' " + std::to_string(bytes) + " bytes",
        "an address " + std::to_string(past) + " past one"));
  }
  return array.data();
}

template <typename Array>
auto data_of(const char* op, const char* name, const std::optional<Array>& array) -> decltype(array->data()) {
  return array ? data_of(op, name, *array) : nullptr;
}

void bind_cuda(nb::module_& module);
void bind_limits(nb::module_& module);
void bind_logmel(nb::module_& module);
void bind_logmel_batch(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_paged(nb::module_& module);
void bind_logprob(nb::module_& module);
void bind_ppo(nb::module_& module);
void bind_rowwise(nb::module_& module);
void bind_frames(nb::module_& module);
void bind_linear(nb::module_& module);
void bind_quantized(nb::module_& module);
void bind_pitch(nb::module_& module);
void bind_text(nb::module_& module);
void bind_engine(nb::module_& module);
void bind_clip_features(nb::module_& module);  // of its submodule
void bind_session(nb::module_& module);

}  // namespace earnest::bindings
