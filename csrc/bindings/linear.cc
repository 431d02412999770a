// SPDX-License-Identifier: Apache-2.0
// kernels/linear for Python: arrays in, status out.
#include "kernels/linear/linear.h"

#include <nanobind/stl/optional.h>

#include <memory>
#include <optional>

#include "csrc/bindings/place.h"

namespace earnest::bindings {
namespace {

using linear::Pack;
using linear::Product;
using linear::Type;
using linear::WeightGradient;
using Read = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Write = nb::ndarray<nb::c_contig, nb::device::cpu>;
using ReadBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WriteBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ReadAnywhere = nb::ndarray<nb::ro, nb::c_contig>;
using WriteAnywhere = nb::ndarray<nb::c_contig>;

void expect(bool holds, const char* argument, const char* expected) {
  if (!holds) raise_if_error(invalid_argument("linear", argument, expected, "something else"));
}

template <typename Array>
Type type_of(const Array& x) {
  const auto dtype = x.dtype();
  if (dtype == nb::dtype<float>()) return Type::kFloat32;
  if (dtype == nb::dtype<double>()) return Type::kFloat64;
  expect(dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && dtype.bits == 16, "dtype",
         "float32, float64 or bfloat16");
  return Type::kBFloat16;
}

// [..., last]: how many rows, and how long they are.
template <typename Array>
int64_t last_of(const Array& x) {
  return static_cast<int64_t>(x.shape(x.ndim() - 1));
}
template <typename Array>
int64_t rows_of(const Array& x) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < x.ndim(); ++i) rows *= static_cast<int64_t>(x.shape(i));
  return rows;
}

// Scratch memory is kept for the thread's next call: fresh memory would cost a page fault every 4 KiB.
template <typename Job>
void run_with_workspace(const Job& job) {
  constexpr size_t kMostKept = size_t{16} << 20;
  thread_local std::unique_ptr<char[]> kept;
  thread_local size_t kept_bytes = 0;
  Status status;
  {
    nb::gil_scoped_release release;
    const size_t bytes = workspace_size(job);
    std::unique_ptr<char[]> large;
    if (bytes > kMostKept) {
      large.reset(new char[bytes]);
    } else if (bytes > kept_bytes) {
      kept.reset();
      kept_bytes = 0;
      kept.reset(new char[bytes]);
      kept_bytes = bytes;
    }
    status = run(job, large ? large.get() : kept.get());
  }
  raise_if_error(status);
}

Pack pack_of(const Read& source, bool transposed) {
  expect(source.ndim() == 2, "weight", "an array of two axes");
  Pack pack;
  pack.type = type_of(source);
  pack.columns = static_cast<int64_t>(source.shape(transposed ? 1 : 0));
  pack.depth = static_cast<int64_t>(source.shape(transposed ? 0 : 1));
  pack.transposed = transposed;
  pack.source = data_of("linear", "weight", source);
  return pack;
}

size_t packed_size(const Read& source, bool transposed) {
  size_t bytes = 0;
  raise_if_error(linear::packed_size(pack_of(source, transposed), &bytes));
  return bytes;
}

uint64_t fingerprint(const Read& source) {
  uint64_t digest = 0;
  raise_if_error(linear::fingerprint(pack_of(source, false), &digest));
  return digest;
}

void pack(const Read& source, bool transposed, const WriteBytes& packed) {
  const Pack job = pack_of(source, transposed);
  size_t bytes = 0;
  raise_if_error(linear::packed_size(job, &bytes));
  expect(packed.size() == bytes, "packed", "as many bytes as linear_packed_size says");
  uint8_t* memory = packed.data();  // bytes; the kernel says where they must lie
  Status status;
  {
    nb::gil_scoped_release release;
    status = run(job, memory);
  }
  raise_if_error(status);
}

void product(const Read& left, const ReadBytes& packed, const std::optional<Read>& bias,
             const Write& output) {
  expect(left.ndim() >= 1 && left.ndim() == output.ndim() && rows_of(left) == rows_of(output), "output",
         "the leading axes of the input");
  expect(left.dtype() == output.dtype(), "output", "the dtype of the input");
  Product job;
  job.type = type_of(left);
  job.rows = rows_of(left);
  job.columns = last_of(output);
  job.depth = last_of(left);
  job.left = data_of("linear", "input", left);
  job.packed = packed.data();  // bytes; the kernel says where they must lie
  job.output = data_of("linear", "output", output);
  Pack shape;
  shape.type = job.type;
  shape.columns = job.columns;
  shape.depth = job.depth;
  size_t bytes = 0;
  raise_if_error(packed_size(shape, &bytes));
  expect(packed.size() == bytes, "packed", "a packed matrix of the same shape and type");
  if (bias) {
    expect(bias->ndim() == 1 && last_of(*bias) == job.columns && bias->dtype() == left.dtype(), "bias",
           "one number per output, of the dtype of the input");
    job.bias = data_of("linear", "bias", bias);
  }
  run_with_workspace(job);
}

linear::CudaPath path_of(const std::string& name) {
  if (name == "sm80") return linear::CudaPath::kSm80;
  if (name == "few") return linear::CudaPath::kFew;
  if (name == "vendor") return linear::CudaPath::kVendor;
  expect(name == "best", "path", "best, sm80, few or vendor");
  return linear::CudaPath::kBest;
}

// On cuda, from the weight as it is.
void product_on_cuda(const ReadAnywhere& left, const ReadAnywhere& weight,
                     const std::optional<ReadAnywhere>& bias, const WriteAnywhere& output, uintptr_t stream,
                     const std::optional<nb::callable>& allocate, const FaultArray& fault,
                     const std::string& path) {
  const Place place("linear", left, {stream, allocate, fault});
  expect(place.device() == Device::kCuda, "device", "cuda");
  expect(left.ndim() >= 1 && left.ndim() == output.ndim() && rows_of(left) == rows_of(output), "output",
         "the leading axes of the input");
  expect(weight.ndim() == 2 && last_of(weight) == last_of(left) && rows_of(weight) == last_of(output),
         "weight", "[outputs, inputs]");
  expect(left.dtype() == output.dtype() && left.dtype() == weight.dtype(), "weight",
         "the dtype of the input");
  Product job;
  job.type = type_of(left);
  job.rows = rows_of(left);
  job.columns = last_of(output);
  job.depth = last_of(left);
  job.left = place.data("input", left);
  job.packed = place.data("weight", weight);
  job.output = place.data("output", output);
  if (bias) {
    expect(bias->ndim() == 1 && last_of(*bias) == job.columns && bias->dtype() == left.dtype(), "bias",
           "one number per output, of the dtype of the input");
    job.bias = place.data("bias", *bias);
  }
  job.device = Device::kCuda;
  job.stream = place.stream();
  job.path = path_of(path);
  Workspace workspace(place, workspace_size(job));
  Status status;
  {
    nb::gil_scoped_release release;
    status = run(job, workspace.data());
  }
  raise_if_error(status);
}

void weight_gradient(const Read& grad_output, const Read& input, const std::optional<Write>& grad_weight,
                     const std::optional<Write>& grad_bias) {
  expect(grad_output.ndim() >= 1 && input.ndim() >= 1 && rows_of(grad_output) == rows_of(input) &&
             grad_output.dtype() == input.dtype(),
         "grad_output", "the rows and dtype of the input");
  WeightGradient job;
  job.type = type_of(input);
  job.rows = rows_of(input);
  job.outputs = last_of(grad_output);
  job.inputs = last_of(input);
  job.grad_output = data_of("linear", "grad_output", grad_output);
  job.input = data_of("linear", "input", input);
  if (grad_weight) {
    expect(grad_weight->ndim() == 2 && rows_of(*grad_weight) == job.outputs &&
               last_of(*grad_weight) == job.inputs && grad_weight->dtype() == input.dtype(),
           "grad_weight", "the weight's shape and dtype");
    job.grad_weight = data_of("linear", "grad_weight", grad_weight);
  }
  if (grad_bias) {
    expect(
        grad_bias->ndim() == 1 && last_of(*grad_bias) == job.outputs && grad_bias->dtype() == input.dtype(),
        "grad_bias", "one number per output, of the dtype of the input");
    job.grad_bias = data_of("linear", "grad_bias", grad_bias);
  }
  run_with_workspace(job);
}

}  // namespace

void bind_linear(nb::module_& module) {
  module.def("linear_packed_size", &packed_size, nb::arg("source").noconvert(), nb::arg("transposed"));
  module.def("linear_fingerprint", &fingerprint, nb::arg("source").noconvert());
  module.def("linear_pack", &pack, nb::arg("source").noconvert(), nb::arg("transposed"),
             nb::arg("packed").noconvert());
  module.def("linear_product", &product, nb::arg("left").noconvert(), nb::arg("packed").noconvert(),
             nb::arg("bias").noconvert().none(), nb::arg("output").noconvert());
  module.def("linear_product_on_cuda", &product_on_cuda, nb::arg("left").noconvert(),
             nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(), nb::arg("output").noconvert(),
             nb::arg("stream"), nb::arg("allocate").none(), nb::arg("fault").noconvert().none(),
             nb::arg("path"));
  module.def("linear_weight_gradient", &weight_gradient, nb::arg("grad_output").noconvert(),
             nb::arg("input").noconvert(), nb::arg("grad_weight").noconvert().none(),
             nb::arg("grad_bias").noconvert().none());
  module.def(
      "linear_which",
      [](const std::string& device) {
        if (device != "cpu" && device != "cuda") {
          raise_if_error(invalid_argument("linear", "device", "cpu or cuda", device));
        }
        std::string name;
        raise_if_error(linear::which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
        return name;
      },
      nb::arg("device"));
}

}  // namespace earnest::bindings
