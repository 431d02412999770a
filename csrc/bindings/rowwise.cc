// SPDX-License-Identifier: Apache-2.0
#include "kernels/rowwise/rowwise.h"

#include "csrc/bindings/stored.h"
#include "kernels/rowwise/angles.h"

namespace earnest::bindings {
namespace {

using namespace nb::literals;
using rowwise::Arithmetic;

template <typename Stored>
rowwise::RmsNorm<Stored> norm_of(const In<Stored, 2>& x, const In<Stored, 1>& weight, double eps,
                                 const Output<Arithmetic<Stored>, 1>& inverse) {
  const size_t rows = x.shape(0), width = x.shape(1);
  check_shape("rms_norm", "weight", weight, {width});
  check_shape("rms_norm", "inverse", inverse, {rows});
  rowwise::RmsNorm<Stored> job;
  job.rows = static_cast<int64_t>(rows);
  job.width = static_cast<int64_t>(width);
  job.eps = eps;
  job.x = stored<Stored>("rms_norm", "x", x);
  job.weight = stored<Stored>("rms_norm", "weight", weight);
  job.inverse = data_of("rms_norm", "inverse", inverse);
  return job;
}

template <typename Stored>
void rms_norm(const In<Stored, 2>& x, const In<Stored, 1>& weight, double eps, const Out<Stored, 2>& y,
              const Output<Arithmetic<Stored>, 1>& inverse) {
  auto job = norm_of<Stored>(x, weight, eps, inverse);
  check_shape("rms_norm", "y", y, {x.shape(0), x.shape(1)});
  job.y = stored<Stored>("rms_norm", "y", y);
  without_gil([&] { return rowwise::rms_norm(job); });
}

template <typename Stored>
void rms_norm_backward(const In<Stored, 2>& grad_y, const In<Stored, 2>& x, const In<Stored, 1>& weight,
                       double eps, const Output<Arithmetic<Stored>, 1>& inverse, const Out<Stored, 2>& grad_x,
                       const Output<Arithmetic<Stored>, 1>& grad_weight) {
  auto job = norm_of<Stored>(x, weight, eps, inverse);
  check_shape("rms_norm", "grad_y", grad_y, {x.shape(0), x.shape(1)});
  check_shape("rms_norm", "grad_x", grad_x, {x.shape(0), x.shape(1)});
  check_shape("rms_norm", "grad_weight", grad_weight, {x.shape(1)});
  job.grad_y = stored<Stored>("rms_norm", "grad_y", grad_y);
  job.grad_x = stored<Stored>("rms_norm", "grad_x", grad_x);
  job.grad_weight = data_of("rms_norm", "grad_weight", grad_weight);
  without_gil([&] { return rowwise::rms_norm_backward(job); });
}

// Forward and backward see the same arrays; what one reads the other writes.
template <typename Fused, typename Apart, typename Run>
void turned(const Out<Fused, 2>& qkv, const Input<Arithmetic<Fused>, 2>& cosine,
            const Input<Arithmetic<Fused>, 2>& sine, const Out<Apart, 3>& q, const Out<Apart, 3>& k,
            const Out<Apart, 3>& v, const Run& run) {
  const size_t rows = q.shape(0), heads = q.shape(1), dim = q.shape(2), kv_heads = k.shape(1);
  check_shape("rotary", "k", k, {rows, kv_heads, dim});
  check_shape("rotary", "v", v, {rows, kv_heads, dim});
  check_shape("rotary", "qkv", qkv, {rows, (heads + 2 * kv_heads) * dim});
  check_shape("rotary", "cosine", cosine, {rows, dim / 2});
  check_shape("rotary", "sine", sine, {rows, dim / 2});
  rowwise::Rotary<Fused, Apart> job;
  job.rows = static_cast<int64_t>(rows);
  job.heads = static_cast<int64_t>(heads);
  job.kv_heads = static_cast<int64_t>(kv_heads);
  job.dim = static_cast<int64_t>(dim);
  job.cosine = data_of("rotary", "cosine", cosine);
  job.sine = data_of("rotary", "sine", sine);
  job.qkv = stored<Fused>("rotary", "qkv", qkv);
  job.q = stored<Apart>("rotary", "q", q);
  job.k = stored<Apart>("rotary", "k", k);
  job.v = stored<Apart>("rotary", "v", v);
  without_gil([&] { return run(job); });
}

template <typename Fused, typename Apart>
void rotary(const Out<Fused, 2>& qkv, const Input<Arithmetic<Fused>, 2>& cosine,
            const Input<Arithmetic<Fused>, 2>& sine, const Out<Apart, 3>& q, const Out<Apart, 3>& k,
            const Out<Apart, 3>& v) {
  turned<Fused, Apart>(qkv, cosine, sine, q, k, v, [](const auto& job) { return rowwise::rotary(job); });
}

template <typename Fused, typename Apart>
void rotary_backward(const Out<Fused, 2>& qkv, const Input<Arithmetic<Fused>, 2>& cosine,
                     const Input<Arithmetic<Fused>, 2>& sine, const Out<Apart, 3>& q, const Out<Apart, 3>& k,
                     const Out<Apart, 3>& v) {
  turned<Fused, Apart>(qkv, cosine, sine, q, k, v,
                       [](const auto& job) { return rowwise::rotary_backward(job); });
}

template <typename Stored>
rowwise::SwiGlu<Stored> gated(const In<Stored, 2>& gate_up) {
  if (gate_up.shape(1) % 2 != 0) {
    raise_if_error(invalid_argument("swiglu", "gate_up", "[rows, 2 width]", shape_of(gate_up)));
  }
  rowwise::SwiGlu<Stored> job;
  job.rows = static_cast<int64_t>(gate_up.shape(0));
  job.width = static_cast<int64_t>(gate_up.shape(1) / 2);
  job.gate_up = stored<Stored>("swiglu", "gate_up", gate_up);
  return job;
}

template <typename Stored>
void swiglu(const In<Stored, 2>& gate_up, const Out<Stored, 2>& out) {
  auto job = gated<Stored>(gate_up);
  check_shape("swiglu", "out", out, {gate_up.shape(0), gate_up.shape(1) / 2});
  job.out = stored<Stored>("swiglu", "out", out);
  without_gil([&] { return rowwise::swiglu(job); });
}

template <typename Stored>
void swiglu_backward(const In<Stored, 2>& grad_out, const In<Stored, 2>& gate_up,
                     const Out<Stored, 2>& grad_gate_up) {
  auto job = gated<Stored>(gate_up);
  check_shape("swiglu", "grad_out", grad_out, {gate_up.shape(0), gate_up.shape(1) / 2});
  check_shape("swiglu", "grad_gate_up", grad_gate_up, {gate_up.shape(0), gate_up.shape(1)});
  job.grad_out = stored<Stored>("swiglu", "grad_out", grad_out);
  job.grad_gate_up = stored<Stored>("swiglu", "grad_gate_up", grad_gate_up);
  without_gil([&] { return rowwise::swiglu_backward(job); });
}

template <typename Stored>
void bind_type(nb::module_& module) {
  module.def("rms_norm", &rms_norm<Stored>, "x"_a.noconvert(), "weight"_a.noconvert(), "eps"_a,
             "y"_a.noconvert(), "inverse"_a.noconvert());
  module.def("rms_norm_backward", &rms_norm_backward<Stored>, "grad_y"_a.noconvert(), "x"_a.noconvert(),
             "weight"_a.noconvert(), "eps"_a, "inverse"_a.noconvert(), "grad_x"_a.noconvert(),
             "grad_weight"_a.noconvert());
  module.def("swiglu", &swiglu<Stored>, "gate_up"_a.noconvert(), "out"_a.noconvert());
  module.def("swiglu_backward", &swiglu_backward<Stored>, "grad_out"_a.noconvert(), "gate_up"_a.noconvert(),
             "grad_gate_up"_a.noconvert());
}

template <typename Fused, typename Apart>
void bind_pair(nb::module_& module, const std::string& name) {
  module.def(name.c_str(), &rotary<Fused, Apart>, "qkv"_a.noconvert(), "cosine"_a.noconvert(),
             "sine"_a.noconvert(), "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert());
  module.def((name + "_backward").c_str(), &rotary_backward<Fused, Apart>, "qkv"_a.noconvert(),
             "cosine"_a.noconvert(), "sine"_a.noconvert(), "q"_a.noconvert(), "k"_a.noconvert(),
             "v"_a.noconvert());
}

void rotary_angles(const Input<int64_t, 1>& positions, double theta, const Output<float, 2>& cosine,
                   const Output<float, 2>& sine) {
  const size_t rows = positions.shape(0), half = cosine.shape(1);
  check_shape("rotary_angles", "cosine", cosine, {rows, half});
  check_shape("rotary_angles", "sine", sine, {rows, half});
  rowwise::RotaryAngles job;
  job.rows = static_cast<int64_t>(rows);
  job.dim = static_cast<int64_t>(2 * half);
  job.theta = theta;
  job.positions = data_of("rotary_angles", "positions", positions);
  job.cosine = data_of("rotary_angles", "cosine", cosine);
  job.sine = data_of("rotary_angles", "sine", sine);
  without_gil([&] { return rowwise::run(job); });
}

}  // namespace

void bind_rowwise(nb::module_& module) {
  bind_type<float>(module);
  bind_type<double>(module);
  bind_type<BFloat16>(module);
  bind_pair<float, float>(module, "rotary");
  bind_pair<double, double>(module, "rotary");
  bind_pair<BFloat16, BFloat16>(module, "rotary");
  // A name of its own: an overload that fits the first array alone would have used it up.
  bind_pair<BFloat16, float>(module, "rotary_widening");
  module.def("rotary_angles", &rotary_angles, "positions"_a.noconvert(), "theta"_a, "cosine"_a.noconvert(),
             "sine"_a.noconvert());
  module.def(
      "rowwise_which",
      [](const std::string& device) {
        if (device != "cpu" && device != "cuda") {
          raise_if_error(invalid_argument("rowwise", "device", "cpu or cuda", device));
        }
        std::string name;
        raise_if_error(rowwise::which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
        return name;
      },
      nb::arg("device"));
}

}  // namespace earnest::bindings
