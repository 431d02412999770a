// SPDX-License-Identifier: Apache-2.0
// Bias, rotary positions and the write to pages, against the CPU's rotary positions (kernels/rowwise) and its
// formula in float64: on the CPU, and on a GPU or by the emulator.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/attention/rotary_turn.h"
#include "kernels/attention/rotary_write.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/float8.h"
#include "kernels/rowwise/angles.h"
#include "kernels/rowwise/rowwise.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/rounded.h"

namespace {

using namespace earnest;
namespace rotary_write = attention::rotary_write;

struct Angles {
  std::vector<float> cosine, sine;
};

Angles angles_of(const std::vector<int64_t>& positions, int64_t dim, double theta) {
  const size_t size = positions.size() * static_cast<size_t>(dim / 2);
  Angles angles{std::vector<float>(size), std::vector<float>(size)};
  rowwise::RotaryAngles job;
  job.rows = static_cast<int64_t>(positions.size()), job.dim = dim, job.theta = theta;
  job.positions = positions.data(), job.cosine = angles.cosine.data(), job.sine = angles.sine.data();
  CHECK(rowwise::run(job).ok());
  return angles;
}

}  // namespace

TEST(angles_are_the_cpus_bits_up_to_the_last_position) {
  std::mt19937 random(5);
  std::vector<int64_t> positions{0, 1, 131071, 131072, (1 << 24) - 1, 1 << 24};
  for (int i = 0; i < 1500; ++i) positions.push_back(random() % 131072);
  for (int i = 0; i < 500; ++i) positions.push_back(random() % (1 << 24));
  for (const auto& [dim, theta] : {std::pair{64, 1e4}, std::pair{128, 1e6}}) {
    const Angles right = angles_of(positions, dim, theta);
    std::vector<float> rates(static_cast<size_t>(dim / 2));
    rotary_write::rates_of(dim, theta, rates.data());
    int64_t different = 0;
    for (size_t i = 0; i < right.cosine.size(); ++i) {
      const size_t half = rates.size();
      const rotary_write::Turn turn =
          rotary_write::turn_by(static_cast<float>(positions[i / half]) * rates[i % half]);
      different += turn.cosine != right.cosine[i] || turn.sine != right.sine[i];
    }
    CHECK(different == 0);
  }
}

namespace {

template <typename Stored>
Stored untouched_number() {
  return {static_cast<decltype(Stored::bits)>(0xffff)};
}

// `Number`: type of what is read and of queries; `Stored`: of the cache.
template <typename Number, typename Stored = Number>
struct CaseOf {
  static constexpr bool kScaled = sizeof(Stored) == 1;

  rotary_write::Params params;
  std::vector<Number> qkv, bias, q;
  std::vector<Stored> k, v;
  std::vector<float> k_scale, v_scale;
  std::vector<int64_t> positions, slots;

  CaseOf(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t page_size, bool with_bias) {
    rotary_write::Params& p = params;
    p.tokens = tokens, p.heads = heads, p.kv_heads = kv_heads, p.dim = dim;
    p.page_size = page_size, p.pages = tokens / page_size + 3;
    p.theta = dim == 64 ? 1e4 : 1e6;
    std::mt19937 random(static_cast<unsigned>(tokens));
    std::normal_distribution<double> normal;
    qkv.resize(static_cast<size_t>(tokens * width()));
    bias.resize(static_cast<size_t>(with_bias ? width() : 0));
    for (auto* numbers : {&qkv, &bias})
      for (Number& x : *numbers) x = rounded<Number>(normal(random));
    slots.resize(static_cast<size_t>(p.pages * page_size));
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), random);
    slots.resize(static_cast<size_t>(tokens));
    p.type = std::is_same_v<Number, Float16> ? attention::Type::kFloat16 : attention::Type::kBFloat16;
    p.cache = kScaled ? attention::paged::Cache::kFloat8 : attention::paged::Cache::kAsQueries;
    for (int64_t head = 0; head < kv_heads; ++head) {
      k_scale.push_back(head % 2 == 0 ? 0.013f : 9.0f);  // some numbers beyond 448, and subnormal ones
      v_scale.push_back(head % 2 == 0 ? 3.0f : 0.004f);
    }
    for (int64_t t = 0; t < tokens; ++t) positions.push_back(t < 3 ? t : random() % 131072);
  }

  int64_t width() const { return (params.heads + 2 * params.kv_heads) * params.dim; }
  bool has_bias() const { return !bias.empty(); }

  // What was wrong; empty if nothing.
  std::string run(Device device = Device::kCuda) {
    rotary_write::Params p = params;
    p.device = device;
    q.assign(static_cast<size_t>(p.tokens * p.heads * p.dim), Number{0xffff});
    k.assign(static_cast<size_t>(p.pages * p.kv_heads * p.page_size * p.dim), untouched_number<Stored>());
    v = k;
    Lent lent(device);
    p.qkv = lent.in(qkv.data(), qkv.size()),
    p.bias = has_bias() ? lent.in(bias.data(), bias.size()) : nullptr;
    p.k_scale = lent.in(k_scale.data(), k_scale.size()), p.v_scale = lent.in(v_scale.data(), v_scale.size());
    p.positions = lent.in(positions.data(), positions.size()), p.slots = lent.in(slots.data(), slots.size());
    p.q = lent.out(q.data(), q.size()), p.k = lent.out(k.data(), k.size()),
    p.v = lent.out(v.data(), v.size());
    p.fault = lent.fault();
    const Status status = rotary_write::run(p);
    const FaultWord word = lent.finish();
    if (device == Device::kCpu) return status.message();
    CHECK(status.ok());
    if (!status.ok()) std::printf("%s\n", status.message().c_str());
    return rotary_write::fault(p, word).message();
  }

  // [tokens, kv_heads, dim]: what lies at the tokens' slots, which then becomes untouched.
  std::vector<Stored> take(std::vector<Stored>& pool) const {
    const rotary_write::Params& p = params;
    std::vector<Stored> taken;
    for (int64_t slot : slots) {
      for (int64_t i = 0; i < p.kv_heads * p.dim; ++i) {
        const int64_t row = (slot / p.page_size * p.kv_heads + i / p.dim) * p.page_size + slot % p.page_size;
        Stored& x = pool[static_cast<size_t>(row * p.dim + i % p.dim)];
        taken.push_back(x);
        x = untouched_number<Stored>();
      }
    }
    return taken;
  }
};

using Case = CaseOf<BFloat16>;

template <typename Stored>
bool untouched(const std::vector<Stored>& numbers) {
  return std::all_of(numbers.begin(), numbers.end(),
                     [](Stored x) { return x.bits == untouched_number<Stored>().bits; });
}
template <typename Number>
bool is_nan(Number x) {
  return std::isnan(widen(x));
}

// Rounded once: half a unit of the type, and what float32 adds to it.
template <typename Number>
void check_close(const std::vector<Number>& found, const std::vector<double>& right) {
  constexpr double kHalfUnit = std::is_same_v<Number, Float16> ? 0x1.01p-11 : 0x1.01p-8;
  CHECK(found.size() == right.size());
  for (size_t i = 0; i < right.size(); ++i)
    CHECK_NEAR(widen(found[i]), right[i], std::abs(right[i]) * kHalfUnit + 2e-6);
}

// The CPU's own rotary positions: the same but where fused multiply-adds round to the other neighbour.
void compare_with_rowwise(const Case& c, const std::vector<BFloat16>& k, const std::vector<BFloat16>& v,
                          const Angles& angles) {
  const rotary_write::Params& p = c.params;
  std::vector<BFloat16> q_cpu(c.q.size()), k_cpu(k.size()), v_cpu(v.size()), qkv = c.qkv;
  rowwise::Rotary<BFloat16, BFloat16> cpu{
      p.tokens,           p.heads,    p.kv_heads,   p.dim,        angles.cosine.data(),
      angles.sine.data(), qkv.data(), q_cpu.data(), k_cpu.data(), v_cpu.data()};
  CHECK(rowwise::rotary(cpu).ok());
  size_t different = 0;
  for (size_t i = 0; i < q_cpu.size(); ++i) different += c.q[i].bits != q_cpu[i].bits;
  for (size_t i = 0; i < k_cpu.size(); ++i) different += k[i].bits != k_cpu[i].bits;
  for (size_t i = 0; i < v_cpu.size(); ++i) CHECK(v[i].bits == v_cpu[i].bits);
  CHECK(different <= (q_cpu.size() + k_cpu.size()) / 500);
}

template <typename Number>
void compare(CaseOf<Number> c, Device device) {
  CHECK(c.run(device).empty());
  const std::vector<Number> k = c.take(c.k), v = c.take(c.v);
  CHECK(untouched(c.k) && untouched(c.v));
  const rotary_write::Params& p = c.params;
  const Angles angles = angles_of(c.positions, p.dim, p.theta);

  std::vector<double> qkv, cosine(angles.cosine.begin(), angles.cosine.end()),
      sine(angles.sine.begin(), angles.sine.end());
  for (size_t i = 0; i < c.qkv.size(); ++i) {
    const double bias = c.has_bias() ? widen(c.bias[i % static_cast<size_t>(c.width())]) : 0;
    qkv.push_back(widen(c.qkv[i]) + bias);
  }
  std::vector<double> q_right(c.q.size()), k_right(k.size()), v_right(v.size());
  rowwise::Rotary<double, double> oracle{p.tokens,       p.heads,       p.kv_heads, p.dim,
                                         cosine.data(),  sine.data(),   qkv.data(), q_right.data(),
                                         k_right.data(), v_right.data()};
  rowwise::reference_rotary(oracle);
  check_close(c.q, q_right);
  check_close(k, k_right);
  check_close(v, v_right);
  if constexpr (std::is_same_v<Number, BFloat16>) {
    if (!c.has_bias()) compare_with_rowwise(c, k, v, angles);
  }
}

}  // namespace

TEST(rows_are_the_cpus_and_lie_in_their_slots) {
  for (Device device : devices()) {
    for (bool with_bias : {false, true}) {
      compare(Case(37, 4, 2, 64, 16, with_bias), device);
      compare(Case(5, 28, 4, 128, 64, with_bias), device);
      compare(Case(1, 1, 1, 128, 256, with_bias), device);
      compare(CaseOf<Float16>(37, 4, 2, 64, 16, with_bias), device);
      compare(CaseOf<Float16>(5, 28, 4, 128, 64, with_bias), device);
    }
  }
}

TEST(a_token_alone_has_the_bits_it_has_in_a_batch) {
  for (Device device : devices()) {
    Case batch(9, 7, 1, 128, 16, true);
    batch.run(device);
    const std::vector<BFloat16> keys = batch.take(batch.k);
    Case alone = batch;
    alone.params.tokens = 1;
    alone.positions = {batch.positions[6]}, alone.slots = {3};
    alone.qkv = {batch.qkv.begin() + 6 * batch.width(), batch.qkv.begin() + 7 * batch.width()};
    alone.run(device);
    const std::vector<BFloat16> key = alone.take(alone.k);
    CHECK(std::memcmp(alone.q.data(), batch.q.data() + 6 * 7 * 128, 7 * 128 * 2) == 0);
    CHECK(std::memcmp(key.data(), keys.data() + 6 * 128, 128 * 2) == 0);
  }
}

namespace {

template <typename Number>
void check_8_bits(Device device, int tokens, int dim) {
  CaseOf<Number> right(tokens, 4, 2, dim, 16, true);
  CaseOf<Number, Float8> c(tokens, 4, 2, dim, 16, true);
  CHECK(right.run(device).empty() && c.run(device).empty());
  CHECK(std::memcmp(c.q.data(), right.q.data(), c.q.size() * 2) == 0);
  const auto k = c.take(c.k), v = c.take(c.v);
  CHECK(untouched(c.k) && untouched(c.v));
  const auto k_right = right.take(right.k), v_right = right.take(right.v);
  const auto check_nearest = [&](const std::vector<Float8>& found, const std::vector<Number>& near,
                                 const std::vector<float>& scales) {
    for (size_t i = 0; i < found.size(); ++i) {
      const float scale = scales[i / dim % 2], wanted = widen(near[i]) / scale;  // but for 16 bits' rounding
      float best = INFINITY;
      for (int bits = 0; bits < 256; ++bits) {
        const float distance = std::abs(widen(Float8{static_cast<uint8_t>(bits)}) - wanted);
        if (distance < best) best = distance;
      }
      CHECK_NEAR(std::abs(widen(found[i]) - wanted), best, std::abs(wanted) * 0x1p-7);
    }
  };
  check_nearest(k, k_right, c.k_scale);
  check_nearest(v, v_right, c.v_scale);

  c.k_scale[1] = 0;
  CHECK(c.run(device) ==
        "[rotary_write] k_scale, v_scale: expected finite numbers above 0, got another for key head 1");
  const auto keys = c.take(c.k);
  for (size_t i = 0; i < keys.size(); ++i)  // the CPU has looked before it began
    CHECK((keys[i].bits == 0xff) == (device == Device::kCpu || i / dim % 2 == 1));

  c.slots.assign(c.slots.size(), -1);  // nobody divides by a scale, but it has been looked at
  CHECK(c.run(device) ==
        "[rotary_write] k_scale, v_scale: expected finite numbers above 0, got another for key head 1");
}

}  // namespace

TEST(a_cache_of_8_bits_holds_the_nearest_numbers) {
  for (Device device : devices()) {
    check_8_bits<BFloat16>(device, 37, 64);
    check_8_bits<Float16>(device, 37, 64);
    check_8_bits<BFloat16>(device, 3, 128);
    check_8_bits<Float16>(device, 3, 128);
  }
}

TEST(a_token_of_slot_minus_1_is_not_kept) {
  for (Device device : devices()) {
    Case c(2, 4, 2, 64, 16, true);
    c.slots = {-1, -1};
    CHECK(c.run(device).empty());
    CHECK(untouched(c.k) && untouched(c.v) && std::none_of(c.q.begin(), c.q.end(), is_nan<BFloat16>));
  }
}

#if defined(EARNEST_WITH_CUDA)
TEST(positions_and_slots_that_cannot_be_are_recorded_and_nothing_is_kept) {
  Case right(4, 4, 2, 64, 16, false);
  right.run();
  const int64_t places = right.params.pages * right.params.page_size;
  for (int64_t position : {int64_t{-1}, (int64_t{1} << 24) + 1, INT64_MIN, INT64_MAX}) {
    Case c = right;
    c.positions[2] = position;
    const std::string message = "[rotary_write] positions: expected 0 to 2^24, got another for token 2";
    CHECK(c.run(Device::kCpu) == message && untouched(c.k) &&
          std::all_of(c.q.begin(), c.q.end(), is_nan<BFloat16>));
    CHECK(c.run() == message);
    for (size_t i = 0; i < c.q.size(); ++i)
      CHECK(i / 256 == 2 ? is_nan(c.q[i]) : c.q[i].bits == right.q[i].bits);
    const std::vector<BFloat16> keys = c.take(c.k);
    for (size_t i = 0; i < keys.size(); ++i) CHECK((keys[i].bits == 0xffff) == (i / 128 == 2));
  }
  for (int64_t slot : {int64_t{-2}, places, INT64_MIN, INT64_MAX}) {
    Case c = right;
    c.slots[1] = slot;
    const std::string message = "[rotary_write] slots: expected -1 (not kept), or a place in [0, " +
                                std::to_string(places) + "), got another for token 1";
    CHECK(c.run(Device::kCpu) == message);
    CHECK(c.run() == message);
    CHECK(std::memcmp(c.q.data(), right.q.data(), c.q.size() * 2) == 0);
    c.slots = {right.slots[0], right.slots[2], right.slots[3]};
    c.take(c.k), c.take(c.v);
    CHECK(untouched(c.k) && untouched(c.v));
  }
  CHECK(rotary_write::fault(right.params, kNoFault).ok());
}
#endif

TEST(calls_that_cannot_run_say_why) {
  const Case c(1, 4, 2, 64, 16, true);
  const auto message = [&](auto change) {
    rotary_write::Params p = c.params;
    p.device = Device::kCuda;
    std::vector<BFloat16> room(4096);
    p.q = p.k = p.v = room.data(), p.qkv = room.data();
    p.positions = c.positions.data(), p.slots = c.slots.data();
    change(p);
    return rotary_write::run(p).message();
  };
  using P = rotary_write::Params;
  CHECK(message([](P& p) { p.type = attention::Type::kFloat64; }) ==
        "[rotary_write] qkv: expected bfloat16 or float16, got another type");
  CHECK(message([](P& p) { p.dim = 96; }) == "[rotary_write] qkv: expected a head size of 64 or 128, got 96");
  CHECK(message([](P& p) { p.page_size = 8; }) ==
        "[rotary_write] page_size: expected a power of two from 16 to 256, got 8");
  CHECK(message([](P& p) { p.theta = INFINITY; }) ==
        "[rotary_write] theta: expected a finite number above 0, got inf");
  CHECK(message([](P& p) { p.slots = nullptr; }) == "[rotary_write] slots: expected an array, got none");
  CHECK(message([](P& p) { p.q = static_cast<BFloat16*>(p.q) + 4; }) ==
        "[rotary_write] q: expected an array that begins on 16 bytes, got another address");
  CHECK(message([](P& p) { p.tokens = int64_t{1} << 31; }).find("[rotary_write] qkv: expected 0 to 2^31") ==
        0);
  std::string name;
  CHECK(rotary_write::which(Device::kCpu, &name).ok() && name == "cpu/scalar");
#if defined(EARNEST_WITH_CUDA)
  CHECK(rotary_write::which(Device::kCuda, &name).ok() && name == "cuda/simt");
#else
  CHECK(message([](P&) {}).find("[rotary_write] device: expected cpu (earnest was built without") == 0);
#endif
}
