// SPDX-License-Identifier: Apache-2.0
// The CUDA back end of int8 and int4 layers against sums in float64 over the packed codes: on a GPU, or by
// the emulator. Sizes end before, at and behind the ends of tiles, panels, groups and strands; both paths
// have the same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/quantized/quantized.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace earnest;
using namespace earnest::quantized;

template <typename T>
constexpr Type kType = sizeof(T) == 4 ? Type::kFloat32 : Type::kBFloat16;
constexpr Codes kCodes[] = {Codes::kInt8, Codes::kInt4};

template <typename T>
std::vector<T> normal(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) narrow(normal(random), &value);
  return values;
}

struct Shape {
  int64_t rows, inputs, outputs;
};

// One part, or several with the same outputs (the first of them has a bias, the others none).
template <typename T>
struct Case {
  Codes codes;
  Shape shape;
  std::vector<T> x, bias;
  std::vector<std::vector<unsigned char>> packed;

  Case(Codes codes, const Shape& s, int parts = 1) : codes(codes), shape(s) {
    x = normal<T>(s.rows * s.inputs, 1);
    bias = normal<T>(s.outputs, 2);
    for (int i = 0; i < parts; ++i) {
      size_t bytes = 0;
      CHECK(packed_size({codes, s.outputs, s.inputs}, &bytes).ok());
      packed.emplace_back(bytes);
      const auto weight = normal<T>(s.outputs * s.inputs, static_cast<unsigned>(3 + i));
      CHECK(pack({codes, s.outputs, s.inputs}, kType<T>, weight.data(), packed.back().data()).ok());
    }
  }
  int64_t width() const { return shape.outputs * static_cast<int64_t>(packed.size()); }

  Product product() const {
    Product p;
    p.type = kType<T>;
    p.codes = codes;
    p.rows = shape.rows;
    p.inputs = shape.inputs;
    p.count = static_cast<int64_t>(packed.size());
    return p;
  }

  std::vector<T> on_device(CudaPath path, int64_t first = 0, int64_t count = -1, size_t shift = 0) const {
    Product p = product();
    p.rows = count < 0 ? shape.rows - first : count;
    p.path = path;
    p.device = Device::kCuda;
    std::vector<T> rows(shift);
    rows.insert(rows.end(), x.begin() + first * shape.inputs, x.begin() + (first + p.rows) * shape.inputs);
    OnDevice<T> left(rows), added(bias);
    std::vector<T> soiled(static_cast<size_t>(p.rows * width()));
    for (T& value : soiled) std::memset(&value, 0xff, sizeof value);
    OnDevice<T> output(soiled);
    Lent lent(Device::kCuda);
    std::vector<Part> parts;
    for (const auto& matrix : packed)
      parts.push_back(
          {lent.in(matrix.data(), matrix.size()), shape.outputs, parts.empty() ? added.data() : nullptr});
    p.parts = parts.data();
    p.left = left.data() + shift;
    p.output = output.data();
    // One byte off any alignment, and no byte more than stated.
    OnDevice<unsigned char> workspace(std::vector<unsigned char>(workspace_size(p) + 1, 0xff));
    const Status status = run(p, workspace_size(p) == 0 ? nullptr : workspace.data() + 1);
    CHECK(status.ok());
    if (!status.ok()) std::printf("%s\n", status.message().c_str());
    return output.values();
  }

  // The weight as its codes say, exactly but for float32's rounding.
  std::vector<float> weight(size_t part) const {
    std::vector<float> rows(static_cast<size_t>(shape.outputs * shape.inputs));
    CHECK(unpack({codes, shape.outputs, shape.inputs}, packed[part].data(), 0, shape.outputs, Type::kFloat32,
                 rows.data())
              .ok());
    return rows;
  }

  // Sums in Sum: double from the codes themselves (the oracle), or one chain of float over weights as they
  // are.
  std::vector<double> plain() const {
    std::vector<double> y;
    std::vector<std::vector<float>> weights;
    for (size_t i = 0; i < packed.size(); ++i) weights.push_back(weight(i));
    for (int64_t m = 0; m < shape.rows; ++m) {
      for (size_t part = 0; part < packed.size(); ++part) {
        for (int64_t n = 0; n < shape.outputs; ++n) {
          float sum = 0;
          for (int64_t k = 0; k < shape.inputs; ++k)
            sum += widen(x[m * shape.inputs + k]) * weights[part][n * shape.inputs + k];
          if (part == 0) sum += widen(bias[n]);
          T rounded;
          narrow(sum, &rounded);
          y.push_back(static_cast<double>(widen(rounded)));
        }
      }
    }
    return y;
  }
  std::vector<double> oracle() const {
    Case<float> wide = widened();
    std::vector<float> y(static_cast<size_t>(shape.rows * width()));
    std::vector<Part> parts;
    for (const auto& matrix : packed)
      parts.push_back({matrix.data(), shape.outputs, parts.empty() ? wide.bias.data() : nullptr});
    Product p = wide.product();
    p.parts = parts.data();
    p.left = wide.x.data();
    p.output = y.data();
    CHECK(run_reference(p).ok());
    return {y.begin(), y.end()};
  }
  Case<float> widened() const {
    Case<float> wide(codes, {0, shape.inputs, shape.outputs}, 0);
    wide.shape = shape;
    wide.packed = packed;
    for (T value : x) wide.x.push_back(widen(value));
    wide.bias.clear();
    for (T value : bias) wide.bias.push_back(widen(value));
    return wide;
  }
};

double largest_error(const std::vector<double>& a, const std::vector<double>& b) {
  double error = a.size() == b.size() ? 0 : 1e300;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = std::abs(a[i] - b[i]);
    error = off <= error ? error : off;  // NaN counts
  }
  return error;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// At most twice the error of plain arithmetic in float32 that is rounded once, and a few units of float32.
template <typename T>
void compare(const Case<T>& c, CudaPath path) {
  const std::vector<double> exact = c.oracle();
  const double budget =
      2 * largest_error(c.plain(), exact) + 3e-7 * std::sqrt(static_cast<double>(c.shape.inputs));
  std::vector<double> got;
  for (T value : c.on_device(path)) got.push_back(static_cast<double>(widen(value)));
  const int before = check::failures();
  CHECK_NEAR(largest_error(got, exact), 0, budget);
  if (check::failures() == before) return;
  std::printf("  of %lld x %lld x %lld, %s\n", static_cast<long long>(c.shape.rows),
              static_cast<long long>(c.shape.inputs), static_cast<long long>(c.shape.outputs),
              c.codes == Codes::kInt8 ? "int8" : "int4");
}

template <typename T>
void compare_shapes(CudaPath path) {
  const Shape shapes[] = {{1, 1, 1},     {2, 33, 15},   {127, 64, 65}, {129, 65, 33},
                          {128, 96, 64}, {3, 1100, 17}, {8, 577, 16},  {130, 200, 49}};
  for (Codes codes : kCodes) {
    for (const Shape& shape : shapes) compare(Case<T>(codes, shape), path);
    compare(Case<T>(codes, {5, 72, 20}, 3), path);  // parts end within pairs and tiles
    compare(Case<T>(codes, {2, 40, 70}, 16), path);
  }
}

}  // namespace

TEST(tiles_of_bfloat16_are_within_twice_plain_arithmetic) { compare_shapes<BFloat16>(CudaPath::kSm80); }
TEST(tiles_of_float32_are_within_twice_plain_arithmetic) { compare_shapes<float>(CudaPath::kSm80); }
TEST(few_rows_of_bfloat16_are_within_twice_plain_arithmetic) {
  compare_shapes<BFloat16>(CudaPath::kFew);
  for (Codes codes : kCodes) {
    for (int64_t rows : {7, 9, 16, 17, 33, 63, 64, 65})
      compare(Case<BFloat16>(codes, {rows, 8 * rows, 31}), CudaPath::kFew);
  }
}
TEST(few_rows_of_float32_are_within_twice_plain_arithmetic) { compare_shapes<float>(CudaPath::kFew); }

template <typename T>
void compare_bits(int64_t inputs) {
  for (Codes codes : kCodes) {
    const Case<T> c(codes, {131, inputs, 37}, 2);
    const auto whole = c.on_device(CudaPath::kSm80);
    CHECK(same_bits(c.on_device(CudaPath::kFew), whole));
    for (int64_t count : {1, 8, 12, 30, 50, 64}) {  // 1, 2, 4 and 8 halves
      const auto some = c.on_device(CudaPath::kBest, 131 - count);
      CHECK(std::memcmp(some.data(), whole.data() + (131 - count) * 74, some.size() * sizeof(T)) == 0);
    }
    const auto alone = c.on_device(CudaPath::kSm80, 66, 1);
    CHECK(std::memcmp(alone.data(), whole.data() + 66 * 74, alone.size() * sizeof(T)) == 0);
  }
}

TEST(a_row_alone_and_on_either_path_has_the_bits_of_the_row_in_a_batch) {
  for (int64_t inputs : {3, 64, 72, 520, 1031}) compare_bits<BFloat16>(inputs);  // 1 to 8 strands
  for (int64_t inputs : {72, 300}) compare_bits<float>(inputs);
}

TEST(two_runs_and_other_addresses_give_the_same_bits) {
  for (Codes codes : kCodes) {
    const Case<BFloat16> c(codes, {20, 136, 40});
    for (CudaPath path : {CudaPath::kSm80, CudaPath::kFew}) {
      const auto once = c.on_device(path);
      CHECK(same_bits(c.on_device(path), once));
      CHECK(same_bits(c.on_device(path, 0, -1, 1), once));  // rows begin between 16 bytes
    }
  }
}

TEST(no_rows_are_no_work) {
  for (Codes codes : kCodes) {
    CHECK(Case<BFloat16>(codes, {0, 5, 3}).on_device(CudaPath::kBest).empty());
    CHECK(Case<float>(codes, {0, 5, 3}).on_device(CudaPath::kSm80).empty());
  }
}

template <typename T>
void check_unfinite(Codes codes, CudaPath path) {
  Case<T> c(codes, {20, 70, 24}), clean = c;
  narrow(std::nanf(""), &c.x[3 * 70 + 69]);
  narrow(std::numeric_limits<float>::infinity(), &c.x[8 * 70]);
  std::vector<float> weight = normal<float>(24 * 70, 9);
  weight[5 * 70 + 7] = std::nanf("");
  CHECK(pack({codes, 24, 70}, Type::kFloat32, weight.data(), c.packed[0].data()).ok());
  weight[5 * 70 + 7] = 0;
  CHECK(pack({codes, 24, 70}, Type::kFloat32, weight.data(), clean.packed[0].data()).ok());
  const auto dirty = c.on_device(path), right = clean.on_device(path);
  for (size_t i = 0; i < dirty.size(); ++i) {
    if (i / 24 == 3 || i % 24 == 5) {
      CHECK(std::isnan(widen(dirty[i])));
    } else if (i / 24 == 8) {
      CHECK(!std::isfinite(widen(dirty[i])));
    } else {
      CHECK(widen(dirty[i]) == widen(right[i]));
    }
  }
}

TEST(nan_and_infinity_stay_in_their_row_and_output) {
  for (Codes codes : kCodes) {
    for (CudaPath path : {CudaPath::kSm80, CudaPath::kFew}) {
      check_unfinite<BFloat16>(codes, path);
      check_unfinite<float>(codes, path);
    }
  }
}

TEST(float32_keeps_24_bits_of_x_huge_and_small) {
  for (Codes codes : kCodes) {
    Case<float> c(codes, {3, 40, 5});
    c.x.assign(c.x.size(), 0.0f);
    c.x[0] = std::numeric_limits<float>::max() / 256;  // rounding up would make an infinity of what is near
    c.x[40] = 1 + 0x1p-23f;
    c.x[80] = 1e-20f;
    c.bias.assign(5, 0.0f);
    const auto got = c.on_device(CudaPath::kFew);
    const auto exact = c.oracle();
    for (size_t i = 0; i < got.size(); ++i)
      CHECK_NEAR(static_cast<double>(got[i]), exact[i], 4e-7 * std::abs(exact[i]) + 1e-35);
  }
}

TEST(which_names_the_path_and_bad_input_is_an_error_with_a_sentence) {
  require_device();
  std::string name;
  CHECK(which(Device::kCuda, &name).ok() && name == "cuda/sm80");
  const Part parts[] = {{nullptr, 1536, nullptr}, {nullptr, 256, nullptr}};
  Product p;
  p.type = Type::kBFloat16;
  p.inputs = 1536;
  p.parts = parts;
  p.count = 2;
  p.device = Device::kCuda;
  p.rows = 64;
  CHECK(which(p, &name).ok() && name == "cuda/few");
  CHECK(workspace_size(p) == 0);
  CHECK(run(p, nullptr).message() == "[quantized] packed: expected an array, got null");
  p.rows = 4096;
  CHECK(which(p, &name).ok() && name == "cuda/sm80");
  p.activations = Activations::kInt8;
  CHECK(which(p, &name).message() == "[quantized] activations: expected exact on cuda, got int8");
  p.activations = Activations::kExact;
  p.inputs = 0;
  CHECK(run(p, nullptr).message() == "[quantized] inputs: expected at least 1, got 0");

  alignas(16) static unsigned char memory[4096];
  const Part off = {memory + 8, 3, nullptr};
  p.inputs = 4, p.rows = 1;
  p.parts = &off, p.count = 1;
  p.left = p.output = memory;
  CHECK(run(p, nullptr).message() ==
        "[quantized] packed: expected memory on a 16-byte boundary, got 8 bytes past one");
  CHECK(pack({Codes::kInt8, 3, 4}, Type::kFloat32, memory, memory, Device::kCuda).message() ==
        "[quantized] device: expected cpu (a product on cuda takes the same bytes), got cuda");
}

#endif
