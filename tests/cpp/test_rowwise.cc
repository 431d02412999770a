// SPDX-License-Identifier: Apache-2.0
// Arrays exactly as large as promised, so that the address sanitizer sees every byte touched beyond them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/rowwise/gather.h"
#include "kernels/rowwise/rowwise.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
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

template <typename T>
const T* lend(Lent* lent, const std::vector<T>& values) {
  return lent->in(values.data(), values.size());
}
template <typename T>
T* lend_out(Lent* lent, std::vector<T>* values) {
  return lent->out(values->data(), values->size());
}

// y, sum, inverse and gated rows, by the kernels of a device or by the oracle, which adds before.
template <typename Stored>
auto forward_of(int64_t rows, int64_t width, bool adds, bool oracle, Device device = Device::kCpu) {
  const auto weight = stored<Stored>(width, 2), gate_up = stored<Stored>(2 * rows * width, 4),
             added = stored<Stored>(rows * width, 6);
  auto x = stored<Stored>(rows * width, 1);
  std::vector<Stored> y(x.size()), sum(x.size()), out(x.size());
  std::vector<Arithmetic<Stored>> inverse(static_cast<size_t>(rows));
  if (oracle) {
    for (size_t i = 0; adds && i < x.size(); ++i) narrow(widen(x[i]) + widen(added[i]), &x[i]);
    if (adds) sum = x;
    reference_rms_norm(RmsNorm<Stored>{rows, width, 1e-3, x.data(), weight.data(), y.data(), inverse.data()});
    reference_swiglu(SwiGlu<Stored>{rows, width, gate_up.data(), out.data()});
    return std::tuple(y, sum, inverse, out);
  }
  Lent lent(device);
  RmsNorm<Stored> norm{rows, width, 1e-3, lend(&lent, x), lend(&lent, weight), lend_out(&lent, &y)};
  norm.inverse = lend_out(&lent, &inverse);
  if (adds) norm.added = lend(&lent, added), norm.sum = lend_out(&lent, &sum);
  const SwiGlu<Stored> gates{rows, width, lend(&lent, gate_up), lend_out(&lent, &out)};
  CHECK(rms_norm(norm, device).ok() && swiglu(gates, device).ok());
  CHECK(lent.finish() == kNoFault);
  return std::tuple(y, sum, inverse, out);
}

template <typename Stored>
void check_forward(int64_t rows, int64_t width, Device device) {
  for (const bool adds : {false, true}) {
    const auto found = forward_of<Stored>(rows, width, adds, false, device);
    const auto wanted = forward_of<Stored>(rows, width, adds, true);
    check_equal<Stored>(std::get<0>(found), std::get<0>(wanted));
    check_equal<Stored>(std::get<2>(found), std::get<2>(wanted));
    check_equal<Stored>(std::get<3>(found), std::get<3>(wanted));
    const auto &sum = std::get<1>(found), &exact = std::get<1>(wanted);  // of one rounding
    for (size_t i = 0; i < sum.size(); ++i) CHECK(widen(sum[i]) == widen(exact[i]));
  }
}

template <typename Stored>
void check_backward(int64_t rows, int64_t width) {
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
      reference_swiglu_backward(gates);
    } else {
      CHECK(rms_norm(norm).ok() && rms_norm_backward(norm).ok());
      CHECK(swiglu_backward(gates).ok());
    }
    return std::tuple(grad_x, grad_gates, grad_weight);
  };
  const auto found = run(false), wanted = run(true);
  check_equal<Stored>(std::get<0>(found), std::get<0>(wanted));
  check_equal<Stored>(std::get<1>(found), std::get<1>(wanted));
  check_equal<Stored>(std::get<2>(found), std::get<2>(wanted));
}

// Queries, and keys and values that lie at slots of a cache, of which nothing else is touched.
template <typename Fused, typename Apart>
void check_rotary(int64_t rows, int64_t dim, Device device = Device::kCpu) {
  constexpr int64_t kHeads = 3, kKvHeads = 2;
  const int64_t places = 2 * rows + 1, kv_width = kKvHeads * dim;
  auto qkv = stored<Fused>(rows * (kHeads + 2 * kKvHeads) * dim, 5);
  std::vector<Arithmetic<Fused>> cosine(static_cast<size_t>(rows * dim / 2)), sine(cosine.size());
  for (size_t i = 0; i < cosine.size(); ++i) {
    cosine[i] = static_cast<Arithmetic<Fused>>(std::cos(1.7 * static_cast<double>(i)));
    sine[i] = static_cast<Arithmetic<Fused>>(std::sin(1.7 * static_cast<double>(i)));
  }
  std::vector<Apart> q(static_cast<size_t>(rows * kHeads * dim)), k(static_cast<size_t>(rows * kv_width)),
      v(k.size());
  Rotary<Fused, Apart> job{rows,        kHeads,     kKvHeads, dim,      cosine.data(),
                           sine.data(), qkv.data(), q.data(), k.data(), v.data()};
  reference_rotary(job);
  const auto untouched = stored<Apart>(places * kv_width, 9);
  for (const bool in_cache : {false, true}) {
    std::vector<int64_t> slots(static_cast<size_t>(rows));
    for (int64_t i = 0; i < rows; ++i) slots[static_cast<size_t>(i)] = in_cache ? places - 1 - 2 * i : i;
    std::vector<Apart> turned_q(q.size()), turned_k = untouched, turned_v = untouched, all_k = untouched,
                                           all_v = untouched;
    for (int64_t i = 0; i < rows * kv_width; ++i) {
      const auto at = static_cast<size_t>(slots[static_cast<size_t>(i / kv_width)] * kv_width + i % kv_width);
      all_k[at] = k[static_cast<size_t>(i)];
      all_v[at] = v[static_cast<size_t>(i)];
    }
    Lent lent(device);
    Rotary<Fused, Apart> ours{rows, kHeads, kKvHeads, dim, lend(&lent, cosine), lend(&lent, sine)};
    ours.qkv = lend_out(&lent, &qkv);
    ours.q = lend_out(&lent, &turned_q);
    ours.k = lend_out(&lent, &turned_k);
    ours.v = lend_out(&lent, &turned_v);
    if (in_cache) ours.slots = lend(&lent, slots), ours.places = places;
    CHECK(rotary(ours, device).ok() && lent.finish() == kNoFault);
    check_equal<Fused>(turned_q, q);
    check_equal<Fused>(turned_k, all_k);
    check_equal<Fused>(turned_v, all_v);
  }
}

}  // namespace

TEST(every_tier_equals_the_oracle_in_every_stored_type) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (int64_t width : {1, 15, 16, 130, 257}) {
      check_forward<float>(67, width, Device::kCpu);
      check_forward<double>(67, width, Device::kCpu);
      check_forward<BFloat16>(67, width, Device::kCpu);
      check_backward<float>(67, width);
      check_backward<double>(67, width);
      check_backward<BFloat16>(67, width);
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

TEST(rows_are_gathered_from_two_tables_and_from_none) {
  for (const Device device : devices()) {
    for (const int64_t row_bytes : {1, 6, 48, 4112}) {
      const int64_t rows = 300, source_rows = 7, other_rows = 3;
      std::vector<uint8_t> source(static_cast<size_t>(source_rows * row_bytes)),
          other(static_cast<size_t>(other_rows * row_bytes));
      for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint8_t>(i * 7 + 1);
      for (size_t i = 0; i < other.size(); ++i) other[i] = static_cast<uint8_t>(i * 11 + 3);
      std::vector<int64_t> index(static_cast<size_t>(rows));
      for (int64_t i = 0; i < rows; ++i) index[static_cast<size_t>(i)] = i * 13 % 10 - other_rows;
      for (const bool zeros : {false, true}) {
        std::vector<uint8_t> out(static_cast<size_t>(rows * row_bytes), 0xcc);
        Lent lent(device);
        Gather job{rows, row_bytes, source_rows, other_rows, lend(&lent, index), lend(&lent, source)};
        if (!zeros) job.other = lend(&lent, other);
        job.out = lend_out(&lent, &out);
        job.device = device;
        job.fault = lent.fault();
        CHECK(run(job).ok() && lent.finish() == kNoFault);
        for (size_t i = 0; i < out.size(); ++i) {
          const int64_t at = index[i / static_cast<size_t>(row_bytes)];
          const size_t within = i % static_cast<size_t>(row_bytes);
          const uint8_t from_other =
              zeros ? 0 : other[static_cast<size_t>((at < 0 ? -1 - at : 0) * row_bytes) + within];
          CHECK(out[i] == (at < 0 ? from_other : source[static_cast<size_t>(at * row_bytes) + within]));
        }
      }
    }
  }
}

TEST(what_points_outside_of_a_table_is_refused) {
  const std::vector<int64_t> index = {0, 1, 2, 1};
  const std::vector<uint8_t> source(32, 1);
  std::vector<uint8_t> out(64, 0xcc);
  Gather job{4, 16, 2, 0, index.data(), source.data(), nullptr, out.data()};
  CHECK(run(job).message() == "[gather] index: expected rows in [-1, 2), got 2");
  CHECK(out[0] == 0xcc);
  job.row_bytes = 0;
  CHECK(run(job).message() == "[gather] row_bytes: expected at least 1, got 0");
  job.row_bytes = 16, job.rows = std::numeric_limits<int64_t>::max() / 8;
  CHECK(run(job).message().find("[gather] rows: expected rows that fit") == 0);
  Rotary<float, float> turns;
  turns.rows = 4, turns.heads = turns.kv_heads = 1, turns.dim = 2;
  turns.slots = index.data(), turns.places = 2;
  CHECK(rotary(turns).message() == "[rotary] slots: expected rows in [0, 2), got 2");
}

#if defined(EARNEST_WITH_CUDA)
TEST(a_device_equals_the_oracle_too) {
  for (int64_t width : {1, 15, 16, 130, 257, 2560, 4100}) {
    check_forward<float>(5, width, Device::kCuda);
    check_forward<BFloat16>(5, width, Device::kCuda);
  }
  for (int64_t dim : {2, 10, 64, 128}) {
    check_rotary<float, float>(9, dim, Device::kCuda);
    check_rotary<BFloat16, BFloat16>(9, dim, Device::kCuda);
    check_rotary<BFloat16, float>(9, dim, Device::kCuda);
  }
  check_forward<BFloat16>(0, 16, Device::kCuda);
  check_rotary<BFloat16, BFloat16>(0, 64, Device::kCuda);
}

TEST(on_a_device_a_row_depends_on_that_row_alone) {
  const auto all = forward_of<BFloat16>(33, 1544, true, false, Device::kCuda);
  const auto alone = forward_of<BFloat16>(1, 1544, true, false, Device::kCuda);
  // The same rows in an array that begins 2 bytes later: number by number instead of 16 bytes at a time.
  const int64_t width = 1544;
  auto x = stored<BFloat16>(width + 1, 0), weight = stored<BFloat16>(width + 1, 1);
  auto added = stored<BFloat16>(width + 1, 5);
  std::vector<BFloat16> y(static_cast<size_t>(width + 1)), sum(y.size());
  std::vector<float> inverse(1);
  Lent lent(Device::kCuda);
  RmsNorm<BFloat16> job{1, width, 1e-3, lend(&lent, x) + 1, lend(&lent, weight) + 1, lend_out(&lent, &y) + 1};
  job.inverse = lend_out(&lent, &inverse);
  job.added = lend(&lent, added) + 1;
  job.sum = lend_out(&lent, &sum) + 1;
  CHECK(rms_norm(job, Device::kCuda).ok());
  lent.finish();
  CHECK(std::get<2>(all)[0] == std::get<2>(alone)[0] && std::get<2>(all)[0] == inverse[0]);
  for (size_t i = 0; i < static_cast<size_t>(width); ++i) {
    CHECK(std::get<0>(all)[i].bits == std::get<0>(alone)[i].bits);
    CHECK(std::get<0>(all)[i].bits == y[i + 1].bits);
  }
}

TEST(on_a_device_what_points_outside_is_recorded_and_touches_nothing) {
  const std::vector<int64_t> index = {0, 5, -1, 1};
  const std::vector<uint8_t> source(32, 1);
  std::vector<uint8_t> out(64, 0xcc);
  Lent lent(Device::kCuda);
  Gather job{4, 16, 2, 0, lend(&lent, index), lend(&lent, source), nullptr, lend_out(&lent, &out)};
  job.device = Device::kCuda;
  job.fault = lent.fault();
  CHECK(run(job).ok());
  CHECK(fault(job, lent.finish()).message() ==
        "[gather] index: expected rows in [-1, 2), got another at row 1");
  CHECK(out[15] == 1 && out[16] == 0 && out[32] == 0 && out[48] == 1);

  std::vector<BFloat16> qkv(3 * 64), q(64), k(64, BFloat16{0x1234}), v = k;
  const std::vector<float> angles(32, 0.5f);
  const std::vector<int64_t> slots = {1};
  Lent second(Device::kCuda);
  Rotary<BFloat16, BFloat16> turns{1, 1, 1, 64, lend(&second, angles), lend(&second, angles)};
  turns.qkv = lend_out(&second, &qkv), turns.q = lend_out(&second, &q);
  turns.k = lend_out(&second, &k), turns.v = lend_out(&second, &v);
  turns.slots = lend(&second, slots), turns.places = 1;
  turns.fault = second.fault();
  CHECK(rotary(turns, Device::kCuda).ok());
  CHECK(fault(second.finish()).message() ==
        "[rotary] slots: expected rows of the cache, got another at row 0");
  CHECK(k[0].bits == 0x1234 && v[63].bits == 0x1234);
}

TEST(a_device_says_what_it_does_not_have) {
  RmsNorm<double> norm{0, 1, 1};
  CHECK(rms_norm(norm, Device::kCuda).message() ==
        "[rms_norm] x: expected float32 or bfloat16 on cuda, got float64");
  CHECK(swiglu_backward(SwiGlu<float>{0, 1}, Device::kCuda).message() ==
        "[swiglu] device: expected cpu (on cuda there is no backward pass yet), got cuda");
}
#endif

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
#if defined(EARNEST_WITH_CUDA)
  CHECK(which(Device::kCuda, &name).ok() && name == "cuda");
#else
  CHECK(which(Device::kCuda, &name).code() == StatusCode::kUnsupported);
#endif
}
