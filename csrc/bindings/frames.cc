// SPDX-License-Identifier: Apache-2.0
#include "kernels/frames/frames.h"

#include "csrc/bindings/stored.h"

namespace earnest::bindings {
namespace {

using namespace nb::literals;
using frames::Arithmetic;

template <typename Stored>
frames::LayerNorm<Stored> norm_of(const In<Stored, 2>& x, const In<Stored, 1>& weight, double eps,
                                  const Output<Arithmetic<Stored>, 1>& mean,
                                  const Output<Arithmetic<Stored>, 1>& inverse) {
  const size_t rows = x.shape(0), width = x.shape(1);
  check_shape("layer_norm", "weight", weight, {width});
  check_shape("layer_norm", "mean", mean, {rows});
  check_shape("layer_norm", "inverse", inverse, {rows});
  frames::LayerNorm<Stored> job;
  job.rows = static_cast<int64_t>(rows);
  job.width = static_cast<int64_t>(width);
  job.eps = eps;
  job.x = stored<Stored>("layer_norm", "x", x);
  job.weight = stored<Stored>("layer_norm", "weight", weight);
  job.mean = data_of("layer_norm", "mean", mean);
  job.inverse = data_of("layer_norm", "inverse", inverse);
  return job;
}

template <typename Stored>
void layer_norm(const In<Stored, 2>& x, const In<Stored, 1>& weight, const In<Stored, 1>& bias, double eps,
                const Out<Stored, 2>& y, const Output<Arithmetic<Stored>, 1>& mean,
                const Output<Arithmetic<Stored>, 1>& inverse) {
  auto job = norm_of<Stored>(x, weight, eps, mean, inverse);
  check_shape("layer_norm", "bias", bias, {x.shape(1)});
  check_shape("layer_norm", "y", y, {x.shape(0), x.shape(1)});
  job.bias = stored<Stored>("layer_norm", "bias", bias);
  job.y = stored<Stored>("layer_norm", "y", y);
  without_gil([&] { return frames::run(job); });
}

template <typename Stored>
void layer_norm_backward(const In<Stored, 2>& grad_y, const In<Stored, 2>& x, const In<Stored, 1>& weight,
                         double eps, const Output<Arithmetic<Stored>, 1>& mean,
                         const Output<Arithmetic<Stored>, 1>& inverse, const Out<Stored, 2>& grad_x,
                         const Output<Arithmetic<Stored>, 1>& grad_weight,
                         const Output<Arithmetic<Stored>, 1>& grad_bias) {
  auto job = norm_of<Stored>(x, weight, eps, mean, inverse);
  check_shape("layer_norm", "grad_y", grad_y, {x.shape(0), x.shape(1)});
  check_shape("layer_norm", "grad_x", grad_x, {x.shape(0), x.shape(1)});
  check_shape("layer_norm", "grad_weight", grad_weight, {x.shape(1)});
  check_shape("layer_norm", "grad_bias", grad_bias, {x.shape(1)});
  job.grad_y = stored<Stored>("layer_norm", "grad_y", grad_y);
  job.grad_x = stored<Stored>("layer_norm", "grad_x", grad_x);
  job.grad_weight = data_of("layer_norm", "grad_weight", grad_weight);
  job.grad_bias = data_of("layer_norm", "grad_bias", grad_bias);
  without_gil([&] { return frames::run_backward(job); });
}

template <typename Stored>
void gelu(const In<Stored, 1>& x, const Out<Stored, 1>& y) {
  check_shape("gelu", "y", y, {x.shape(0)});
  frames::Gelu<Stored> job;
  job.count = static_cast<int64_t>(x.shape(0));
  job.x = stored<Stored>("gelu", "x", x);
  job.y = stored<Stored>("gelu", "y", y);
  without_gil([&] { return frames::run(job); });
}

template <typename Stored>
void gelu_backward(const In<Stored, 1>& grad_y, const In<Stored, 1>& x, const Out<Stored, 1>& grad_x) {
  check_shape("gelu", "grad_y", grad_y, {x.shape(0)});
  check_shape("gelu", "grad_x", grad_x, {x.shape(0)});
  frames::Gelu<Stored> job;
  job.count = static_cast<int64_t>(x.shape(0));
  job.x = stored<Stored>("gelu", "x", x);
  job.grad_y = stored<Stored>("gelu", "grad_y", grad_y);
  job.grad_x = stored<Stored>("gelu", "grad_x", grad_x);
  without_gil([&] { return frames::run_backward(job); });
}

template <typename Stored>
void bind_type(nb::module_& module) {
  module.def("layer_norm", &layer_norm<Stored>, "x"_a.noconvert(), "weight"_a.noconvert(),
             "bias"_a.noconvert(), "eps"_a, "y"_a.noconvert(), "mean"_a.noconvert(), "inverse"_a.noconvert());
  module.def("layer_norm_backward", &layer_norm_backward<Stored>, "grad_y"_a.noconvert(), "x"_a.noconvert(),
             "weight"_a.noconvert(), "eps"_a, "mean"_a.noconvert(), "inverse"_a.noconvert(),
             "grad_x"_a.noconvert(), "grad_weight"_a.noconvert(), "grad_bias"_a.noconvert());
  module.def("gelu", &gelu<Stored>, "x"_a.noconvert(), "y"_a.noconvert());
  module.def("gelu_backward", &gelu_backward<Stored>, "grad_y"_a.noconvert(), "x"_a.noconvert(),
             "grad_x"_a.noconvert());
}

}  // namespace

void bind_frames(nb::module_& module) {
  bind_type<float>(module);
  bind_type<double>(module);
  bind_type<BFloat16>(module);
  module.def(
      "frames_which",
      [](const std::string& device) {
        if (device != "cpu" && device != "cuda") {
          raise_if_error(invalid_argument("frames", "device", "cpu or cuda", device));
        }
        std::string name;
        raise_if_error(frames::which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
        return name;
      },
      "device"_a);
}

}  // namespace earnest::bindings
