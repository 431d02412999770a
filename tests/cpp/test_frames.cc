// SPDX-License-Identifier: Apache-2.0
// Arrays exactly as large as promised, so that the address sanitizer sees every byte touched beyond them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/frames/frames.h"
#include "kernels/rowwise/angles.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using namespace earnest::frames;

template <typename Stored>
std::vector<Stored> waves(int64_t count, int64_t first = 0) {
  std::vector<Stored> numbers(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const double value = 3 * std::sin(0.37 * static_cast<double>(first + i)) + 1;
    narrow(static_cast<Arithmetic<Stored>>(value), &numbers[static_cast<size_t>(i)]);
  }
  return numbers;
}

template <typename Stored>
double largest_difference(const std::vector<Stored>& a, const std::vector<Stored>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(widen(a[i])) - static_cast<double>(widen(b[i]))));
  }
  return most;
}

template <typename Stored>
struct NormArrays {
  using T = Arithmetic<Stored>;
  NormArrays(int64_t rows, int64_t width)
      : x(waves<Stored>(rows * width)),
        weight(waves<Stored>(width, 50)),
        bias(waves<Stored>(width, 90)),
        grad_y(waves<Stored>(rows * width, 1000)),
        y(x.size()),
        grad_x(x.size()),
        mean(static_cast<size_t>(rows)),
        inverse(mean.size()),
        grad_weight(weight.size()),
        grad_bias(weight.size()) {
    job = {rows,
           width,
           1e-5,
           x.data(),
           weight.data(),
           bias.data(),
           y.data(),
           mean.data(),
           inverse.data(),
           grad_y.data(),
           grad_x.data(),
           grad_weight.data(),
           grad_bias.data()};
  }
  std::vector<Stored> x, weight, bias, grad_y, y, grad_x;
  std::vector<T> mean, inverse, grad_weight, grad_bias;
  LayerNorm<Stored> job;
};

template <typename Stored>
void check_layer_norm(double bound) {
  for (int64_t width : {1, 7, 128, 129, 300}) {
    NormArrays<Stored> ours(70, width), oracle(70, width);
    CHECK(run(ours.job).ok() && run_backward(ours.job).ok());
    reference(oracle.job);
    reference_backward(oracle.job);
    CHECK_NEAR(largest_difference(ours.y, oracle.y), 0, bound);
    CHECK_NEAR(largest_difference(ours.grad_x, oracle.grad_x), 0, width == 1 ? 600 * bound : 8 * bound);
    CHECK_NEAR(largest_difference(ours.grad_weight, oracle.grad_weight), 0, 70 * bound);
    CHECK_NEAR(largest_difference(ours.grad_bias, oracle.grad_bias), 0, 70 * bound);
  }
}

template <typename Stored>
void check_gelu(double bound) {
  for (int64_t count : {0, 1, 127, 128, 1000, 40000}) {
    const std::vector<Stored> x = waves<Stored>(count), grad_y = waves<Stored>(count, 77);
    std::vector<Stored> y(x.size()), grad_x(x.size()), want(x.size()), want_grad(x.size());
    CHECK(run(Gelu<Stored>{count, x.data(), y.data(), nullptr, nullptr}).ok());
    CHECK(run_backward(Gelu<Stored>{count, x.data(), nullptr, grad_y.data(), grad_x.data()}).ok());
    reference(Gelu<Stored>{count, x.data(), want.data(), nullptr, nullptr});
    reference_backward(Gelu<Stored>{count, x.data(), nullptr, grad_y.data(), want_grad.data()});
    CHECK_NEAR(largest_difference(y, want), 0, bound);
    CHECK_NEAR(largest_difference(grad_x, want_grad), 0, 4 * bound);
  }
}

}  // namespace

TEST(norms_and_gelu_are_their_formulas_in_every_stored_type) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    check_layer_norm<float>(4e-6);
    check_layer_norm<double>(1e-13);
    check_layer_norm<BFloat16>(0.04);
    check_gelu<float>(1e-6);
    check_gelu<double>(1e-14);
    check_gelu<BFloat16>(0.02);
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(sums_rectifiers_and_averages_are_rounded_once_a_step) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    const int64_t rows = 3, width = 37;
    const auto x = waves<BFloat16>(2 * rows * width), y = waves<BFloat16>(2 * rows * width, 5);
    std::vector<BFloat16> sum(x.size()), positive(x.size()), pooled(x.size() / 2);
    const auto count = static_cast<int64_t>(x.size());
    CHECK(run(Add<BFloat16>{count, x.data(), y.data(), sum.data()}).ok());
    CHECK(run(Relu<BFloat16>{count, x.data(), positive.data()}).ok());
    CHECK(run(AveragePool<BFloat16>{rows, width, x.data(), pooled.data()}).ok());
    for (size_t i = 0; i < x.size(); ++i) {
      BFloat16 want;
      narrow(widen(x[i]) + widen(y[i]), &want);
      CHECK(sum[i].bits == want.bits);
      CHECK(widen(positive[i]) == std::max(widen(x[i]), 0.0f));
    }
    for (size_t i = 0; i < pooled.size(); ++i) {
      const size_t at = i / width * 2 * width + i % width;
      BFloat16 both;
      narrow(widen(x[at]) + widen(x[at + width]), &both);
      CHECK(widen(pooled[i]) == widen(both) / 2);
    }
  }
  CHECK(force_cpu_tier("").ok());
}

namespace {

template <typename Stored>
void check_transpose(Device device) {
  for (const auto& [rows, width] : {std::pair{0, 5}, {1, 1}, {31, 33}, {64, 32}, {101, 80}, {3, 129}}) {
    const auto x = waves<float>(rows * width);
    std::vector<Stored> y(x.size());
    Lent lent(device);
    const Transpose<Stored> job{rows, width, lent.in(x.data(), x.size()), lent.out(y.data(), y.size())};
    CHECK(run(job, device).ok());
    lent.finish();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        Stored want;
        narrow(x[static_cast<size_t>(j * rows + i)], &want);
        CHECK(widen(y[static_cast<size_t>(i * width + j)]) == widen(want));
      }
    }
  }
}

}  // namespace

TEST(bands_of_frames_become_frames_of_bands_on_every_device) {
  for (const Device device : devices()) {
    check_transpose<float>(device);
    check_transpose<BFloat16>(device);
  }
}

TEST(what_does_not_fit_is_refused_before_anything_is_touched) {
  const int64_t huge = std::numeric_limits<int64_t>::max() / 4;
  LayerNorm<float> norm;
  norm.rows = norm.width = huge;
  CHECK(run(norm).message().find("[layer_norm] rows: expected an array that fits") == 0);
  norm.rows = 1, norm.width = 0;
  CHECK(run(norm).message() == "[layer_norm] width: expected at least 1, got 0");
  CHECK(run(Gelu<float>{-1, nullptr, nullptr, nullptr, nullptr}).message() ==
        "[gelu] rows: expected at least 0, got -1");
  CHECK(run(Transpose<float>{huge, huge, nullptr, nullptr}).message().find("[transpose] rows: ") == 0);
  std::string name;
  CHECK(which(Device::kCpu, &name).ok() && name.rfind("cpu/", 0) == 0);
#if defined(EARNEST_WITH_CUDA)
  CHECK(which(Device::kCuda, &name).ok() && name == "cuda");
  CHECK(run(Add<double>{0, nullptr, nullptr, nullptr}, Device::kCuda).message() ==
        "[add] x: expected float32 or bfloat16 on cuda, got float64");
  CHECK(run_backward(Gelu<float>{0}, Device::kCuda).message() ==
        "[gelu] device: expected cpu (on cuda there is no backward pass yet), got cuda");
#else
  CHECK(run(Add<float>{1, nullptr, nullptr, nullptr}, Device::kCuda).code() == StatusCode::kUnsupported);
  CHECK(which(Device::kCuda, &name).code() == StatusCode::kUnsupported);
#endif
}

#if defined(EARNEST_WITH_CUDA)
namespace {

// y, mean and inverse of rows from `first` on, on the device; `apart` numbers stand before each array, so
// that one of them is not read 16 bytes at a time.
template <typename Stored>
auto normed(int64_t first, int64_t rows, int64_t width, int64_t apart = 0) {
  const auto x = waves<Stored>(rows * width + apart, first * width - apart),
             weight = waves<Stored>(width + apart, 50 - apart),
             bias = waves<Stored>(width + apart, 90 - apart);
  std::vector<Stored> y(x.size());
  std::vector<float> mean(static_cast<size_t>(rows)), inverse(mean.size());
  Lent lent(Device::kCuda);
  LayerNorm<Stored> job{rows, width, 1e-5, lent.in(x.data(), x.size()) + apart};
  job.weight = lent.in(weight.data(), weight.size()) + apart;
  job.bias = lent.in(bias.data(), bias.size()) + apart;
  job.y = lent.out(y.data(), y.size()) + apart;
  job.mean = lent.out(mean.data(), mean.size());
  job.inverse = lent.out(inverse.data(), inverse.size());
  CHECK(run(job, Device::kCuda).ok());
  lent.finish();
  y.erase(y.begin(), y.begin() + apart);
  return std::tuple(y, mean, inverse);
}

template <typename Stored>
void check_norms_on_device(double bound) {
  for (int64_t width : {1, 7, 128, 129, 300, 2052}) {
    NormArrays<Stored> oracle(5, width);
    reference(oracle.job);
    const auto [y, mean, inverse] = normed<Stored>(0, 5, width);
    CHECK_NEAR(largest_difference(y, oracle.y), 0, bound);
    CHECK_NEAR(largest_difference(mean, oracle.mean), 0, 1e-5);
    CHECK_NEAR(largest_difference(inverse, oracle.inverse), 0, width == 1 ? 0.1 : 1e-5);
    const auto [alone, mean_alone, inverse_alone] = normed<Stored>(3, 1, width, 1);
    const auto from = y.begin() + 3 * width;
    CHECK(mean_alone[0] == mean[3] && inverse_alone[0] == inverse[3]);
    CHECK(std::equal(alone.begin(), alone.end(), from,
                     [](Stored a, Stored b) { return widen(a) == widen(b); }));
  }
}

template <typename Stored>
void check_values_on_device(double bound) {
  for (int64_t count : {0, 1, 127, 128, 2050, 40000}) {
    const auto x = waves<Stored>(count), other = waves<Stored>(count, 77);
    std::vector<Stored> y(x.size()), positive(x.size()), sum(x.size()), want(x.size());
    Lent lent(Device::kCuda);
    const Stored* given = lent.in(x.data(), x.size());
    CHECK(run(Gelu<Stored>{count, given, lent.out(y.data(), y.size())}, Device::kCuda).ok());
    CHECK(run(Relu<Stored>{count, given, lent.out(positive.data(), y.size())}, Device::kCuda).ok());
    const Add<Stored> add{count, given, lent.in(other.data(), y.size()), lent.out(sum.data(), y.size())};
    CHECK(run(add, Device::kCuda).ok());
    lent.finish();
    reference(Gelu<Stored>{count, x.data(), want.data()});
    CHECK_NEAR(largest_difference(y, want), 0, bound);
    for (size_t i = 0; i < x.size(); ++i) {
      Stored both;
      narrow(widen(x[i]) + widen(other[i]), &both);
      CHECK(widen(sum[i]) == widen(both));
      CHECK(widen(positive[i]) == std::max(widen(x[i]), 0.0f));
    }
  }
}

template <typename Stored>
void check_averages_on_device() {
  for (int64_t width : {1, 37, 384, 2304}) {
    const int64_t rows = 3;
    const auto x = waves<Stored>(2 * rows * width);
    std::vector<Stored> ours(x.size() / 2), cpu(ours.size());
    Lent lent(Device::kCuda);
    const AveragePool<Stored> job{rows, width, lent.in(x.data(), x.size()),
                                  lent.out(ours.data(), ours.size())};
    CHECK(run(job, Device::kCuda).ok());
    lent.finish();
    CHECK(run(AveragePool<Stored>{rows, width, x.data(), cpu.data()}).ok());
    for (size_t i = 0; i < ours.size(); ++i) CHECK(widen(ours[i]) == widen(cpu[i]));
  }
}

}  // namespace

TEST(a_device_equals_the_oracle_and_a_row_depends_on_that_row_alone) {
  check_norms_on_device<float>(4e-6);
  check_norms_on_device<BFloat16>(0.04);
  check_values_on_device<float>(1e-6);
  check_values_on_device<BFloat16>(0.02);
  check_averages_on_device<float>();
  check_averages_on_device<BFloat16>();
}

TEST(gelu_keeps_its_digits_far_to_the_left_on_a_device) {
  std::vector<float> x, y, want;
  for (float at = -13.0f; at < 6.0f; at += 0.01f) x.push_back(at);
  y.resize(x.size()), want.resize(x.size());
  const auto count = static_cast<int64_t>(x.size());
  Lent lent(Device::kCuda);
  const Gelu<float> job{count, lent.in(x.data(), x.size()), lent.out(y.data(), y.size())};
  CHECK(run(job, Device::kCuda).ok());
  lent.finish();
  reference(Gelu<float>{count, x.data(), want.data()});
  double plain = 0;  // what is lost where the argument of erfc is rounded, 1e-5 at x = -11
  for (size_t i = 0; i < x.size(); ++i) {
    const float one = 0.5f * x[i] * std::erfc(x[i] * -0.70710678f);
    if (std::abs(want[i]) > 1e-30)
      plain = std::max(plain, std::abs(one - want[i]) / std::abs(double{want[i]}));
  }
  CHECK(plain < 1.2e-5);
  for (size_t i = 0; i < x.size(); ++i) CHECK_NEAR(y[i], want[i], 2 * plain * std::abs(want[i]) + 1e-37);
}
#endif

TEST(rotary_angles_turn_by_their_positions) {
  const std::vector<int64_t> positions = {0, 1, 1000, 1 << 24};
  std::vector<float> cosine(positions.size() * 4), sine(cosine.size());
  rowwise::RotaryAngles job{4, 8, 10000.0, positions.data(), cosine.data(), sine.data()};
  CHECK(rowwise::run(job).ok());
  for (size_t i = 0; i < positions.size(); ++i) {
    CHECK_NEAR(cosine[4 * i], std::cos(static_cast<double>(positions[i])), 1e-7);
    CHECK_NEAR(sine[4 * i + 2], std::sin(static_cast<double>(positions[i]) / 100), 0.02);
  }
  for (const int64_t wrong : {int64_t{-1}, (int64_t{1} << 24) + 1}) {
    job.rows = 1, job.positions = &wrong;
    CHECK(rowwise::run(job).message() ==
          "[rotary_angles] positions: expected 0 to 2^24, got " + std::to_string(wrong));
  }
  job.dim = 7;
  CHECK(!rowwise::run(job).ok());
  job.dim = 8, job.theta = 0;
  CHECK(!rowwise::run(job).ok());
}
