// SPDX-License-Identifier: Apache-2.0
// The CUDA back end of linear layers against sums in float64: on a GPU, or by the emulator. Sizes end before,
// at and behind the ends of tiles, pieces, chunks and strands; both ways to a product have the same bits.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/linear/linear.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace earnest;
using namespace earnest::linear;

template <typename T>
constexpr Type kType = sizeof(T) == 4 ? Type::kFloat32 : Type::kBFloat16;

struct Shape {
  int64_t rows, columns, depth;
};

// A product on the host. Where `shift` is 1, arrays begin a number past an aligned address.
template <typename T>
struct Case {
  Shape shape;
  std::vector<T> x, weight, bias;  // [M, K], [N, K], [N]

  explicit Case(const Shape& s) : shape(s) {
    std::mt19937 random(static_cast<unsigned>(s.rows * 7919 + s.columns * 31 + s.depth));
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<T>* values, int64_t count) {
      values->resize(static_cast<size_t>(count));
      for (T& value : *values) narrow(normal(random), &value);
    };
    fill(&x, s.rows * s.depth);
    fill(&weight, s.columns * s.depth);
    fill(&bias, s.columns);
  }

  Product product() const {
    Product p;
    p.type = kType<T>;
    p.rows = shape.rows;
    p.columns = shape.columns;
    p.depth = shape.depth;
    p.device = Device::kCuda;
    return p;
  }

  // On the device: all rows from `first` on, or `count` of them.
  std::vector<T> on_device(CudaPath path, int64_t first = 0, int64_t count = -1, size_t shift = 0) const {
    const auto shifted = [shift](std::vector<T> values) {
      values.insert(values.begin(), shift, T{});
      return values;
    };
    Product p = product();
    p.rows = count < 0 ? shape.rows - first : count;
    p.path = path;
    const auto begin = x.begin() + first * shape.depth;
    OnDevice<T> left(shifted({begin, begin + p.rows * shape.depth})), right(shifted(weight)),
        added(shifted(bias));
    std::vector<T> soiled(static_cast<size_t>(p.rows * shape.columns) + shift);
    for (T& value : soiled) std::memset(&value, 0xff, sizeof value);
    OnDevice<T> output(soiled);
    OnDevice<unsigned char> workspace(std::vector<unsigned char>(workspace_size(p), 0xff));
    p.left = left.data() + shift;
    p.packed = right.data() + shift;
    if (!bias.empty()) p.bias = added.data() + shift;
    p.output = output.data() + shift;
    const Status status = run(p, workspace.data());
    CHECK(status.ok());
    if (!status.ok()) std::printf("%s\n", status.message().c_str());
    std::vector<T> found = output.values();
    CHECK(shift == 0 || std::memcmp(found.data(), soiled.data(), shift * sizeof(T)) == 0);
    return {found.begin() + static_cast<std::ptrdiff_t>(shift), found.end()};
  }

  // Sums in double, or by plain arithmetic: one chain of float. Not rounded to T.
  template <typename Sum>
  std::vector<double> plain() const {
    std::vector<double> y;
    for (int64_t m = 0; m < shape.rows; ++m) {
      for (int64_t n = 0; n < shape.columns; ++n) {
        Sum sum = 0;
        for (int64_t k = 0; k < shape.depth; ++k)
          sum += static_cast<Sum>(widen(x[m * shape.depth + k])) *
                 static_cast<Sum>(widen(weight[n * shape.depth + k]));
        if (!bias.empty()) sum += static_cast<Sum>(widen(bias[n]));
        y.push_back(static_cast<double>(sum));
      }
    }
    return y;
  }
};

template <typename T>
std::vector<double> rounded(const std::vector<double>& values) {
  std::vector<double> found;
  for (double value : values) {
    T narrowed;
    narrow(static_cast<float>(value), &narrowed);
    found.push_back(static_cast<double>(widen(narrowed)));
  }
  return found;
}

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

// At most twice the error of plain arithmetic that is rounded once, and a few units of float32.
template <typename T>
void compare(const Case<T>& c, CudaPath path, size_t shift = 0) {
  const std::vector<double> exact = c.template plain<double>();
  const double budget = 2 * largest_error(rounded<T>(c.template plain<float>()), exact) +
                        2e-7 * std::sqrt(static_cast<double>(c.shape.depth));
  std::vector<double> got;
  for (T value : c.on_device(path, 0, -1, shift)) got.push_back(static_cast<double>(widen(value)));
  const int before = check::failures();
  CHECK_NEAR(largest_error(got, exact), 0, budget);
  if (check::failures() == before) return;
  std::printf("  of %lld x %lld x %lld\n", static_cast<long long>(c.shape.rows),
              static_cast<long long>(c.shape.columns), static_cast<long long>(c.shape.depth));
}

// Tiles of 128 x 128, steps of 64 (float32: 32), strands of whole 64s; blocks of 8 to 64 rows by 16 or 32
// columns.
const std::vector<Shape> kShapes = {{1, 1, 1},      {127, 129, 65}, {129, 127, 64}, {2, 33, 511},
                                    {128, 128, 96}, {5, 131, 577},  {130, 40, 200}, {3, 17, 1100}};

}  // namespace

TEST(tiles_of_bfloat16_are_within_twice_plain_arithmetic) {
  for (const Shape& shape : kShapes) compare(Case<BFloat16>(shape), CudaPath::kSm80);
}
TEST(tiles_of_float32_are_within_twice_plain_arithmetic) {
  for (const Shape& shape : kShapes) compare(Case<float>(shape), CudaPath::kSm80);
}
TEST(few_rows_are_within_twice_plain_arithmetic) {
  for (int64_t rows : {1, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 130}) {
    const int64_t columns = 15 + rows % 4, depth = 8 * rows;
    compare(Case<BFloat16>({rows, columns, depth}), CudaPath::kFew);
  }
  for (const Shape& shape : kShapes) compare(Case<BFloat16>(shape), CudaPath::kFew);
}

TEST(a_row_alone_and_on_either_path_has_the_bits_of_the_row_in_a_batch) {
  for (int64_t depth : {1, 64, 72, 520, 1031}) {  // 1 to 8 strands, of 64 and 192
    const Case<BFloat16> c({131, 67, depth});
    const auto whole = c.on_device(CudaPath::kSm80);
    CHECK(same_bits(c.on_device(CudaPath::kFew), whole));
    for (int64_t first : {0, 66, 129}) {
      for (int64_t count : {1, 2}) {
        for (CudaPath path : {CudaPath::kBest, CudaPath::kSm80}) {
          const auto some = c.on_device(path, first, count);
          CHECK(std::memcmp(some.data(), whole.data() + first * 67, some.size() * sizeof(BFloat16)) == 0);
        }
      }
    }
  }
  const Case<float> c({131, 67, 331});
  const auto whole = c.on_device(CudaPath::kBest), alone = c.on_device(CudaPath::kBest, 130, 1);
  CHECK(std::memcmp(alone.data(), whole.data() + 130 * 67, alone.size() * sizeof(float)) == 0);
}

TEST(what_each_number_of_few_rows_takes_has_the_same_bits) {
  const Case<BFloat16> c({70, 40, 456});
  const auto whole = c.on_device(CudaPath::kSm80);
  for (int64_t count : {5, 12, 30, 50, 70}) {  // 1, 2, 4 and 8 halves; two groups of 64
    const auto some = c.on_device(CudaPath::kFew, 70 - count);
    CHECK(std::memcmp(some.data(), whole.data() + (70 - count) * 40, some.size() * sizeof(BFloat16)) == 0);
  }
}

TEST(two_runs_give_the_same_bits) {
  const Case<BFloat16> c({140, 150, 300});
  CHECK(same_bits(c.on_device(CudaPath::kSm80), c.on_device(CudaPath::kSm80)));
  CHECK(same_bits(c.on_device(CudaPath::kFew), c.on_device(CudaPath::kFew)));
}

TEST(addresses_between_16_bytes_change_no_bit) {
  const Case<BFloat16> c({20, 136, 328});
  const Case<float> f({20, 136, 328});
  for (CudaPath path : {CudaPath::kSm80, CudaPath::kFew})
    CHECK(same_bits(c.on_device(path), c.on_device(path, 0, -1, 1)));
  CHECK(same_bits(f.on_device(CudaPath::kBest), f.on_device(CudaPath::kBest, 0, -1, 1)));
}

TEST(the_bias_may_be_left_out) {
  for (CudaPath path : {CudaPath::kSm80, CudaPath::kFew}) {
    Case<BFloat16> c({3, 20, 72});
    const auto with = c.on_device(path);
    c.bias.clear();
    compare(c, path);
    CHECK(!same_bits(with, c.on_device(path)));
  }
}

TEST(no_rows_are_no_work) {
  for (CudaPath path : {CudaPath::kBest, CudaPath::kSm80, CudaPath::kFew})
    CHECK(Case<BFloat16>({0, 5, 3}).on_device(path).empty());
}

TEST(nan_and_infinity_stay_in_their_row_and_column) {
  Case<BFloat16> c({20, 24, 100}), clean = c;
  narrow(std::nanf(""), &c.x[3 * 100 + 99]);
  narrow(std::numeric_limits<float>::infinity(), &c.x[8 * 100]);
  narrow(std::nanf(""), &c.weight[5 * 100 + 7]);
  for (CudaPath path : {CudaPath::kSm80, CudaPath::kFew}) {
    const auto dirty = c.on_device(path), right = clean.on_device(path);
    for (size_t i = 0; i < dirty.size(); ++i) {
      const float y = widen(dirty[i]);
      if (i / 24 == 3 || i % 24 == 5) {
        CHECK(std::isnan(y));
      } else if (i / 24 == 8) {
        CHECK(std::isinf(y));
      } else {
        CHECK(y == widen(right[i]));
      }
    }
  }
}

// Their bits are those of the products one by one, wherever they lie.
template <typename T>
void compare_parts(CudaPath path) {
  const int64_t widths[] = {40, 3, 136, 1};
  const Case<T> whole({70, 180, 72});
  const auto right = whole.on_device(path);
  Product p = whole.product();
  p.path = path;
  Lent lent(Device::kCuda);
  std::vector<std::vector<T>> pieces;
  std::vector<Part> parts;
  int64_t first = 0;
  for (int64_t width : widths) {
    const auto begin = whole.weight.begin() + first * 72;
    pieces.emplace_back(begin, begin + width * 72);
    const Part part = {lent.in(pieces.back().data(), pieces.back().size()), width,
                       lent.in(whole.bias.data() + first, static_cast<size_t>(width))};
    parts.push_back(part);
    first += width;
  }
  std::vector<T> output(70 * 180);
  p.left = lent.in(whole.x.data(), whole.x.size());
  p.output = lent.out(output.data(), output.size());
  p.parts = parts.data();
  p.count = 4;
  CHECK(run(p, lent.scratch(workspace_size(p))).ok());
  lent.finish();
  CHECK(same_bits(output, right));
}

TEST(parts_have_the_bits_of_one_matrix) {
  for (CudaPath path : {CudaPath::kSm80, CudaPath::kFew}) compare_parts<BFloat16>(path);
  compare_parts<float>(CudaPath::kSm80);
}

// A library of cuBLASLt's names with plain loops inside in the emulator; on a GPU its own, where there is
// one.
TEST(the_vendors_library_is_loaded_when_asked_for_and_its_absence_is_said) {
  require_device();
  const Case<BFloat16> c({5, 40, 72});
  Product p = c.product();
  p.path = CudaPath::kVendor;
  std::string name;
  setenv("EARNEST_CUBLASLT", "/of/no/such/name.so", 1);
  CHECK(which(p, &name).code() == StatusCode::kUnsupported);
  CHECK(workspace_size(p) == 0);
  CHECK(run(p, nullptr).message().find("[linear] path: expected best, sm80 or few (vendor needs cuBLASLt") ==
        0);
  CHECK(run(p, nullptr).message().find("/of/no/such/name.so") != std::string::npos);
#if defined(EARNEST_FAKE_CUBLASLT)
  setenv("EARNEST_CUBLASLT", EARNEST_FAKE_CUBLASLT, 1);
  CHECK(which(p, &name).ok());
#else
  unsetenv("EARNEST_CUBLASLT");
  if (!which(p, &name).ok()) return;
#endif
  CHECK(name == "cuda/vendor" && workspace_size(p) >= size_t{32} << 20);
  CHECK(run(p, nullptr).message() == "[linear] packed: expected an array, got null");
  for (const Shape& shape : {Shape{1, 1, 8}, {5, 40, 72}, {17, 33, 200}, {0, 8, 8}}) {
    compare(Case<BFloat16>(shape), CudaPath::kVendor);
    compare(Case<float>(shape), CudaPath::kVendor);
  }
  Case<BFloat16> bare = c;
  bare.bias.clear();
  compare(bare, CudaPath::kVendor);
  compare(c, CudaPath::kVendor, 4);  // 8 bytes past an aligned address
#if defined(EARNEST_FAKE_CUBLASLT)   // whose sums do not depend on what stands beside them
  compare_parts<BFloat16>(CudaPath::kVendor);
#endif
}

TEST(which_names_the_path_and_bad_input_is_an_error_with_a_sentence) {
  require_device();
  std::string name;
  const auto named = [&](const Shape& shape, Type type, CudaPath path) {
    Product p = Case<float>({0, 1, 1}).product();
    p.type = type;
    p.rows = shape.rows, p.columns = shape.columns, p.depth = shape.depth;
    p.path = path;
    const Status status = which(p, &name);
    return status.ok() ? name : status.message();
  };
  CHECK(which(Device::kCuda, &name).ok() && name == "cuda/sm80");
  CHECK(named({64, 1536, 1536}, Type::kBFloat16, CudaPath::kBest) == "cuda/few");
  CHECK(named({4096, 8960, 1536}, Type::kBFloat16, CudaPath::kBest) == "cuda/sm80");
  CHECK(named({1, 1536, 1536}, Type::kBFloat16, CudaPath::kSm80) == "cuda/sm80");
  CHECK(named({1, 8, 8}, Type::kFloat32, CudaPath::kBest) == "cuda/sm80");
  CHECK(named({1, 8, 8}, Type::kFloat32, CudaPath::kFew) ==
        "[linear] path: expected few with bfloat16, got float32");
  CHECK(named({1, 8, 8}, Type::kFloat64, CudaPath::kBest) ==
        "[linear] type: expected float32 or bfloat16 on cuda, got float64");

  Product p = Case<float>({2, 3, 4}).product();
  CHECK(run(p, nullptr).message() == "[linear] packed: expected an array, got null");
  const Part parts[] = {{&p, 2, nullptr}, {nullptr, 1, nullptr}};
  p.parts = parts;
  CHECK(run(p, nullptr).message() == "[linear] parts: expected 1 to 16, got 0");
  p.count = 1;
  CHECK(run(p, nullptr).message() == "[linear] parts: expected 3 columns in all, got 2");
  p.count = 2;
  CHECK(run(p, nullptr).message() == "[linear] parts: expected an array, got null");
  p.rows = -1;
  CHECK(run(p, nullptr).message() == "[linear] rows: expected at least 0, got -1");
  Pack pack = {Type::kFloat32, 3, 4};
  pack.device = Device::kCuda;
  size_t bytes = 7;
  CHECK(packed_size(pack, &bytes).message() ==
        "[linear] device: expected cpu (on cuda a product takes the matrix itself), got cuda");
  WeightGradient g;
  g.device = Device::kCuda;
  CHECK(run(g, nullptr).message() == "[linear] device: expected cpu (cuda has products alone), got cuda");
}

#endif
