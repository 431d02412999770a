// SPDX-License-Identifier: Apache-2.0
// Every tier against the plain loops, on sizes that leave remainders everywhere; rows alone and in batches;
// memory of exactly the stated size (so that a sanitizer sees a step outside), and errors.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/quantized/quantized.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using namespace earnest::quantized;

template <typename T>
constexpr Type kType = sizeof(T) == 4 ? Type::kFloat32 : Type::kBFloat16;

template <typename T>
std::vector<T> normal(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) narrow(normal(random), &value);
  return values;
}

// Two parts, the first with a bias.
template <typename T>
struct Case {
  int64_t rows, inputs, outputs[2];
  Codes codes;
  std::vector<T> x, weight[2], bias;
  std::vector<unsigned char> packed[2];

  Case(Codes codes, int64_t rows, int64_t inputs, int64_t first, int64_t second)
      : rows(rows), inputs(inputs), outputs{first, second}, codes(codes) {
    x = normal<T>(rows * inputs, 1);
    bias = normal<T>(first, 2);
    for (int i = 0; i < 2; ++i) {
      weight[i] = normal<T>(outputs[i] * inputs, static_cast<unsigned>(3 + i));
      size_t bytes = 0;
      CHECK(packed_size({codes, outputs[i], inputs}, &bytes).ok());
      packed[i].resize(bytes);
      CHECK(pack({codes, outputs[i], inputs}, kType<T>, weight[i].data(), packed[i].data()).ok());
    }
  }

  std::vector<T> product(int64_t first, int64_t count, bool reference,
                         Activations activations = Activations::kExact) const {
    const Part parts[2] = {{packed[0].data(), outputs[0], bias.data()},
                           {packed[1].data(), outputs[1], nullptr}};
    std::vector<T> output(static_cast<size_t>(count * (outputs[0] + outputs[1])));
    Product p;
    p.type = kType<T>;
    p.codes = codes;
    p.activations = activations;
    p.rows = count;
    p.inputs = inputs;
    p.parts = parts;
    p.count = 2;
    p.left = x.data() + first * inputs;
    p.output = output.data();
    if (reference) {
      CHECK(run_reference(p).ok());
      return output;
    }
    std::vector<unsigned char> workspace(workspace_size(p) + 1, 0xff);
    CHECK(run(p, workspace.data() + 1).ok());
    return output;
  }
};

template <typename T>
double largest_error(const std::vector<T>& a, const std::vector<T>& b) {
  double error = a.size() == b.size() ? 0 : 1e300, scale = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    error = std::max(error, std::abs(static_cast<double>(widen(a[i])) - static_cast<double>(widen(b[i]))));
    scale = std::max(scale, std::abs(static_cast<double>(widen(b[i]))));
  }
  return error / scale;
}

template <typename T>
bool same_bits(const T* a, const T* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(T)) == 0;
}

constexpr Codes kCodes[] = {Codes::kInt8, Codes::kInt4};

template <typename T>
void compare_with_reference(Activations activations, double bound) {
  const int64_t shapes[][4] = {{1, 1, 1, 1},     {2, 33, 17, 3},  {5, 257, 64, 65},
                               {13, 300, 31, 7}, {1, 576, 90, 8}, {40, 70, 5, 100}};
  for (const auto& shape : shapes) {
    for (const Codes codes : kCodes) {
      const Case<T> c(codes, shape[0], shape[1], shape[2], shape[3]);
      const auto want = c.product(0, c.rows, true);
      for (const std::string& tier : usable_tiers()) {
        CHECK(force_cpu_tier(tier).ok());
        CHECK_NEAR(largest_error(c.product(0, c.rows, false, activations), want), 0, bound);
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

template <typename T>
void rows_stand_alone(Activations activations) {
  for (const Codes codes : kCodes) {
    const Case<T> c(codes, 203, 297, 197, 40);
    const size_t width = 237;
    for (const std::string& tier : usable_tiers()) {
      CHECK(force_cpu_tier(tier).ok());
      set_num_threads(1);
      const auto whole = c.product(0, c.rows, false, activations);
      set_num_threads(5);
      const auto threaded = c.product(0, c.rows, false, activations);
      CHECK(same_bits(whole.data(), threaded.data(), whole.size()));
      for (const int64_t count : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13}) {
        const auto some = c.product(101, count, false, activations);
        CHECK(same_bits(some.data(), whole.data() + 101 * width, some.size()));
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

}  // namespace

TEST(float32_equals_plain_loops) { compare_with_reference<float>(Activations::kExact, 1e-6); }
TEST(bfloat16_is_rounded_once) { compare_with_reference<BFloat16>(Activations::kExact, 1.0 / 256); }
TEST(eight_bits_of_activations) { compare_with_reference<float>(Activations::kInt8, 2e-2); }
TEST(eight_bits_of_bfloat16) { compare_with_reference<BFloat16>(Activations::kInt8, 2e-2); }
TEST(float32_rows_stand_alone) { rows_stand_alone<float>(Activations::kExact); }
TEST(bfloat16_rows_stand_alone) { rows_stand_alone<BFloat16>(Activations::kExact); }
TEST(eight_bits_rows_stand_alone) { rows_stand_alone<BFloat16>(Activations::kInt8); }

TEST(codes_are_the_nearest) {
  constexpr int64_t kOutputs = 19, kInputs = 100;
  const auto w = normal<float>(kOutputs * kInputs, 7);
  for (const Codes codes : kCodes) {
    const Shape shape = {codes, kOutputs, kInputs};
    size_t bytes = 0;
    CHECK(packed_size(shape, &bytes).ok());
    std::vector<unsigned char> packed(bytes);
    std::vector<float> back(w.size());
    CHECK(pack(shape, Type::kFloat32, w.data(), packed.data()).ok());
    CHECK(unpack(shape, packed.data(), 0, kOutputs, Type::kFloat32, back.data()).ok());
    double squares = 0;
    for (int64_t n = 0; n < kOutputs; ++n) {
      float largest = 0;
      for (int64_t k = 0; k < kInputs; ++k) largest = std::max(largest, std::abs(w[n * kInputs + k]));
      for (int64_t k = 0; k < kInputs; ++k) {
        const float off = std::abs(back[n * kInputs + k] - w[n * kInputs + k]);
        if (codes == Codes::kInt8) CHECK(off <= largest / 127 * 0.5001f);
        squares += static_cast<double>(off) * static_cast<double>(off);
      }
    }
    // Sixteen even levels over a group of 32 normal numbers: ranges of some 4.1 give 0.0062 at the least and
    // fitting improves on it.
    if (codes == Codes::kInt4) CHECK(squares / static_cast<double>(w.size()) < 0.0070);
    std::vector<float> one(kInputs);
    CHECK(unpack(shape, packed.data(), 17, 1, Type::kFloat32, one.data()).ok());
    CHECK(same_bits(one.data(), back.data() + 17 * kInputs, one.size()));
  }
}

// What lies on a grid of sixteen levels already comes back as it is.
TEST(int4_keeps_a_grid) {
  std::vector<float> w(64), back(64);
  for (size_t i = 0; i < w.size(); ++i) w[i] = 0.25f * static_cast<float>(i * 7 % 16) - 1.5f;
  const Shape shape = {Codes::kInt4, 1, 64};
  std::vector<unsigned char> packed(640);
  CHECK(pack(shape, Type::kFloat32, w.data(), packed.data()).ok());
  CHECK(unpack(shape, packed.data(), 0, 1, Type::kFloat32, back.data()).ok());
  CHECK(w == back);
}

TEST(numbers_that_are_not_finite_stay_seen) {
  for (const Codes codes : kCodes) {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Case<float> c(codes, 3, 70, 20, 4);
      c.x[75] = bad;
      const auto y = c.product(0, 3, false);
      for (size_t i = 0; i < 24; ++i) {
        CHECK(!std::isnan(y[i]) && std::isnan(y[24 + i]) && !std::isnan(y[48 + i]));
      }
      Case<float> d(codes, 1, 70, 20, 4);
      d.weight[0][5 * 70 + 3] = bad;
      CHECK(pack({codes, 20, 70}, Type::kFloat32, d.weight[0].data(), d.packed[0].data()).ok());
      const auto z = d.product(0, 1, false);
      for (size_t i = 0; i < 24; ++i) CHECK(std::isnan(z[i]) == (i == 5));
    }
    Case<float> tiny(codes, 1, 70, 20, 4);
    for (float& value : tiny.x) value *= 1e-36f;
    for (const float y : tiny.product(0, 1, false)) CHECK(!std::isnan(y));
    for (float& value : tiny.weight[1]) value *= 1e-41f;
    CHECK(pack({codes, 4, 70}, Type::kFloat32, tiny.weight[1].data(), tiny.packed[1].data()).ok());
    tiny.x.assign(70, 1.0f);
    for (const float y : tiny.product(0, 1, false)) CHECK(std::isfinite(y));
  }
}

TEST(bad_input_is_an_error_with_a_sentence) {
  Case<float> c(Codes::kInt8, 2, 3, 4, 5);
  const auto message = [&](auto change) {
    Part parts[2] = {{c.packed[0].data(), 4, nullptr}, {c.packed[1].data(), 5, nullptr}};
    std::vector<float> output(64);
    Product p;
    p.rows = 2;
    p.inputs = 3;
    p.parts = parts;
    p.count = 2;
    p.left = c.x.data();
    p.output = output.data();
    change(&p, parts);
    std::vector<unsigned char> workspace(workspace_size(p) + 1);
    return run(p, workspace.data()).message();
  };
  CHECK(message([](Product*, Part*) {}).empty());
  CHECK(message([](Product* p, Part*) { p->rows = -1; }) == "[quantized] rows: expected at least 0, got -1");
  CHECK(message([](Product* p, Part*) { p->inputs = 0; }) ==
        "[quantized] inputs: expected at least 1, got 0");
  CHECK(message([](Product* p, Part*) { p->count = 0; }) ==
        "[quantized] count: expected 1 to 16 parts, got 0");
  CHECK(message([](Product*, Part* parts) { parts[1].packed = nullptr; }) ==
        "[quantized] packed: expected an array, got null");
  CHECK(message([](Product* p, Part*) { p->left = nullptr; }) ==
        "[quantized] left: expected an array, got null");
  CHECK(message([](Product* p, Part*) { p->threads = 0; }) ==
        "[quantized] threads: expected 1 to 4096, got 0");
  CHECK(message([](Product* p, Part*) { p->path = CudaPath::kSm80; }) ==
        "[quantized] path: expected best on cpu, got one of cuda's");
  CHECK(message([](Product* p, Part*) { p->rows = int64_t{1} << 60; }).find("fit in memory") !=
        std::string::npos);
  CHECK(message([](Product*, Part* parts) { parts[0].outputs = int64_t{1} << 61; }).find("fit in memory") !=
        std::string::npos);
  size_t bytes = 7;
  CHECK(!packed_size({Codes::kInt4, int64_t{1} << 40, int64_t{1} << 40}, &bytes).ok() && bytes == 7);
  CHECK(!unpack({Codes::kInt8, 4, 3}, c.packed[0].data(), 3, 2, Type::kFloat32, &bytes).ok());
  CHECK(!unpack({Codes::kInt8, 4, 3}, c.packed[0].data(), -1, 1, Type::kFloat32, &bytes).ok());
  CHECK(!pack({Codes::kInt8, 4, 3}, Type::kFloat32, nullptr, c.packed[0].data()).ok());
  std::string name;
  CHECK(which(Device::kCpu, &name).ok() && name.rfind("cpu/", 0) == 0);
#if !defined(EARNEST_WITH_CUDA)  // else test_quantized_cuda.cc
  CHECK(message([](Product* p, Part*) { p->device = Device::kCuda; }).find("without CUDA") !=
        std::string::npos);
  CHECK(!which(Device::kCuda, &name).ok());
#endif
}
