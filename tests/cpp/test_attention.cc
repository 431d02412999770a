// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using namespace earnest::attention;

// Sequences whose lengths straddle every block size, with all arrays exactly as large as promised, so that
// the address sanitizer sees each byte read or written beyond them.
template <typename T>
struct Case {
  std::vector<int32_t> cu_q, cu_k, used;
  std::vector<T> q, k, v, grad_out, out, grad_q, grad_k, grad_v;
  std::vector<double> lse;
  Params params;

  Case(const std::vector<int>& lengths_q, const std::vector<int>& lengths_k, int64_t heads, int64_t kv_heads,
       int64_t dim, bool causal) {
    params.type = sizeof(T) == 8 ? Type::kFloat64 : sizeof(T) == 4 ? Type::kFloat32 : Type::kBFloat16;
    cu_q = bounds(lengths_q);
    cu_k = bounds(lengths_k);
    params.sequences = static_cast<int64_t>(lengths_q.size());
    params.tokens_q = cu_q.back();
    params.tokens_k = cu_k.back();
    params.heads = heads;
    params.kv_heads = kv_heads;
    params.dim = dim;
    params.causal = causal;
    params.scale = 1 / std::sqrt(static_cast<double>(dim));
    std::mt19937 generator(static_cast<unsigned>(dim));
    q = random(params.tokens_q * heads * dim, generator);
    k = random(params.tokens_k * kv_heads * dim, generator);
    v = random(params.tokens_k * kv_heads * dim, generator);
    grad_out = random(params.tokens_q * heads * dim, generator);
    out = grad_q = std::vector<T>(q.size());
    grad_k = grad_v = std::vector<T>(k.size());
    lse.resize(static_cast<size_t>(params.tokens_q * heads));
    point();
  }

  void point() {
    params.cu_seqlens_q = cu_q.data();
    params.cu_seqlens_k = cu_k.data();
    params.seqused_k = used.empty() ? nullptr : used.data();
    params.q = q.data();
    params.k = k.data();
    params.v = v.data();
  }

  Output output() { return {out.data(), lse.data()}; }
  Gradients gradients() {
    return {out.data(), lse.data(), grad_out.data(), nullptr, grad_q.data(), grad_k.data(), grad_v.data()};
  }

  static std::vector<int32_t> bounds(const std::vector<int>& lengths) {
    std::vector<int32_t> result{0};
    for (int length : lengths) result.push_back(result.back() + length);
    return result;
  }
  static T from_double(double x) {
    if constexpr (sizeof(T) == 2) {
      return static_cast<T>(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16);
    } else {
      return static_cast<T>(x);
    }
  }
  static double to_double(T x) {
    if constexpr (sizeof(T) == 2) {
      return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
    } else {
      return x;
    }
  }
  static std::vector<T> random(int64_t size, std::mt19937& generator) {
    std::normal_distribution<double> normal;
    std::vector<T> result(static_cast<size_t>(size));
    for (T& x : result) x = from_double(normal(generator));
    return result;
  }
  static double largest_difference(const std::vector<T>& a, const std::vector<T>& b) {
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const double difference = std::abs(to_double(a[i]) - to_double(b[i]));
      largest = std::isnan(difference) ? INFINITY : std::max(largest, difference);
    }
    return largest;
  }
};

template <typename T>
void agrees_with_reference(int64_t dim, bool causal, double bound) {
  Case<T> fast({7, 0, 66, 101, 1}, {7, 3, 66, 130, 64}, 6, 2, dim, causal);
  Case<T> slow = fast;
  slow.point();
  CHECK(reference_forward(slow.params, slow.output()).ok());
  CHECK(reference_backward(slow.params, slow.gradients()).ok());
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    CHECK(forward(fast.params, fast.output()).ok());
    CHECK(backward(fast.params, fast.gradients()).ok());
    CHECK_NEAR(Case<T>::largest_difference(fast.out, slow.out), 0, bound);
    CHECK_NEAR(Case<T>::largest_difference(fast.grad_q, slow.grad_q), 0, 4 * bound);
    CHECK_NEAR(Case<T>::largest_difference(fast.grad_k, slow.grad_k), 0, 8 * bound);
    CHECK_NEAR(Case<T>::largest_difference(fast.grad_v, slow.grad_v), 0, 8 * bound);
    for (size_t i = 0; i < fast.lse.size(); ++i) CHECK(std::abs(fast.lse[i] - slow.lse[i]) < 1e-5);
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(every_tier_agrees_with_the_reference) {
  for (int64_t dim : {8, 24, 32, 64, 136}) {
    for (bool causal : {false, true}) {
      agrees_with_reference<float>(dim, causal, 4e-6);
      agrees_with_reference<double>(dim, causal, 1e-14);
      agrees_with_reference<uint16_t>(dim, causal, 2e-2);
    }
  }
}

TEST(keys_beyond_the_used_ones_are_never_read) {
  Case<float> clean({3, 2}, {70, 5}, 2, 1, 40, false);
  clean.used = {66, 0};
  Case<float> dirty = clean;
  for (size_t i = 66 * 40; i < dirty.k.size(); ++i)
    dirty.k[i] = dirty.v[i] = std::numeric_limits<float>::quiet_NaN();
  clean.point();
  dirty.point();
  for (Case<float>* one : {&clean, &dirty}) {
    CHECK(forward(one->params, one->output()).ok());
    one->grad_k.assign(one->grad_k.size(), 7.0f);  // every element has to be written
    CHECK(backward(one->params, one->gradients()).ok());
  }
  CHECK(clean.out == dirty.out && clean.grad_q == dirty.grad_q);
  CHECK(clean.grad_k == dirty.grad_k && clean.grad_v == dirty.grad_v);
  for (size_t i = 66 * 40; i < dirty.k.size(); ++i) CHECK(dirty.grad_k[i] == 0 && dirty.grad_v[i] == 0);
  for (size_t i = 3 * 2 * 40; i < dirty.q.size(); ++i) CHECK(dirty.out[i] == 0 && dirty.grad_q[i] == 0);
}

template <typename T>
void threads_change_nothing() {  // one sequence for each way of dealing out the work
  Case<T> one({40, 600, 1, 1}, {40, 650, 60, 1100}, 6, 2, 32, true);
  Case<T> many = one;
  many.point();
  const int before = num_threads();
  set_num_threads(1);
  CHECK(forward(one.params, one.output()).ok());
  CHECK(backward(one.params, one.gradients()).ok());
  set_num_threads(5);
  CHECK(forward(many.params, many.output()).ok());
  CHECK(backward(many.params, many.gradients()).ok());
  set_num_threads(before);
  CHECK(one.out == many.out && one.lse == many.lse);
  CHECK(one.grad_q == many.grad_q && one.grad_k == many.grad_k && one.grad_v == many.grad_v);
}

TEST(threads_change_nothing) {
  threads_change_nothing<float>();
  threads_change_nothing<uint16_t>();
}

// Keys in parts for as many threads as there may be, of bfloat16 that lies as badly as it can.
TEST(decoding_reads_a_long_cache_in_parts_wherever_it_lies) {
  Case<uint16_t> one({1}, {1300}, 7, 1, 64, true);
  CHECK(forward(one.params, one.output()).ok());
  const std::vector<uint16_t> expected = one.out;
  for (std::vector<uint16_t>* x : {&one.q, &one.k, &one.v}) x->insert(x->begin(), uint16_t{0x7fff});
  one.params.q = one.q.data() + 1, one.params.k = one.k.data() + 1, one.params.v = one.v.data() + 1;
  const int before = num_threads();
  for (int threads : {1, 4}) {
    set_num_threads(threads);
    CHECK(forward(one.params, one.output()).ok());
    CHECK(one.out == expected);
  }
  set_num_threads(before);
}

TEST(sequences_of_equal_length_need_no_bounds) {
  Case<float> bounded({9, 9, 9}, {12, 12, 12}, 4, 4, 16, true);
  Case<float> equal = bounded;
  equal.point();
  equal.params.cu_seqlens_q = equal.params.cu_seqlens_k = nullptr;
  CHECK(forward(bounded.params, bounded.output()).ok());
  CHECK(forward(equal.params, equal.output()).ok());
  CHECK(bounded.out == equal.out);
}

TEST(nothing_to_do_is_fine) {
  Params params;
  params.heads = params.kv_heads = 1;
  params.dim = 8;
  CHECK(forward(params, {}).ok());
  CHECK(backward(params, {}).ok());
}

TEST(wrong_arguments_are_named) {
  const auto message = [](const auto& change) {
    Case<float> one({4}, {4}, 2, 2, 8, true);
    change(one);
    return forward(one.params, one.output()).message();
  };
  const auto names = [](const std::string& text, const std::string& part) {
    if (text.find(part) == std::string::npos) std::printf("'%s' lacks '%s'\n", text.c_str(), part.c_str());
    return text.find(part) != std::string::npos;
  };
#if !defined(EARNEST_WITH_CUDA)
  CHECK(names(message([](auto& one) { one.params.device = Device::kCuda; }), "built without CUDA"));
#endif
  CHECK(names(message([](auto& one) { one.params.type = Type::kFloat16; }), "on the cpu, got float16"));
  CHECK(names(message([](auto& one) { one.params.dim = 12; }), "multiple of 8 up to 256, got 12"));
  CHECK(names(message([](auto& one) { one.params.dim = 264; }), "got 264"));
  CHECK(names(message([](auto& one) { one.params.kv_heads = 3; }), "divides q's 2, got 3"));
  CHECK(names(message([](auto& one) { one.params.scale = 0; }), "positive finite"));
  CHECK(names(message([](auto& one) { one.params.q = nullptr; }), "q: expected an array"));
  CHECK(names(message([](auto& one) { one.cu_q[0] = 1; }), "cu_seqlens_q: expected a first entry of 0"));
  CHECK(names(message([](auto& one) { one.cu_k[1] = 5; }), "cu_seqlens_k: expected a last entry of 4"));
  CHECK(names(message([](auto& one) { one.used = {5}, one.point(); }), "seqused_k: expected 0 to 4"));
  CHECK(names(
      message([](auto& one) { one.params.cu_seqlens_k = nullptr, one.params.tokens_k = int64_t{1} << 31; }),
      "at most 2147483647 tokens, got 2147483648"));
  CHECK(names(message([](auto& one) { one.params.cu_seqlens_q = nullptr, one.params.sequences = 3; }),
              "equal"));
}

// Numbers alone: nothing is allocated, and the pointers are never read.
TEST(sizes_that_would_overflow_are_refused) {
  static const float nothing = 0;
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const auto message = [](int64_t sequences, int64_t tokens_q, int64_t tokens_k, int64_t heads,
                          int64_t kv_heads, int64_t dim) {
    Params p;
    p.sequences = sequences, p.tokens_q = tokens_q, p.tokens_k = tokens_k;
    p.heads = heads, p.kv_heads = kv_heads, p.dim = dim;
    p.q = p.k = p.v = &nothing;
    double lse = 0;
    float out = 0;
    const Status forwards = forward(p, {&out, &lse});
    const Status backwards = backward(p, {&nothing, &lse, &nothing, nullptr, &out, &out, &out});
    CHECK(forwards.code() == StatusCode::kInvalidArgument);
    CHECK(backwards.message() == forwards.message());
    return forwards.message();
  };
  const auto starts = [](const std::string& text, const std::string& with) {
    if (text.rfind("[attention] " + with, 0) != 0) std::printf("'%s'\n", text.c_str());
    return text.rfind("[attention] " + with, 0) == 0;
  };
  const std::string elements = ": expected at most 2^52 elements, got ";
  CHECK(starts(message(1, int64_t{1} << 48, 0, 4, 4, 8), "q" + elements + "281474976710656 x 4 x 8"));
  CHECK(starts(message(1, 0, int64_t{1} << 48, 4, 4, 8), "k" + elements));
  CHECK(starts(message(1, int64_t{1} << 61, 1, 8, 8, 8), "q" + elements));  // whose product is 0 in 64 bits
  CHECK(starts(message(1, 1, 1, kMost, kMost, 8), "q" + elements));
  CHECK(starts(message(1, kMost, kMost, 1, 1, 256), "q" + elements));
  CHECK(starts(message(kMost, 0, 0, 1, 1, 8), "sequences" + elements));
  const int64_t long_one = (int64_t{1} << 31) - 1;
  CHECK(starts(message(1, long_one, long_one, 2, 1, 8), "q, k: expected at most 2^60 multiply-adds, got "));
  CHECK(starts(message(3, 3 * long_one, 3 * long_one, 1, 1, 16), "q, k: expected at most 2^60"));
}

TEST(which_names_the_tier_or_the_reason) {
  std::string name;
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    CHECK(which(Device::kCpu, Type::kBFloat16, 64, &name).ok());
    CHECK(name == "cpu/" + tier);
    CHECK(which(Device::kCpu, Type::kFloat32, 64, &name).ok());
    CHECK(name == (tier == "avx512_bf16" ? "cpu/avx512" : "cpu/" + tier));  // the last is bfloat16's alone
  }
  CHECK(force_cpu_tier("").ok());
  CHECK(!which(Device::kCuda, Type::kFloat32, 64, &name).ok());
}

}  // namespace
