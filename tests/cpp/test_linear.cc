// SPDX-License-Identifier: Apache-2.0
// Every tier against the plain loops, on sizes that leave remainders everywhere; memory of exactly the stated
// size (so that a sanitizer sees a step outside), dirty scratch memory, hostile alignment, and errors.
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/linear/linear.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using namespace earnest::linear;

template <typename T>
constexpr Type kType = sizeof(T) == 8   ? Type::kFloat64
                       : sizeof(T) == 4 ? Type::kFloat32
                                        : Type::kBFloat16;

// Memory off the allocator's alignment, filled with NaN: scratch may lie anywhere, packed matrices by eight
// bytes.
struct Dirty {
  explicit Dirty(size_t bytes, size_t offset = 1) : memory(bytes + offset, 0xff), offset(offset) {}
  void* data() { return memory.data() + offset; }
  std::vector<unsigned char> memory;
  size_t offset;
};

template <typename T>
struct Case {
  int64_t rows, columns, depth;
  std::vector<T> x, weight, bias, grad;  // [M, K], [N, K], [N], [M, N]

  Case(int64_t rows, int64_t columns, int64_t depth) : rows(rows), columns(columns), depth(depth) {
    std::mt19937 random(static_cast<unsigned>(rows * 7919 + columns * 31 + depth));
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<T>* values, int64_t count) {
      values->resize(static_cast<size_t>(count));
      for (T& value : *values) narrow(static_cast<decltype(widen(T{}))>(normal(random)), &value);
    };
    fill(&x, rows * depth);
    fill(&weight, columns * depth);
    fill(&bias, columns);
    fill(&grad, rows * columns);
  }

  // Forward, or (backward) the gradient of x.
  std::vector<T> product(bool backward, bool reference) {
    Pack pack = {kType<T>, backward ? depth : columns, backward ? columns : depth, backward, weight.data()};
    std::vector<T> output(static_cast<size_t>(rows * pack.columns));
    Product p;
    p.type = kType<T>;
    p.rows = rows;
    p.columns = pack.columns;
    p.depth = pack.depth;
    p.left = backward ? grad.data() : x.data();
    p.bias = backward ? nullptr : bias.data();
    p.output = output.data();
    if (reference) {
      CHECK(run_reference(p, pack).ok());
      return output;
    }
    size_t bytes = 0;
    CHECK(packed_size(pack, &bytes).ok());
    Dirty packed(bytes, 8), workspace(workspace_size(p));
    CHECK(run(pack, packed.data()).ok());
    p.packed = packed.data();
    CHECK(run(p, workspace.data()).ok());
    return output;
  }

  std::vector<T> gradients(bool reference) {  // of weight, then of bias
    std::vector<T> output(static_cast<size_t>(columns * depth + columns));
    WeightGradient g;
    g.type = kType<T>;
    g.rows = rows;
    g.outputs = columns;
    g.inputs = depth;
    g.grad_output = grad.data();
    g.input = x.data();
    g.grad_weight = output.data();
    g.grad_bias = output.data() + columns * depth;
    if (reference) {
      CHECK(run_reference(g).ok());
    } else {
      Dirty workspace(workspace_size(g));
      CHECK(run(g, workspace.data()).ok());
    }
    return output;
  }
};

template <typename T>
double largest_error(const std::vector<T>& a, const std::vector<T>& b) {
  double error = a.size() == b.size() ? 0 : 1e300, scale = 1;
  for (size_t i = 0; i < a.size(); ++i) {
    error = std::max(error, std::abs(static_cast<double>(widen(a[i])) - static_cast<double>(widen(b[i]))));
    scale = std::max(scale, std::abs(static_cast<double>(widen(b[i]))));
  }
  return error / scale;
}

template <typename T>
void compare_with_reference(double bound) {
  const int64_t shapes[][3] = {{1, 1, 1},    {2, 33, 3},    {7, 64, 257},  {12, 31, 511}, {97, 29, 70},
                               {13, 600, 5}, {300, 40, 21}, {9, 70, 1100}, {0, 5, 3}};
  for (const auto& shape : shapes) {
    Case<T> c(shape[0], shape[1], shape[2]);
    for (const std::string& tier : usable_tiers()) {
      CHECK(force_cpu_tier(tier).ok());
      CHECK_NEAR(largest_error(c.product(false, false), c.product(false, true)), 0, bound);
      CHECK_NEAR(largest_error(c.product(true, false), c.product(true, true)), 0, bound);
      CHECK_NEAR(largest_error(c.gradients(false), c.gradients(true)), 0, bound);
    }
  }
  CHECK(force_cpu_tier("").ok());
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

Product valid_product() {
  Product p;
  p.rows = 2;
  p.columns = 3;
  p.depth = 4;
  return p;
}

}  // namespace

TEST(float64_equals_plain_loops) { compare_with_reference<double>(1e-14); }
TEST(float32_equals_plain_loops) { compare_with_reference<float>(1e-6); }
TEST(bfloat16_is_rounded_once) { compare_with_reference<BFloat16>(1.0 / 256); }

TEST(threads_change_no_bit) {
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    Case<float> c(403, 197, 301);
    set_num_threads(1);
    const auto y = c.product(false, false), dx = c.product(true, false), dw = c.gradients(false);
    set_num_threads(5);
    CHECK(same_bits(y, c.product(false, false)) && same_bits(dx, c.product(true, false)) &&
          same_bits(dw, c.gradients(false)));
  }
  CHECK(force_cpu_tier("").ok());
}

// One layout for all tiers: what one has packed, another can read.
TEST(a_packed_matrix_serves_every_tier) {
  Case<BFloat16> c(5, 37, 301);
  Pack pack = {Type::kBFloat16, 37, 301, false, c.weight.data()};
  size_t bytes = 0;
  CHECK(packed_size(pack, &bytes).ok());
  std::vector<std::vector<unsigned char>> seen;
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    seen.emplace_back(bytes);
    CHECK(run(pack, seen.back().data()).ok());
    CHECK(std::memcmp(seen[0].data() + 32, seen.back().data() + 32, bytes - 32) == 0);
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(sizes_that_overflow_are_refused) {
  const int64_t huge = std::numeric_limits<int64_t>::max() / 4;
  size_t bytes = 7;
  for (const auto& [columns, depth] : {std::pair{huge, int64_t{2}}, {int64_t{2}, huge}, {huge, huge}}) {
    const Pack pack = {Type::kFloat32, columns, depth};
    CHECK(!packed_size(pack, &bytes).ok() && bytes == 7);
    Product p = valid_product();
    p.columns = columns;
    p.depth = depth;
    CHECK(workspace_size(p) == 0);
    CHECK(run(p, nullptr).message().find("fit in memory") != std::string::npos);
  }
  const Pack large = {Type::kFloat32, int64_t{1} << 20, int64_t{1} << 20};  // 2^42 bytes: more than 32 bits
  CHECK(packed_size(large, &bytes).ok() && bytes >= size_t{1} << 42);
}

TEST(bad_input_is_an_error_with_a_sentence) {
  Case<float> c(2, 3, 4);
  Pack pack = {Type::kFloat32, 3, 4, false, c.weight.data()};
  size_t bytes = 0;
  CHECK(packed_size(pack, &bytes).ok());
  std::vector<unsigned char> packed(bytes);
  CHECK(run(pack, packed.data()).ok());
  const auto message = [&](auto change) {
    Product p = valid_product();
    std::vector<float> output(64);
    p.left = c.x.data();
    p.packed = packed.data();
    p.output = output.data();
    change(&p);
    std::vector<unsigned char> workspace(workspace_size(p) + 1);
    return run(p, workspace.data()).message();
  };
  CHECK(message([](Product*) {}).empty());
  CHECK(message([](Product* p) { p->rows = -1; }) == "[linear] rows: expected at least 0, got -1");
  CHECK(message([](Product* p) { p->depth = 0; }) == "[linear] depth: expected at least 1, got 0");
  CHECK(message([](Product* p) { p->threads = 0; }) == "[linear] threads: expected 1 to 4096, got 0");
  CHECK(message([](Product* p) { p->packed = static_cast<const char*>(p->packed) + 3; }) ==
        "[linear] packed: expected memory on an 8-byte boundary, got 3 bytes past one");
  CHECK(message([](Product* p) { p->left = nullptr; }) == "[linear] left: expected an array, got null");
  CHECK(message([](Product* p) { p->path = CudaPath::kFew; }) ==
        "[linear] path: expected best on cpu, got one of cuda's");
  for (auto change : {+[](Product* p) { p->columns = 4; }, +[](Product* p) { p->depth = 3; },
                      +[](Product* p) { p->type = Type::kBFloat16; }}) {
    CHECK(message(change).find("[linear] packed: expected a packed matrix of") == 0);
  }
  std::string name;
  CHECK(which(Device::kCpu, &name).ok() && name.rfind("cpu/", 0) == 0);
#if !defined(EARNEST_WITH_CUDA)  // else test_linear_cuda.cc
  CHECK(message([](Product* p) { p->device = Device::kCuda; }).find("without CUDA") != std::string::npos);
  CHECK(!which(Device::kCuda, &name).ok());
#endif
}
