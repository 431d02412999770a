// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "csrc/bindings/place.h"
#include "kernels/ppo/advantage.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/loss.h"
#include "kernels/ppo/tiers.h"

namespace earnest::bindings {
namespace {

using namespace nb::literals;
using Flags = AnyInput<bool, 1>;
template <typename T>
using MaybeInput = std::optional<AnyInput<T, 1>>;
template <typename T>
using MaybeOutput = std::optional<AnyOutput<T, 1>>;
using Allocate = std::optional<nb::callable>;

using bindings::data_of;

// The array, which must have `size` elements.
template <typename Array>
const Array& sized(const char* op, const char* name, const Array& array, size_t size) {
  if (array.shape(0) != size) {
    raise_if_error(invalid_argument(op, name, "[" + std::to_string(size) + "]",
                                    "[" + std::to_string(array.shape(0)) + "]"));
  }
  return array;
}

template <typename Array>
auto* data_of(const Place& place, const char* name, const Array& array, size_t size) {
  return place.data(name, sized(place.op(), name, array, size));
}

template <typename Array>
auto data_of(const Place& place, const char* name, const std::optional<Array>& array, size_t size)
    -> decltype(array->data()) {
  return array ? data_of(place, name, *array, size) : nullptr;
}

template <typename Array>
auto* data_of(const char* op, const char* name, const Array& array, size_t size) {
  return data_of(op, name, sized(op, name, array, size));
}

const uint8_t* bytes_of(const bool* flags) { return reinterpret_cast<const uint8_t*>(flags); }

template <typename T>
void gae(const AnyInput<T, 1>& rewards, const AnyInput<T, 1>& values, const Flags& trainable,
         const AnyInput<int32_t, 1>& cu_seqlens, double gamma, double lam, bool refuse_masked_rewards,
         const AnyOutput<T, 1>& advantages, const AnyOutput<T, 1>& returns, uintptr_t stream,
         const Allocate& allocate, const FaultArray& fault) {
  constexpr const char* kOp = "gae";
  const Place place(kOp, rewards, {stream, allocate, fault});
  const size_t tokens = rewards.shape(0);
  if (cu_seqlens.shape(0) < 1) raise_if_error(invalid_argument(kOp, "cu_seqlens", "[sequences + 1]", "[0]"));
  ppo::GaeParams<T> params;
  params.rewards = place.data("rewards", rewards);
  params.values = data_of(place, "values", values, tokens);
  params.trainable = bytes_of(data_of(place, "trainable", trainable, tokens));
  params.cu_seqlens = place.data("cu_seqlens", cu_seqlens);
  params.tokens = static_cast<int64_t>(tokens);
  params.sequences = static_cast<int64_t>(cu_seqlens.shape(0)) - 1;
  params.gamma = gamma;
  params.lam = lam;
  params.refuse_masked_rewards = refuse_masked_rewards;
  params.advantages = data_of(place, "advantages", advantages, tokens);
  params.returns = data_of(place, "returns", returns, tokens);
  params.stream = place.stream();
  params.fault = place.fault();
  Workspace workspace(place, ppo::gae_workspace_size(params.tokens, params.sequences, place.device()));
  params.workspace = workspace.data();
  Status status;
  {
    nb::gil_scoped_release release;
    status = ppo::run_gae(params, place.device());
  }
  raise_if_error(status);
}

ppo::KlEstimator kl_estimator_of(const std::string& name) {
  if (name == "k1") return ppo::KlEstimator::kK1;
  if (name == "k2") return ppo::KlEstimator::kK2;
  if (name != "k3")
    raise_if_error(invalid_argument("ppo_loss", "kl_estimator", "k1, k2 or k3", "'" + name + "'"));
  return ppo::KlEstimator::kK3;
}

template <typename T>
void loss(const AnyInput<T, 1>& logp, const AnyInput<T, 1>& logp_old, const AnyInput<T, 1>& advantages,
          const MaybeInput<T>& values, const MaybeInput<T>& values_old, const MaybeInput<T>& returns,
          const MaybeInput<T>& logp_ref, const MaybeInput<T>& entropy, const MaybeInput<T>& weights,
          const MaybeInput<T>& token_normalizer, const Flags& trainable, double normalizer, double clip_low,
          double clip_high, std::optional<double> clip_value, std::optional<double> dual_clip,
          const std::string& kl_estimator, double policy_coef, double value_coef, double kl_coef,
          double entropy_coef, const MaybeOutput<T>& grad_logp, const MaybeOutput<T>& grad_values,
          const MaybeOutput<T>& grad_entropy, const AnyOutput<T, 0>& total, const AnyOutput<double, 1>& sums,
          uintptr_t stream, const Allocate& allocate, const FaultArray& fault) {
  const Place place("ppo_loss", logp, {stream, allocate, fault});
  const size_t tokens = logp.shape(0);
  ppo::LossParams<T> params;
  params.logp = place.data("logp", logp);
  params.logp_old = data_of(place, "logp_old", logp_old, tokens);
  params.advantages = data_of(place, "advantages", advantages, tokens);
  params.values = data_of(place, "values", values, tokens);
  params.values_old = data_of(place, "values_old", values_old, tokens);
  params.returns = data_of(place, "returns", returns, tokens);
  params.logp_ref = data_of(place, "logp_ref", logp_ref, tokens);
  params.entropy = data_of(place, "entropy", entropy, tokens);
  params.weights = data_of(place, "weights", weights, tokens);
  params.token_normalizer = data_of(place, "normalizer", token_normalizer, tokens);
  params.trainable = bytes_of(data_of(place, "trainable", trainable, tokens));
  params.tokens = static_cast<int64_t>(tokens);
  params.normalizer = normalizer;
  params.clip_low = clip_low;
  params.clip_high = clip_high;
  params.clip_value = clip_value.value_or(ppo::kNoClip);
  params.dual_clip = dual_clip.value_or(ppo::kNoClip);
  params.kl_estimator = kl_estimator_of(kl_estimator);
  params.policy_coef = policy_coef;
  params.value_coef = value_coef;
  params.kl_coef = kl_coef;
  params.entropy_coef = entropy_coef;
  params.grad_logp = data_of(place, "grad_logp", grad_logp, tokens);
  params.grad_values = data_of(place, "grad_values", grad_values, tokens);
  params.grad_entropy = data_of(place, "grad_entropy", grad_entropy, tokens);
  params.sums = data_of(place, "sums", sums, ppo::kNumSums);
  params.stream = place.stream();
  params.fault = place.fault();
  T* loss = place.data("total", total);
  if (place.device() == Device::kCuda) params.total = loss;
  Workspace workspace(place, ppo::loss_workspace_size(params.tokens, place.device()));
  Status status;
  {
    nb::gil_scoped_release release;
    status = ppo::run_loss(params, workspace.data(), place.device());
  }
  raise_if_error(status);
  if (place.device() == Device::kCpu) *loss = static_cast<T>(ppo::total_loss(params, params.sums));
}

// Moments are a count, a mean and a sum of squares, as Python holds them.
static_assert(sizeof(ppo::Moments) == 3 * sizeof(double));

template <typename T>
void moments(const AnyInput<T, 1>& x, const Flags& trainable, const AnyOutput<double, 1>& out,
             uintptr_t stream, const Allocate& allocate, const FaultArray& fault) {
  const Place place("whiten", x, {stream, allocate, fault});
  ppo::MomentsParams<T> params;
  params.x = place.data("x", x);
  params.trainable = bytes_of(data_of(place, "trainable", trainable, x.shape(0)));
  params.tokens = static_cast<int64_t>(x.shape(0));
  params.stream = place.stream();
  params.fault = place.fault();
  auto* found = reinterpret_cast<ppo::Moments*>(data_of(place, "moments", out, 3));
  Workspace workspace(place, ppo::moments_workspace_size(params.tokens, place.device()));
  Status status;
  {
    nb::gil_scoped_release release;
    status = ppo::run_moments(params, found, workspace.data(), place.device());
  }
  raise_if_error(status);
}

template <typename T>
void whiten(const AnyInput<T, 1>& x, const Flags& trainable, const AnyInput<double, 1>& moments, double eps,
            double min_std, const AnyOutput<T, 1>& out, uintptr_t stream, const Allocate& allocate,
            const FaultArray& fault) {
  const Place place("whiten", x, {stream, allocate, fault});
  ppo::WhitenParams<T> params;
  params.x = place.data("x", x);
  params.trainable = bytes_of(data_of(place, "trainable", trainable, x.shape(0)));
  params.tokens = static_cast<int64_t>(x.shape(0));
  const auto* given = reinterpret_cast<const ppo::Moments*>(data_of(place, "moments", moments, 3));
  if (place.device() == Device::kCuda) {
    params.moments_on_device = given;
  } else {
    params.moments = *given;
  }
  params.stream = place.stream();
  params.eps = eps;
  params.min_std = min_std;
  params.out = data_of(place, "out", out, x.shape(0));
  Status status;
  {
    nb::gil_scoped_release release;
    status = ppo::run_whiten(params, place.device());
  }
  raise_if_error(status);
}

template <typename T>
void group_advantage(const AnyInput<T, 1>& scores, const AnyInput<int64_t, 1>& groups,
                     const std::optional<Flags>& valid, bool leave_one_out, bool normalize_std, double eps,
                     double min_std, const AnyOutput<T, 1>& out, uintptr_t stream, const Allocate& allocate,
                     const FaultArray& fault) {
  const Place place("group_advantage", scores, {stream, allocate, fault});
  const size_t samples = scores.shape(0);
  ppo::GroupParams<T> params;
  params.scores = place.data("scores", scores);
  params.groups = data_of(place, "groups", groups, samples);
  params.valid = bytes_of(data_of(place, "valid", valid, samples));
  params.samples = static_cast<int64_t>(samples);
  params.baseline = leave_one_out ? ppo::GroupBaseline::kLeaveOneOut : ppo::GroupBaseline::kMean;
  params.normalize_std = normalize_std;
  params.eps = eps;
  params.min_std = min_std;
  params.advantages = data_of(place, "out", out, samples);
  params.stream = place.stream();
  params.fault = place.fault();
  Workspace workspace(place, ppo::group_workspace_size(params.samples, place.device()));
  Status status;
  {
    nb::gil_scoped_release release;
    status = ppo::run_group_advantage(params, workspace.data(), place.device());
  }
  raise_if_error(status);
}

// The rows of x, which must be at least one and `columns` wide.
size_t rows_of(const char* op, const char* name, const Input<double, 2>& x, size_t columns) {
  if (x.shape(0) < 1 || x.shape(1) != columns) {
    raise_if_error(
        invalid_argument(op, name, "[parts >= 1, " + std::to_string(columns) + "]",
                         "[" + std::to_string(x.shape(0)) + ", " + std::to_string(x.shape(1)) + "]"));
  }
  return x.shape(0);
}

// [parts, kNumSums] of parts of a batch -> [kNumSums] of the batch.
void join_sums(const Input<double, 2>& parts, const Output<double, 1>& out) {
  const size_t rows = rows_of("join_sums", "sums", parts, ppo::kNumSums);
  const double* part = data_of("join_sums", "sums", parts);
  double* total = data_of("join_sums", "out", out, ppo::kNumSums);
  std::copy(part, part + ppo::kNumSums, total);
  for (size_t i = 1; i < rows; ++i) ppo::join_sums(part + i * ppo::kNumSums, total);
}

void metrics(const Input<double, 1>& sums, const Output<double, 1>& out) {
  ppo::metrics_from_sums(data_of("ppo_metrics", "sums", sums, ppo::kNumSums),
                         data_of("ppo_metrics", "out", out, ppo::kNumMetrics));
}

// [parts, 3] of parts of a batch -> [3] of the batch.
void join_moments(const Input<double, 2>& parts, const Output<double, 1>& out) {
  const size_t rows = rows_of("join_moments", "moments", parts, 3);
  const double* first = data_of("join_moments", "moments", parts);
  double* total = data_of("join_moments", "out", out, 3);
  ppo::Moments joined;
  for (size_t i = 0; i < rows; ++i) {
    const double* m = first + 3 * i;
    joined = ppo::join(joined, {m[0], m[1], m[2]});
  }
  total[0] = joined.count;
  total[1] = joined.mean;
  total[2] = joined.m2;
}

template <typename T>
void bind(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  const auto maybe = [](const char* name) { return nb::arg(name).noconvert().none(); };
  const auto stream = nb::arg("stream") = 0;
  const auto allocate = nb::arg("allocate") = nb::none();
  const auto fault = nb::arg("fault").noconvert() = nb::none();
  module.def("ppo_gae", &gae<T>, array("rewards"), array("values"), array("trainable"), array("cu_seqlens"),
             "gamma"_a, "lam"_a, "refuse_masked_rewards"_a, array("advantages"), array("returns"), stream,
             allocate, fault);
  module.def("ppo_loss", &loss<T>, array("logp"), array("logp_old"), array("advantages"), maybe("values"),
             maybe("values_old"), maybe("returns"), maybe("logp_ref"), maybe("entropy"), maybe("weights"),
             maybe("token_normalizer"), array("trainable"), "normalizer"_a, "clip_low"_a, "clip_high"_a,
             "clip_value"_a.none(), "dual_clip"_a.none(), "kl_estimator"_a, "policy_coef"_a, "value_coef"_a,
             "kl_coef"_a, "entropy_coef"_a, maybe("grad_logp"), maybe("grad_values"), maybe("grad_entropy"),
             array("total"), array("sums"), stream, allocate, fault);
  module.def("ppo_moments", &moments<T>, array("x"), array("trainable"), array("out"), stream, allocate,
             fault);
  module.def("ppo_whiten", &whiten<T>, array("x"), array("trainable"), array("moments"), "eps"_a, "min_std"_a,
             array("out"), stream, allocate, fault);
  module.def("ppo_group_advantage", &group_advantage<T>, array("scores"), array("groups"), maybe("valid"),
             "leave_one_out"_a, "normalize_std"_a, "eps"_a, "min_std"_a, array("out"), stream, allocate,
             fault);
}

}  // namespace

void bind_ppo(nb::module_& module) {
  bind<float>(module);
  bind<double>(module);
  module.def("ppo_metrics", &metrics, nb::arg("sums").noconvert(), nb::arg("out").noconvert());
  module.def("ppo_join_sums", &join_sums, nb::arg("parts").noconvert(), nb::arg("out").noconvert());
  module.def("ppo_join_moments", &join_moments, nb::arg("parts").noconvert(), nb::arg("out").noconvert());
  module.def("ppo_metric_names", [] {
    return std::vector<std::string>(ppo::kMetricNames, ppo::kMetricNames + ppo::kNumMetrics);
  });
  module.attr("PPO_NUM_SUMS") = static_cast<int>(ppo::kNumSums);
  module.def(
      "ppo_which",
      [](const std::string& device) {
        if (device != "cpu" && device != "cuda") {
          raise_if_error(invalid_argument("ppo", "device", "cpu or cuda", "'" + device + "'"));
        }
        std::string name;
        raise_if_error(ppo::which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
        return name;
      },
      "device"_a);
}

}  // namespace earnest::bindings
