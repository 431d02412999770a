// SPDX-License-Identifier: Apache-2.0
// Bias, rotary positions and the write to pages, against the CPU's rotary positions (kernels/rowwise) and its
// formula in float64: on a GPU, or by the emulator.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/rotary_turn.h"
#include "kernels/attention/rotary_write.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float8.h"
#include "kernels/rowwise/angles.h"
#include "kernels/rowwise/rowwise.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

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

#if defined(EARNEST_WITH_CUDA)
namespace {

template <typename Stored>
Stored untouched_number() {
  return {static_cast<decltype(Stored::bits)>(0xffff)};
}

BFloat16 rounded(double x) {
  BFloat16 y;
  narrow(static_cast<float>(x), &y);
  return y;
}

template <typename Stored>
struct CaseOf {
  static constexpr bool kScaled = sizeof(Stored) == 1;

  rotary_write::Params params;
  std::vector<BFloat16> qkv, bias, q;
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
      for (BFloat16& x : *numbers) x = rounded(normal(random));
    slots.resize(static_cast<size_t>(p.pages * page_size));
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), random);
    slots.resize(static_cast<size_t>(tokens));
    p.cache = kScaled ? attention::paged::Cache::kFloat8 : attention::paged::Cache::kBFloat16;
    for (int64_t head = 0; head < kv_heads; ++head) {
      k_scale.push_back(head % 2 == 0 ? 0.013f : 9.0f);  // some numbers beyond 448, and subnormal ones
      v_scale.push_back(head % 2 == 0 ? 3.0f : 0.004f);
    }
    for (int64_t t = 0; t < tokens; ++t) positions.push_back(t < 3 ? t : random() % 131072);
  }

  int64_t width() const { return (params.heads + 2 * params.kv_heads) * params.dim; }
  bool has_bias() const { return !bias.empty(); }

  FaultWord run() {
    rotary_write::Params p = params;
    q.assign(static_cast<size_t>(p.tokens * p.heads * p.dim), BFloat16{0xffff});
    k.assign(static_cast<size_t>(p.pages * p.kv_heads * p.page_size * p.dim), untouched_number<Stored>());
    v = k;
    OnDevice<BFloat16> on_qkv(qkv), on_bias(bias), on_q(q);
    OnDevice<Stored> on_k(k), on_v(v);
    OnDevice<float> on_k_scale(k_scale), on_v_scale(v_scale);
    OnDevice<int64_t> on_positions(positions), on_slots(slots);
    OnDevice<FaultWord> word(std::vector<FaultWord>{kNoFault});
    p.qkv = on_qkv.data(), p.bias = has_bias() ? on_bias.data() : nullptr;
    p.k_scale = on_k_scale.data(), p.v_scale = on_v_scale.data();
    p.positions = on_positions.data(), p.slots = on_slots.data();
    p.q = on_q.data(), p.k = on_k.data(), p.v = on_v.data(), p.fault = word.data();
    const Status status = rotary_write::run(p);
    CHECK(status.ok());
    if (!status.ok()) std::printf("%s\n", status.message().c_str());
    q = on_q.values(), k = on_k.values(), v = on_v.values();
    return word.values()[0];
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
bool is_nan(BFloat16 x) { return std::isnan(widen(x)); }

// Rounded once: half a unit of bfloat16, and what float32 adds to it.
void check_close(const std::vector<BFloat16>& found, const std::vector<double>& right) {
  CHECK(found.size() == right.size());
  for (size_t i = 0; i < right.size(); ++i)
    CHECK_NEAR(widen(found[i]), right[i], std::abs(right[i]) * 0x1.01p-8 + 2e-6);
}

void compare(Case c) {
  CHECK(c.run() == kNoFault);
  const std::vector<BFloat16> k = c.take(c.k), v = c.take(c.v);
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

  if (c.has_bias()) return;
  // The CPU's own: the same but where fused multiply-adds round to the other neighbour.
  std::vector<BFloat16> q_cpu(c.q.size()), k_cpu(k.size()), v_cpu(v.size());
  rowwise::Rotary<BFloat16, BFloat16> cpu{
      p.tokens,           p.heads,      p.kv_heads,   p.dim,        angles.cosine.data(),
      angles.sine.data(), c.qkv.data(), q_cpu.data(), k_cpu.data(), v_cpu.data()};
  CHECK(rowwise::rotary(cpu).ok());
  size_t different = 0;
  for (size_t i = 0; i < q_cpu.size(); ++i) different += c.q[i].bits != q_cpu[i].bits;
  for (size_t i = 0; i < k_cpu.size(); ++i) different += k[i].bits != k_cpu[i].bits;
  for (size_t i = 0; i < v_cpu.size(); ++i) CHECK(v[i].bits == v_cpu[i].bits);
  CHECK(different <= (q_cpu.size() + k_cpu.size()) / 500);
}

}  // namespace

TEST(rows_are_the_cpus_and_lie_in_their_slots) {
  for (bool with_bias : {false, true}) {
    compare(Case(37, 4, 2, 64, 16, with_bias));
    compare(Case(5, 28, 4, 128, 64, with_bias));
    compare(Case(1, 1, 1, 128, 256, with_bias));
  }
}

TEST(a_token_alone_has_the_bits_it_has_in_a_batch) {
  Case batch(9, 7, 1, 128, 16, true);
  batch.run();
  const std::vector<BFloat16> keys = batch.take(batch.k);
  Case alone = batch;
  alone.params.tokens = 1;
  alone.positions = {batch.positions[6]}, alone.slots = {3};
  alone.qkv = {batch.qkv.begin() + 6 * batch.width(), batch.qkv.begin() + 7 * batch.width()};
  alone.run();
  const std::vector<BFloat16> key = alone.take(alone.k);
  CHECK(std::memcmp(alone.q.data(), batch.q.data() + 6 * 7 * 128, 7 * 128 * 2) == 0);
  CHECK(std::memcmp(key.data(), keys.data() + 6 * 128, 128 * 2) == 0);
}

TEST(a_cache_of_8_bits_holds_the_nearest_numbers) {
  Case right(37, 4, 2, 64, 16, true);
  CaseOf<Float8> c(37, 4, 2, 64, 16, true);
  CHECK(right.run() == kNoFault && c.run() == kNoFault);
  CHECK(std::memcmp(c.q.data(), right.q.data(), c.q.size() * 2) == 0);
  const auto k = c.take(c.k), v = c.take(c.v);
  CHECK(untouched(c.k) && untouched(c.v));
  const auto k_right = right.take(right.k), v_right = right.take(right.v);
  const auto check_nearest = [](const std::vector<Float8>& found, const std::vector<BFloat16>& near,
                                const std::vector<float>& scales) {
    for (size_t i = 0; i < found.size(); ++i) {
      const float scale = scales[i / 64 % 2], wanted = widen(near[i]) / scale;  // but for bfloat16's rounding
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
  CHECK(rotary_write::fault(c.params, c.run()).message() ==
        "[rotary_write] k_scale, v_scale: expected finite numbers above 0, got another for key head 1");
  const auto keys = c.take(c.k);
  for (size_t i = 0; i < keys.size(); ++i) CHECK((keys[i].bits == 0xff) == (i / 64 % 2 == 1));
}

TEST(a_token_of_slot_minus_1_is_not_kept) {
  Case c(2, 4, 2, 64, 16, true);
  c.slots = {-1, -1};
  CHECK(c.run() == kNoFault);
  CHECK(untouched(c.k) && untouched(c.v) && std::none_of(c.q.begin(), c.q.end(), is_nan));
}

TEST(positions_and_slots_that_cannot_be_are_recorded_and_nothing_is_kept) {
  Case right(4, 4, 2, 64, 16, false);
  right.run();
  const int64_t places = right.params.pages * right.params.page_size;
  for (int64_t position : {int64_t{-1}, (int64_t{1} << 24) + 1, INT64_MIN, INT64_MAX}) {
    Case c = right;
    c.positions[2] = position;
    CHECK(rotary_write::fault(c.params, c.run()).message() ==
          "[rotary_write] positions: expected 0 to 2^24, got another for token 2");
    for (size_t i = 0; i < c.q.size(); ++i)
      CHECK(i / 256 == 2 ? is_nan(c.q[i]) : c.q[i].bits == right.q[i].bits);
    const std::vector<BFloat16> keys = c.take(c.k);
    for (size_t i = 0; i < keys.size(); ++i) CHECK((keys[i].bits == 0xffff) == (i / 128 == 2));
  }
  for (int64_t slot : {int64_t{-2}, places, INT64_MIN, INT64_MAX}) {
    Case c = right;
    c.slots[1] = slot;
    CHECK(rotary_write::fault(c.params, c.run()).message() ==
          "[rotary_write] slots: expected -1 (not kept), or a place in [0, " + std::to_string(places) +
              "), got another for token 1");
    CHECK(std::memcmp(c.q.data(), right.q.data(), c.q.size() * 2) == 0);
    c.slots = {right.slots[0], right.slots[2], right.slots[3]};
    c.take(c.k), c.take(c.v);
    CHECK(untouched(c.k) && untouched(c.v));
  }
  CHECK(rotary_write::fault(right.params, kNoFault).ok());
}

TEST(calls_that_cannot_run_say_why) {
  const Case c(1, 4, 2, 64, 16, true);
  const auto message = [&](auto change) {
    rotary_write::Params p = c.params;
    std::vector<BFloat16> room(4096);
    p.q = p.k = p.v = room.data(), p.qkv = room.data();
    p.positions = c.positions.data(), p.slots = c.slots.data();
    change(p);
    return rotary_write::run(p).message();
  };
  using P = rotary_write::Params;
  CHECK(message([](P& p) { p.device = Device::kCpu; }).find("[rotary_write] device: expected cuda") == 0);
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
}

#endif
