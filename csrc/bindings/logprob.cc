// SPDX-License-Identifier: Apache-2.0
#include "kernels/logprob/logprob.h"

#include <optional>

#include "csrc/bindings/place.h"

namespace earnest::bindings {
namespace {

using logprob::Backward;
using logprob::Forward;
using logprob::Problem;
using logprob::Type;

// bfloat16 has no numpy type: it comes as its bits in int16.
template <typename Stored>
constexpr Type kType = sizeof(Stored) == 8   ? Type::kFloat64
                       : sizeof(Stored) == 4 ? Type::kFloat32
                                             : Type::kBFloat16;

template <typename Stored>
Problem problem_of(const Place& place, const AnyInput<Stored, 2>& hidden, const AnyInput<Stored, 2>& weight,
                   const AnyInput<int64_t, 1>& targets, double temperature) {
  if (hidden.shape(1) != weight.shape(1)) {
    raise_if_error(invalid_argument("logprob", "weight",
                                    std::to_string(hidden.shape(1)) + " columns as in hidden",
                                    std::to_string(weight.shape(1))));
  }
  if (hidden.shape(0) != targets.shape(0)) {
    raise_if_error(invalid_argument("logprob", "targets",
                                    std::to_string(hidden.shape(0)) + " rows as in hidden",
                                    std::to_string(targets.shape(0))));
  }
  Problem problem;
  problem.type = kType<Stored>;
  problem.rows = static_cast<int64_t>(hidden.shape(0));
  problem.depth = static_cast<int64_t>(hidden.shape(1));
  problem.vocabulary = static_cast<int64_t>(weight.shape(0));
  problem.temperature = temperature;
  problem.hidden = place.data("hidden", hidden);
  problem.weight = place.data("weight", weight);
  problem.targets = place.data("targets", targets);
  problem.device = place.device();
  problem.stream = place.stream();
  problem.fault = place.fault();
  return problem;
}

template <typename Run>
void run_with_workspace(const Place& place, const Run& job) {
  raise_if_error(check(job.problem));
  Workspace workspace(place, workspace_size(job));
  Status status;
  {
    nb::gil_scoped_release release;
    status = run(job, workspace.data());
  }
  raise_if_error(status);
}

void check_size(const char* argument, size_t expected, size_t got) {
  if (expected == got) return;
  raise_if_error(
      invalid_argument("logprob", argument, std::to_string(expected) + " elements", std::to_string(got)));
}

template <typename Stored, typename Row>
void forward(const AnyInput<Stored, 2>& hidden, const AnyInput<Stored, 2>& weight,
             const AnyInput<int64_t, 1>& targets, double temperature, const AnyOutput<Row, 1>& logp,
             const AnyOutput<Row, 1>& entropy, const AnyOutput<Row, 1>& lse,
             const std::optional<AnyOutput<Row, 1>>& logits, uintptr_t stream,
             const std::optional<nb::callable>& allocate, const FaultArray& fault) {
  const Place place("logprob", hidden, {stream, allocate, fault});
  Forward job;
  job.problem = problem_of<Stored>(place, hidden, weight, targets, temperature);
  check_size("logp", hidden.shape(0), logp.shape(0));
  check_size("entropy", hidden.shape(0), entropy.shape(0));
  check_size("lse", hidden.shape(0), lse.shape(0));
  job.logp = place.data("logp", logp);
  job.entropy = place.data("entropy", entropy);
  job.lse = place.data("lse", lse);
  if (logits) {
    check_size("logits", static_cast<size_t>(logprob::kept_size(job.problem)), logits->size());
    job.logits = place.data("logits", logits);
  }
  run_with_workspace(place, job);
}

// The arrays that tell the overloads apart come first: a capsule can be opened once.
template <typename Stored, typename Row>
void backward(const AnyInput<Stored, 2>& hidden, const AnyInput<Stored, 2>& weight,
              const AnyInput<int64_t, 1>& targets, const std::optional<AnyInput<Row, 1>>& grad_logp,
              const std::optional<AnyInput<Row, 1>>& grad_entropy,
              const std::optional<AnyInput<Row, 1>>& grad_lse, const AnyInput<Row, 1>& entropy,
              const AnyInput<Row, 1>& lse, const std::optional<AnyInput<Row, 1>>& logits, double temperature,
              const std::optional<AnyOutput<Stored, 2>>& grad_hidden,
              const std::optional<AnyOutput<Stored, 2>>& grad_weight, uintptr_t stream,
              const std::optional<nb::callable>& allocate, const FaultArray& fault) {
  const Place place("logprob", hidden, {stream, allocate, fault});
  Backward job;
  job.problem = problem_of<Stored>(place, hidden, weight, targets, temperature);
  const auto rows_of = [&](const std::optional<AnyInput<Row, 1>>& rows) {
    if (rows) check_size("row gradients", hidden.shape(0), rows->shape(0));
    return place.data("row gradients", rows);
  };
  check_size("entropy", hidden.shape(0), entropy.shape(0));
  check_size("lse", hidden.shape(0), lse.shape(0));
  job.entropy = place.data("entropy", entropy);
  job.lse = place.data("lse", lse);
  if (logits) {
    check_size("logits", static_cast<size_t>(logprob::kept_size(job.problem)), logits->size());
    job.logits = place.data("logits", logits);
  }
  job.grad_logp = rows_of(grad_logp);
  job.grad_entropy = rows_of(grad_entropy);
  job.grad_lse = rows_of(grad_lse);
  if (grad_hidden) {
    check_size("grad_hidden", hidden.size(), grad_hidden->size());
    job.grad_hidden = place.data("grad_hidden", grad_hidden);
  }
  if (grad_weight) {
    check_size("grad_weight", weight.size(), grad_weight->size());
    job.grad_weight = place.data("grad_weight", grad_weight);
  }
  run_with_workspace(place, job);
}

template <typename Stored, typename Row>
void bind_type(nb::module_& module) {
  module.def("logprob_forward", &forward<Stored, Row>, nb::arg("hidden").noconvert(),
             nb::arg("weight").noconvert(), nb::arg("targets").noconvert(), nb::arg("temperature"),
             nb::arg("logp").noconvert(), nb::arg("entropy").noconvert(), nb::arg("lse").noconvert(),
             nb::arg("logits").noconvert().none(), nb::arg("stream") = 0, nb::arg("allocate") = nb::none(),
             nb::arg("fault").noconvert() = nb::none());
  module.def("logprob_backward", &backward<Stored, Row>, nb::arg("hidden").noconvert(),
             nb::arg("weight").noconvert(), nb::arg("targets").noconvert(),
             nb::arg("grad_logp").noconvert().none(), nb::arg("grad_entropy").noconvert().none(),
             nb::arg("grad_lse").noconvert().none(), nb::arg("entropy").noconvert(),
             nb::arg("lse").noconvert(), nb::arg("logits").noconvert().none(), nb::arg("temperature"),
             nb::arg("grad_hidden").noconvert().none(), nb::arg("grad_weight").noconvert().none(),
             nb::arg("stream") = 0, nb::arg("allocate") = nb::none(),
             nb::arg("fault").noconvert() = nb::none());
}

}  // namespace

void bind_logprob(nb::module_& module) {
  bind_type<float, float>(module);
  bind_type<double, double>(module);
  bind_type<int16_t, float>(module);
  module.def(
      "logprob_kept_size",
      [](int64_t rows, int64_t vocabulary, bool float64) {
        if (rows < 0 || vocabulary < 1) {
          raise_if_error(invalid_argument("logprob", "sizes", "N >= 0 and V >= 1",
                                          std::to_string(rows) + " and " + std::to_string(vocabulary)));
        }
        Problem problem;
        problem.type = float64 ? Type::kFloat64 : Type::kFloat32;
        problem.rows = rows;
        problem.vocabulary = vocabulary;
        return logprob::kept_size(problem);
      },
      nb::arg("rows"), nb::arg("vocabulary"), nb::arg("float64"));
  module.def(
      "logprob_which",
      [](const std::string& device) {
        if (device != "cpu" && device != "cuda") {
          raise_if_error(invalid_argument("logprob", "device", "cpu or cuda", device));
        }
        std::string name;
        raise_if_error(logprob::which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
        return name;
      },
      nb::arg("device"));
}

}  // namespace earnest::bindings
