// SPDX-License-Identifier: Apache-2.0
// What every binding file shares: array types (anything that speaks DLPack: torch, numpy, ...), and errors.
// Bindings convert and nothing else; shapes are checked again by the kernels.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <new>
#include <stdexcept>

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

void bind_limits(nb::module_& module);
void bind_logmel(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_logprob(nb::module_& module);
void bind_ppo(nb::module_& module);
void bind_rowwise(nb::module_& module);
void bind_frames(nb::module_& module);
void bind_linear(nb::module_& module);
void bind_pitch(nb::module_& module);
void bind_engine(nb::module_& module);

}  // namespace earnest::bindings
