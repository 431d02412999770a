// SPDX-License-Identifier: Apache-2.0
// Arrays exactly as large as promised, so that the address sanitizer sees every byte touched beyond them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/rowwise/rowwise.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using namespace earnest::rowwise;

float wave(int64_t i) { return static_cast<float>(std::sin(0.37 * static_cast<double>(i))) * 3.0f; }

std::vector<float> waves(int64_t count, int64_t first = 0) {
  std::vector<float> numbers(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) numbers[static_cast<size_t>(i)] = wave(first + i);
  return numbers;
}

}  // namespace

TEST(norms_have_a_mean_square_of_one_and_gradients_across_the_row) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (int64_t width : {1, 7, 16, 33, 192}) {
      const int64_t rows = 70;
      std::vector<float> x = waves(rows * width), weight(static_cast<size_t>(width), 1.0f), y(x.size());
      std::vector<float> inverse(static_cast<size_t>(rows)), grad_x(x.size()), grad_weight(weight.size());
      RmsNorm<float> job{rows, width, 1e-12, x.data(), weight.data(), y.data(), inverse.data()};
      CHECK(rms_norm(job).ok());
      for (int64_t i = 0; i < rows; ++i) {
        double squares = 0;
        for (int64_t j = 0; j < width; ++j) squares += std::pow(y[static_cast<size_t>(i * width + j)], 2);
        if (x[static_cast<size_t>(i * width)] != 0) CHECK_NEAR(squares / static_cast<double>(width), 1, 1e-4);
      }
      // Scaling a row changes no norm: the gradient is at right angles to the row.
      const std::vector<float> grad_y = waves(rows * width, 1000);
      job.grad_y = grad_y.data();
      job.grad_x = grad_x.data();
      job.grad_weight = grad_weight.data();
      CHECK(rms_norm_backward(job).ok());
      for (int64_t i = 0; i < rows; ++i) {
        double along = 0;
        for (int64_t j = i * width; j < (i + 1) * width; ++j) {
          along += static_cast<double>(grad_x[static_cast<size_t>(j)]) * x[static_cast<size_t>(j)];
        }
        CHECK_NEAR(along, 0, 2e-4 * static_cast<double>(width));
      }
      for (int64_t j = 0; j < width; ++j) {
        double sum = 0;
        for (int64_t at = j; at < rows * width; at += width) {
          sum += static_cast<double>(grad_y[static_cast<size_t>(at)]) * y[static_cast<size_t>(at)];
        }
        CHECK_NEAR(grad_weight[static_cast<size_t>(j)], sum, 2e-4);
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(turning_back_gives_what_was_there) {
  const int64_t rows = 37, heads = 3, kv_heads = 2, dim = 10;
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    std::vector<float> qkv = waves(rows * (heads + 2 * kv_heads) * dim), back(qkv.size());
    std::vector<float> cosine(static_cast<size_t>(rows * dim / 2)), sine(cosine.size());
    for (size_t i = 0; i < cosine.size(); ++i) {
      cosine[i] = static_cast<float>(std::cos(1.7 * static_cast<double>(i)));
      sine[i] = static_cast<float>(std::sin(1.7 * static_cast<double>(i)));
    }
    std::vector<float> q(static_cast<size_t>(rows * heads * dim)),
        k(static_cast<size_t>(rows * kv_heads * dim)), v(k.size());
    Rotary<float, float> job{rows,        heads,      kv_heads, dim,      cosine.data(),
                             sine.data(), qkv.data(), q.data(), k.data(), v.data()};
    CHECK(rotary(job).ok());
    CHECK(q[6] != qkv[6]);  // the angle of the first pair of the first row is 0
    job.qkv = back.data();
    CHECK(rotary_backward(job).ok());
    for (size_t i = 0; i < qkv.size(); ++i) CHECK_NEAR(back[i], qkv[i], 2e-6);
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(swiglu_is_its_formula_in_every_stored_type) {
  const int64_t rows = 5, width = 131;
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    const std::vector<float> gate_up = waves(rows * 2 * width);
    std::vector<float> out(static_cast<size_t>(rows * width));
    std::vector<BFloat16> half(gate_up.size()), half_out(out.size());
    for (size_t i = 0; i < half.size(); ++i) narrow(gate_up[i], &half[i]);
    SwiGlu<float> job{rows, width, gate_up.data(), out.data()};
    SwiGlu<BFloat16> half_job{rows, width, half.data(), half_out.data()};
    CHECK(swiglu(job).ok());
    CHECK(swiglu(half_job).ok());
    for (int64_t i = 0; i < rows * width; ++i) {
      const size_t at = static_cast<size_t>(i / width * 2 * width + i % width);
      const double gate = gate_up[at], up = gate_up[at + static_cast<size_t>(width)];
      const double expected = gate / (1 + std::exp(-gate)) * up;
      CHECK_NEAR(out[static_cast<size_t>(i)], expected, 4e-6);
      CHECK_NEAR(widen(half_out[static_cast<size_t>(i)]), expected, 0.1);
    }
  }
  CHECK(force_cpu_tier("").ok());
}

namespace {

template <typename T>
std::vector<T> stored(int64_t count, int64_t first) {
  std::vector<T> numbers(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) narrow(wave(first + i), &numbers[static_cast<size_t>(i)]);
  return numbers;
}
template <>
std::vector<double> stored(int64_t count, int64_t first) {
  const std::vector<float> numbers = waves(count, first);
  return {numbers.begin(), numbers.end()};
}

// Of numbers of about 1 to 30; sums cancel by no more.
template <typename T>
constexpr double kBudget = sizeof(T) == 8   ? 1e-13
                           : sizeof(T) == 4 ? 2e-5
                                            : 0.02;

template <typename Stored, typename T>
void check_equal(const std::vector<T>& found, const std::vector<T>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double size = std::max(1.0, std::abs(static_cast<double>(widen(wanted[i]))));
    CHECK_NEAR(widen(found[i]), widen(wanted[i]), kBudget<Stored> * size);
  }
}

template <typename Stored>
void check_norm_and_gates(int64_t rows, int64_t width) {
  const auto x = stored<Stored>(rows * width, 1), weight = stored<Stored>(width, 2),
             grad = stored<Stored>(rows * width, 3), gate_up = stored<Stored>(2 * rows * width, 4);
  const auto run = [&](bool oracle) {
    std::vector<Stored> y(x.size()), grad_x(x.size()), out(x.size()), grad_gates(gate_up.size());
    std::vector<Arithmetic<Stored>> inverse(static_cast<size_t>(rows)), grad_weight(weight.size());
    RmsNorm<Stored> norm{rows,     width,          1e-3,        x.data(),      weight.data(),
                         y.data(), inverse.data(), grad.data(), grad_x.data(), grad_weight.data()};
    SwiGlu<Stored> gates{rows, width, gate_up.data(), out.data(), grad.data(), grad_gates.data()};
    if (oracle) {
      reference_rms_norm(norm), reference_rms_norm_backward(norm);
      reference_swiglu(gates), reference_swiglu_backward(gates);
    } else {
      CHECK(rms_norm(norm).ok() && rms_norm_backward(norm).ok());
      CHECK(swiglu(gates).ok() && swiglu_backward(gates).ok());
    }
    return std::tuple(y, grad_x, out, grad_gates, inverse, grad_weight);
  };
  const auto found = run(false), wanted = run(true);
  check_equal<Stored>(std::get<0>(found), std::get<0>(wanted));
  check_equal<Stored>(std::get<1>(found), std::get<1>(wanted));
  check_equal<Stored>(std::get<2>(found), std::get<2>(wanted));
  check_equal<Stored>(std::get<3>(found), std::get<3>(wanted));
  check_equal<Stored>(std::get<4>(found), std::get<4>(wanted));
  check_equal<Stored>(std::get<5>(found), std::get<5>(wanted));
}

template <typename Fused, typename Apart>
void check_rotary(int64_t rows, int64_t dim) {
  constexpr int64_t kHeads = 3, kKvHeads = 2;
  auto qkv = stored<Fused>(rows * (kHeads + 2 * kKvHeads) * dim, 5);
  std::vector<Arithmetic<Fused>> cosine(static_cast<size_t>(rows * dim / 2)), sine(cosine.size());
  for (size_t i = 0; i < cosine.size(); ++i) {
    cosine[i] = static_cast<Arithmetic<Fused>>(std::cos(1.7 * static_cast<double>(i)));
    sine[i] = static_cast<Arithmetic<Fused>>(std::sin(1.7 * static_cast<double>(i)));
  }
  const auto run = [&](bool oracle) {
    std::vector<Apart> q(static_cast<size_t>(rows * kHeads * dim)),
        k(static_cast<size_t>(rows * kKvHeads * dim)), v(k.size());
    Rotary<Fused, Apart> job{rows,        kHeads,     kKvHeads, dim,      cosine.data(),
                             sine.data(), qkv.data(), q.data(), k.data(), v.data()};
    if (oracle) {
      reference_rotary(job);
    } else {
      CHECK(rotary(job).ok());
    }
    return std::tuple(q, k, v);
  };
  const auto found = run(false), wanted = run(true);
  check_equal<Fused>(std::get<0>(found), std::get<0>(wanted));
  check_equal<Fused>(std::get<1>(found), std::get<1>(wanted));
  check_equal<Fused>(std::get<2>(found), std::get<2>(wanted));
}

}  // namespace

TEST(every_tier_equals_the_oracle_in_every_stored_type) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (int64_t width : {1, 15, 16, 130, 257}) {
      check_norm_and_gates<float>(67, width);
      check_norm_and_gates<double>(67, width);
      check_norm_and_gates<BFloat16>(67, width);
    }
    for (int64_t dim : {2, 10, 64}) {
      check_rotary<float, float>(9, dim);
      check_rotary<double, double>(9, dim);
      check_rotary<BFloat16, BFloat16>(9, dim);
      check_rotary<BFloat16, float>(9, dim);
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(sizes_that_no_memory_holds_are_refused_before_anything_is_touched) {
  const int64_t huge = std::numeric_limits<int64_t>::max() / 4;
  SwiGlu<float> gates;
  gates.rows = gates.width = huge;
  CHECK(swiglu(gates).message().find("[swiglu] rows: expected an array that fits") == 0);
  RmsNorm<float> norm;
  norm.rows = huge, norm.width = huge, norm.eps = 1;
  CHECK(rms_norm(norm).code() == StatusCode::kInvalidArgument);
  norm.rows = -1, norm.width = 4;
  CHECK(rms_norm(norm).message() == "[rms_norm] rows: expected at least 0, got -1");
  Rotary<float, float> turns;
  turns.rows = 1, turns.heads = huge, turns.kv_heads = huge, turns.dim = 8;
  CHECK(rotary(turns).code() == StatusCode::kInvalidArgument);
  turns.heads = turns.kv_heads = 1, turns.dim = 7;
  CHECK(rotary(turns).message() == "[rotary] dim: expected an even number, got 7");
}

TEST(which_names_the_back_end) {
  std::string name;
  CHECK(which(Device::kCpu, &name).ok() && name.rfind("cpu/", 0) == 0);
  CHECK(which(Device::kCuda, &name).code() == StatusCode::kUnsupported);
}
