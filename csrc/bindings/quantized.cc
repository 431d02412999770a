// SPDX-License-Identifier: Apache-2.0
// kernels/quantized for Python: arrays in, status out.
#include "kernels/quantized/quantized.h"

#include <nanobind/stl/optional.h>

#include <optional>
#include <utility>

#include "csrc/bindings/place.h"

namespace earnest::bindings {
namespace {

using quantized::Codes;
using quantized::Shape;
using quantized::Type;
using Read = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Write = nb::ndarray<nb::c_contig, nb::device::cpu>;
using ReadBytes = Input<uint8_t, 1>;
using WriteBytes = Output<uint8_t, 1>;
using ReadAnywhere = nb::ndarray<nb::ro, nb::c_contig>;
using WriteAnywhere = nb::ndarray<nb::c_contig>;

void expect(bool holds, const std::string& argument, const std::string& expected, const std::string& got) {
  if (!holds) raise_if_error(invalid_argument("quantized", argument, expected, got));
}

Codes codes_named(const std::string& name) {
  expect(name == "int8" || name == "int4", "codes", "int8 or int4", name);
  return name == "int8" ? Codes::kInt8 : Codes::kInt4;
}

template <typename Array>
Type type_of(const Array& x) {
  const auto dtype = x.dtype();
  if (dtype == nb::dtype<float>()) return Type::kFloat32;
  expect(dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && dtype.bits == 16, "dtype",
         "float32 or bfloat16", "another");
  return Type::kBFloat16;
}

size_t packed_size(const std::string& codes, int64_t outputs, int64_t inputs) {
  size_t bytes = 0;
  raise_if_error(quantized::packed_size({codes_named(codes), outputs, inputs}, &bytes));
  return bytes;
}

void check_packed(const std::string& codes, int64_t outputs, int64_t inputs, size_t bytes) {
  const size_t wanted = packed_size(codes, outputs, inputs);
  expect(bytes == wanted, "packed", std::to_string(wanted) + " bytes", std::to_string(bytes));
}

template <typename Array>
std::pair<int64_t, int64_t> matrix_of(const char* argument, const Array& x) {
  expect(x.ndim() == 2, argument, "an array of two axes", std::to_string(x.ndim()) + " axes");
  return {static_cast<int64_t>(x.shape(0)), static_cast<int64_t>(x.shape(1))};
}

template <typename Body>
void without_gil(const Body& body) {
  Status status;
  {
    nb::gil_scoped_release release;
    status = body();
  }
  raise_if_error(status);
}

void pack(const std::string& codes, const Read& weight, const WriteBytes& packed) {
  const auto [outputs, inputs] = matrix_of("weight", weight);
  check_packed(codes, outputs, inputs, packed.size());
  const Shape shape = {codes_named(codes), outputs, inputs};
  const Type type = type_of(weight);
  const void* source = data_of("quantized", "weight", weight);
  without_gil([&] { return quantized::pack(shape, type, source, packed.data()); });
}

void unpack(const std::string& codes, int64_t outputs, const ReadBytes& packed, int64_t first,
            const Write& rows) {
  const auto [count, inputs] = matrix_of("rows", rows);
  check_packed(codes, outputs, inputs, packed.size());
  const Shape shape = {codes_named(codes), outputs, inputs};
  const Type type = type_of(rows);
  void* out = data_of("quantized", "rows", rows);
  without_gil(
      [&, count = count] { return quantized::unpack(shape, packed.data(), first, count, type, out); });
}

quantized::CudaPath path_of(const std::string& name) {
  expect(name == "best" || name == "sm80" || name == "few", "path", "best, sm80 or few", name);
  return name == "sm80"  ? quantized::CudaPath::kSm80
         : name == "few" ? quantized::CudaPath::kFew
                         : quantized::CudaPath::kBest;
}

void product(const std::string& codes, const ReadAnywhere& left, const AnyInput<uint8_t, 1>& packed,
             const std::optional<ReadAnywhere>& bias, const WriteAnywhere& output, bool int8_activations,
             uintptr_t stream, const std::optional<nb::callable>& allocate, const FaultArray& fault,
             const std::string& path) {
  const Place place("quantized", left, {stream, allocate, fault});
  const auto [rows, inputs] = matrix_of("input", left);
  const auto [out_rows, outputs] = matrix_of("output", output);
  expect(out_rows == rows && output.dtype() == left.dtype(), "output", "the rows and dtype of the input",
         "others");
  check_packed(codes, outputs, inputs, packed.size());
  quantized::Part part = {place.data("packed", packed), outputs, nullptr};
  if (bias) {
    expect(
        bias->ndim() == 1 && static_cast<int64_t>(bias->shape(0)) == outputs && bias->dtype() == left.dtype(),
        "bias", "one number per output, of the dtype of the input", "something else");
    part.bias = place.data("bias", *bias);
  }
  quantized::Product job;
  job.type = type_of(left);
  job.codes = codes_named(codes);
  job.activations = int8_activations ? quantized::Activations::kInt8 : quantized::Activations::kExact;
  job.rows = rows;
  job.inputs = inputs;
  job.parts = &part;
  job.count = 1;
  job.left = place.data("input", left);
  job.output = place.data("output", output);
  job.device = place.device();
  job.stream = place.stream();
  job.path = path_of(path);
  Workspace workspace(place, quantized::workspace_size(job));
  without_gil([&] { return quantized::run(job, workspace.data()); });
}

}  // namespace

void bind_quantized(nb::module_& module) {
  module.def("quantized_packed_size", &packed_size, nb::arg("codes"), nb::arg("outputs"), nb::arg("inputs"));
  module.def("quantized_pack", &pack, nb::arg("codes"), nb::arg("weight").noconvert(),
             nb::arg("packed").noconvert());
  module.def("quantized_unpack", &unpack, nb::arg("codes"), nb::arg("outputs"), nb::arg("packed").noconvert(),
             nb::arg("first"), nb::arg("rows").noconvert());
  module.def("quantized_product", &product, nb::arg("codes"), nb::arg("left").noconvert(),
             nb::arg("packed").noconvert(), nb::arg("bias").noconvert().none(), nb::arg("output").noconvert(),
             nb::arg("int8_activations"), nb::arg("stream") = 0, nb::arg("allocate") = nb::none(),
             nb::arg("fault").noconvert() = nb::none(), nb::arg("path") = "best");
  module.def(
      "quantized_which",
      [](const std::string& device) {
        expect(device == "cpu" || device == "cuda", "device", "cpu or cuda", device);
        std::string name;
        raise_if_error(quantized::which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
        return name;
      },
      nb::arg("device"));
}

}  // namespace earnest::bindings
