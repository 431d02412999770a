// SPDX-License-Identifier: Apache-2.0
// What only the CUDA side of ppo has: how it divides work, at the edges of its pieces and blocks; the same
// bits at every run and wherever a sequence stands; arrays on the device that are not as they must be.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/ppo/gae_pieces.h"
#include "kernels/ppo/group_sums.h"
#include "kernels/ppo/loss_blocks.h"
#include "tests/cpp/check.h"
#include "tests/cpp/ppo_calls.h"

using namespace earnest;
using namespace earnest::ppo;
using ppo_calls::Batch;
using ppo_calls::run;

TEST(pieces_in_windows_are_each_token_of_a_sequence_once) {
  constexpr int64_t kLength = gae_pieces::kPieceTokens<float>;
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const int64_t begin = random() % 3000, end = begin + random() % (repeat % 3 == 0 ? 3 : 5000);
    int64_t left = end;  // tokens from here on have been met, in the order of windows from the last one down
    int64_t number = 0;
    for (int64_t window = gae_pieces::num_windows<float>(9000); window >= 0; --window) {
      const auto piece = gae_pieces::piece_in<float>(begin, end, window);
      if (piece.end == piece.begin) continue;
      CHECK(piece.end == left && (piece.end - 1) / kLength == window && piece.number == number++);
      CHECK(piece.more ? piece.end - piece.begin == kLength : piece.begin == begin);
      left = piece.begin;
    }
    CHECK(left == begin);
  }
  CHECK(gae_pieces::num_windows<float>(0) == 1 && gae_pieces::num_windows<float>(kLength) == 1 &&
        gae_pieces::num_windows<float>(kLength + 1) == 2);
  CHECK(gae_pieces::num_blocks(1) == 1 && gae_pieces::num_blocks(8) == 1 && gae_pieces::num_blocks(9) == 2);
}

TEST(blocks_of_the_losses_cover_all_tokens_and_stay_few) {
  for (int64_t tokens : {int64_t{0}, int64_t{1}, int64_t{255}, int64_t{256}, int64_t{257}, int64_t{262144},
                         int64_t{262145}, int64_t{16} << 20, (int64_t{1} << 40) + 1}) {
    const int64_t of_block = loss_blocks::tokens_of_block(tokens), blocks = loss_blocks::num_blocks(tokens);
    CHECK(of_block % loss_blocks::kThreads == 0 && blocks >= 1 && blocks <= loss_blocks::kMostBlocks);
    CHECK(blocks * of_block >= tokens && (blocks - 1) * of_block < std::max<int64_t>(tokens, 1));
  }
}

TEST(sums_of_groups_are_the_same_in_any_order) {
  using namespace group_sums;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  for (uint32_t n : {1u, 2u, 3u, 16u, 17u, 1000u}) {
    for (double size : {1e-310, 1e-5, 1.0, 3e7, 1e300}) {
      std::vector<double> x(n);
      double most = 0.0;
      long double exact = 0.0L;
      for (double& one : x) most = std::max(most, std::abs(one = size * normal(random))), exact += one;
      const int e = exponent_of(std::bit_cast<uint64_t>(most));
      CHECK(most < std::ldexp(1.0, e) || e > 1023);
      const auto sum = [&] {
        int64_t total = 0;
        for (double one : x) total += rounded(one, e, n);
        return total;
      };
      const int64_t forwards = sum();
      CHECK(std::abs(forwards) <= int64_t{1} << kSumBits);
      std::shuffle(x.begin(), x.end(), random);
      CHECK(sum() == forwards);
      CHECK_NEAR(widened(forwards, e, n) / size, static_cast<double>(exact / size), 1e-14 * n);
    }
  }
  CHECK(rounded(0.75, kSumBits, 1) == 1 && rounded(-0.75, kSumBits, 1) == -1 &&
        rounded(0.25, kSumBits, 1) == 0);
  CHECK(bits_of(1) == 0 && bits_of(2) == 1 && bits_of(3) == 2 && bits_of(4) == 2 && bits_of(~0u) == 32);
  CHECK(num_places(1) == 2 && num_places(4) == 8 && num_places(5) == 16);
}

#if defined(EARNEST_WITH_CUDA)
namespace {

template <typename T>
struct Advantages {
  std::vector<T> advantages, returns;
  Status status;
  bool operator==(const Advantages& other) const {
    return advantages == other.advantages && returns == other.returns;
  }
};

template <typename T>
Advantages<T> gae(const Batch<T>& batch, int64_t first, const std::vector<int32_t>& bounds, int64_t tokens,
                  double gamma = 0.99, double lam = 0.95) {
  Advantages<T> out{std::vector<T>(tokens, T(7)), std::vector<T>(tokens, T(7)), {}};
  GaeParams<T> params;
  params.rewards = batch.x[0].data() + first, params.values = batch.x[1].data() + first;
  params.trainable = batch.trainable.data() + first;
  params.cu_seqlens = bounds.data();
  params.tokens = tokens, params.sequences = static_cast<int64_t>(bounds.size()) - 1;
  params.gamma = gamma, params.lam = lam;
  params.advantages = out.advantages.data(), params.returns = out.returns.data();
  out.status = run(params, Device::kCuda);
  return out;
}

// Lengths around a lane's tokens, a piece, a block's pieces and a group of pieces; empty ones between.
template <typename T>
std::vector<int32_t> awkward_bounds() {
  constexpr int kLane = gae_pieces::kTokensOfLane<T>, kPiece = gae_pieces::kPieceTokens<T>;
  std::vector<int32_t> bounds{0};
  for (int length : {kPiece, 0, kLane - 1, kLane, kLane + 1, 0, 0, kPiece - 1, kPiece + 1, 2 * kPiece, 1,
                     9 * kPiece + 5, 33 * kPiece - 1, 70 * kPiece + 13, 31, 32, 33, 0})
    bounds.push_back(bounds.back() + length);
  return bounds;
}

template <typename T>
void check_gae(const std::vector<int32_t>& bounds, double bound, double gamma = 0.99, double lam = 0.95) {
  const Batch<T> batch(bounds.back());
  const Advantages<T> mine = gae(batch, 0, bounds, bounds.back(), gamma, lam);
  CHECK(mine.status.ok());
  std::vector<T> a(bounds.back()), r(bounds.back());
  GaeParams<T> params{batch.x[0].data(), batch.x[1].data(), batch.trainable.data(), bounds.data(),
                      bounds.back()};
  params.sequences = static_cast<int64_t>(bounds.size()) - 1;
  params.gamma = gamma, params.lam = lam;
  params.advantages = a.data(), params.returns = r.data();
  reference_gae(params);
  for (size_t t = 0; t < a.size(); ++t) {
    CHECK_NEAR(mine.advantages[t], a[t], bound * std::max(1.0, std::abs(static_cast<double>(a[t]))));
    CHECK_NEAR(mine.returns[t], r[t], bound * std::max(1.0, std::abs(static_cast<double>(r[t]))));
  }
  // The same bits at every run, and for each sequence alone, of very many some.
  CHECK(mine == gae(batch, 0, bounds, bounds.back(), gamma, lam));
  for (size_t i = 0; i + 1 < bounds.size(); i += 1 + bounds.size() / 100) {
    const int32_t length = bounds[i + 1] - bounds[i];
    const Advantages<T> alone = gae<T>(batch, bounds[i], {0, length}, length, gamma, lam);
    CHECK(std::equal(alone.advantages.begin(), alone.advantages.end(), mine.advantages.begin() + bounds[i]));
    CHECK(std::equal(alone.returns.begin(), alone.returns.end(), mine.returns.begin() + bounds[i]));
  }
}

}  // namespace

TEST(gae_at_the_edges_of_pieces_and_wherever_a_sequence_stands) {
  check_gae<float>(awkward_bounds<float>(), 1e-6);
  check_gae<double>(awkward_bounds<double>(), 1e-13);
}

TEST(gae_of_sequences_of_more_than_a_stretch_of_groups) {
  constexpr int kPiece = gae_pieces::kPieceTokens<double>, kStretch = gae_pieces::kStretch * kPiece;
  std::vector<int32_t> bounds{0};
  for (int length : {77, kStretch + 40 * kPiece + 9, 3}) bounds.push_back(bounds.back() + length);
  check_gae<double>(bounds, 1e-12, 1.0, 1.0);  // at which nothing fades on the way
}

TEST(gae_of_short_sequences_side_by_side) {
  for (int most : {2, 8, 40, 200, 700}) {
    std::mt19937 random(most);
    std::vector<int32_t> bounds{0};
    while (bounds.back() < 4000) bounds.push_back(bounds.back() + random() % (most + 1));
    check_gae<float>(bounds, 1e-6);
    check_gae<double>(bounds, 1e-13);
  }
}

TEST(gae_of_sequences_that_share_a_lane) {
  const auto bounds_of = [](auto length) {
    std::vector<int32_t> bounds{0};
    for (int i = 0; bounds.back() < 1300; ++i) bounds.push_back(bounds.back() + length(i));
    return bounds;
  };
  std::mt19937 random(1);
  for (int most : {1, 2, 3, 4, 8}) {  // alike, which may cross the ends of windows, and mixed
    check_gae<float>(bounds_of([&](int) { return most; }), 1e-6);
    check_gae<double>(bounds_of([&](int) { return static_cast<int>(random() % (most + 1)); }), 1e-13);
  }
  // Longer ones between them, where a warp has not looked when it decides, or which leave a piece in a
  // window.
  check_gae<float>(bounds_of([](int i) { return i == 30 || i == 200 || i == 700 ? 40 : 1; }), 1e-6);
  check_gae<double>(bounds_of([](int i) { return i == 35 ? 20 : i == 300 ? 260 : 1 + i % 2; }), 1e-13);
}

TEST(gae_of_few_tokens_among_many_empty_sequences) {
  std::vector<int32_t> bounds(200, 0);
  for (int length : {1, 40, 700}) {
    bounds.push_back(bounds.back() + length);
    for (int i = 0; i < 150; ++i) bounds.push_back(bounds.back());
  }
  check_gae<float>(bounds, 1e-6);
  check_gae<double>(bounds, 1e-13);
  const Batch<float> none(0);
  CHECK(gae(none, 0, std::vector<int32_t>(500, 0), 0).status.ok());
  std::vector<int32_t> wrong(5000, 0);  // more than there are threads
  wrong[4321] = 1;
  CHECK(gae(none, 0, wrong, 0).status.message() ==
        "[gae] cu_seqlens: expected numbers that never fall, got 1 before 0");
}

TEST(gae_of_many_sequences_of_at_most_one_token) {
  std::vector<int32_t> bounds{0};
  for (int i = 0; i < 1500; ++i) bounds.push_back(bounds.back() + (i % 3 != 0));
  const Batch<float> batch(bounds.back());
  const auto mine = gae(batch, 0, bounds, bounds.back());
  CHECK(mine.status.ok());
  for (int t = 0; t < bounds.back(); ++t) {
    CHECK(mine.advantages[t] == (batch.trainable[t] ? batch.x[0][t] - batch.x[1][t] : 0.0f));
  }
}

TEST(gae_names_what_is_wrong_on_the_device_and_ends) {
  Batch<float> batch(5000);
  const std::vector<int32_t> good{0, 2500, 5000};
  const auto message = [&](const std::vector<int32_t>& bounds) {
    return gae(batch, 0, bounds, 5000).status.message();
  };
  CHECK(message(good).empty());
  CHECK(message({1, 2500, 5000}) == "[gae] cu_seqlens: expected 0 at the start, got 1");
  CHECK(message({0, 2500, 1000, 5000}) ==
        "[gae] cu_seqlens: expected numbers that never fall, got 2500 before 1000");
  CHECK(message({0, 2500, 4999}) ==
        "[gae] cu_seqlens: expected 5000 (the number of tokens) at the end, got 4999");
  CHECK(message({0, 1 << 30, -5, 5000}).find("numbers that never fall") != std::string::npos);
  std::vector<int32_t> of_one(5001);  // as above, of sequences that share a lane
  std::iota(of_one.begin(), of_one.end(), 0);
  for (const auto& [place, wrong] : {std::pair{3, -3}, {40, INT32_MIN}, {700, 9000}, {701, INT32_MAX}}) {
    std::vector<int32_t> bounds = of_one;
    bounds[static_cast<size_t>(place)] = wrong;
    CHECK(message(bounds).find("numbers that never fall") != std::string::npos);
  }
  const auto of_ten = [&](size_t place, int32_t wrong) {  // all in one lane, at the first tokens there are
    std::vector<int32_t> bounds(of_one.begin(), of_one.begin() + 11);
    bounds[place] = wrong;
    return gae(batch, 0, bounds, 10).status.message();
  };
  CHECK(of_ten(3, -3) == "[gae] cu_seqlens: expected numbers that never fall, got 2 before -3");
  CHECK(of_ten(0, 20) == "[gae] cu_seqlens: expected 0 at the start, got 20");
  CHECK(message({0}) == "[gae] cu_seqlens: expected 5000 (the number of tokens) at the end, got 0");
  for (int64_t t : {777, 4000}) batch.trainable[t] = 1, batch.x[0][t] = batch.x[1][t] = 0.5f;
  batch.x[0][4000] = std::numeric_limits<float>::infinity();
  CHECK(message(good) == "[gae] rewards: expected finite numbers at trainable tokens, got inf at token 4000");
  CHECK(message(of_one) == message(good));
  batch.x[1][777] = -std::numeric_limits<float>::infinity();
  CHECK(message(good) == "[gae] values: expected finite numbers at trainable tokens, got -inf at token 777");
}

TEST(the_first_of_many_faults_is_told) {
  Batch<float> batch(3000);
  for (int64_t t : {100, 1500, 2999}) batch.trainable[t] = 1;
  for (int64_t t : {1500, 2999}) batch.x[0][t] = std::numeric_limits<float>::infinity();
  batch.x[0][100] = 1.0f;
  Moments moments;
  const MomentsParams<float> params{batch.x[0].data(), batch.trainable.data(), 3000};
  CHECK(run(params, &moments, Device::kCuda).message() ==
        "[whiten] x: expected finite numbers at trainable tokens, got inf at position 1500");
  std::vector<float> advantages(3000);
  std::vector<int64_t> groups(3000);
  GroupParams<float> group{batch.x[0].data(), groups.data(), batch.trainable.data(), 3000};
  group.advantages = advantages.data();
  CHECK(run(group, Device::kCuda).message() ==
        "[group_advantage] scores: expected finite numbers at valid samples, got inf at position 1500");
}

TEST(losses_and_moments_where_blocks_take_more_than_one_round) {
  const int64_t tokens = loss_blocks::kThreads * loss_blocks::kMostBlocks + 300;
  const Batch<float> batch(tokens);
  std::vector<double> sums(kNumSums), again(kNumSums), wanted(kNumSums);
  std::vector<float> slopes(tokens), wanted_slopes(tokens);
  LossParams<float> params;
  params.logp = batch.x[0].data(), params.logp_old = batch.x[1].data(), params.advantages = batch.x[2].data();
  params.trainable = batch.trainable.data(), params.tokens = tokens;
  params.sums = sums.data(), params.grad_logp = slopes.data();
  CHECK(run(params, Device::kCuda).ok());
  params.sums = again.data();
  CHECK(run(params, Device::kCuda).ok());
  CHECK(sums == again);
  params.sums = wanted.data(), params.grad_logp = wanted_slopes.data();
  reference_loss(params);
  for (int i = 0; i < kNumSums; ++i)
    CHECK_NEAR(sums[i], wanted[i], 1e-6 * std::max(1.0, std::abs(wanted[i])));
  for (int64_t t = 0; t < tokens; t += 97) CHECK_NEAR(slopes[t], wanted_slopes[t], 1e-6);

  Moments moments;
  const MomentsParams<float> of{batch.x[0].data(), batch.trainable.data(), tokens};
  CHECK(run(of, &moments, Device::kCuda).ok());
  const Moments oracle = reference_moments(of);
  CHECK(moments.count == oracle.count);
  CHECK_NEAR(moments.mean, oracle.mean, 1e-12);
  CHECK_NEAR(moments.m2, oracle.m2, 1e-9 * oracle.m2);
}

TEST(groups_are_the_cpus_and_depend_on_their_members_alone) {
  for (int64_t samples : {1, 2, 31, 33, 1023, 4096, 4097, 9000}) {
    const Batch<double> batch(samples);
    for (int64_t distinct : {int64_t{1}, int64_t{7}, samples}) {
      std::vector<int64_t> groups(samples);
      for (int64_t i = 0; i < samples; ++i)
        groups[i] = (i * 7919 % distinct - 1) * (int64_t{1} << 40);  // 0 too
      std::vector<double> mine(samples, 7.0), cpu(samples);
      GroupParams<double> params{batch.x[0].data(),           groups.data(), batch.trainable.data(), samples,
                                 GroupBaseline::kLeaveOneOut, true};
      params.advantages = mine.data();
      CHECK(run(params, Device::kCuda).ok());
      params.advantages = cpu.data();
      CHECK(run(params, Device::kCpu).ok());
      for (int64_t i = 0; i < samples; ++i)
        CHECK_NEAR(mine[i], cpu[i], 1e-12 * std::max(1.0, std::abs(cpu[i])));

      // One of the groups alone, backwards.
      std::vector<double> scores, again;
      std::vector<int64_t> of_one;
      std::vector<double> wanted;
      for (int64_t i = samples - 1; i >= 0; --i) {
        if (groups[i] != groups[0] || !batch.trainable[i]) continue;
        scores.push_back(batch.x[0][i]), wanted.push_back(mine[i]), of_one.push_back(-1);
      }
      again.resize(scores.size(), 7.0);
      GroupParams<double> alone{scores.data(),
                                of_one.data(),
                                nullptr,
                                static_cast<int64_t>(scores.size()),
                                GroupBaseline::kLeaveOneOut,
                                true};
      alone.advantages = again.data();
      CHECK(run(alone, Device::kCuda).ok());
      CHECK(again == wanted);
    }
  }
}

TEST(many_samples_of_float32_are_the_cpus) {
  constexpr int64_t kSamples = 5000;  // of groups: too many for one block
  const Batch<float> batch(kSamples);
  std::vector<int64_t> groups(kSamples);
  for (int64_t i = 0; i < kSamples; ++i) groups[i] = i * 7919 % 701;
  std::vector<float> mine(kSamples, 7.0f), cpu(kSamples);
  GroupParams<float> params{batch.x[0].data(), groups.data(),        batch.trainable.data(),
                            kSamples,          GroupBaseline::kMean, true};
  Moments moments;
  CHECK(run(MomentsParams<float>{batch.x[0].data(), batch.trainable.data(), kSamples}, &moments, Device::kCpu)
            .ok());
  WhitenParams<float> whiten{batch.x[0].data(), batch.trainable.data(), kSamples, moments};
  const auto compare = [&] {
    for (int64_t i = 0; i < kSamples; ++i)
      CHECK_NEAR(mine[i], cpu[i], 1e-6 * std::max(1.0, std::abs(static_cast<double>(cpu[i]))));
  };
  params.advantages = mine.data();
  CHECK(run(params, Device::kCuda).ok());
  params.advantages = cpu.data();
  CHECK(run(params, Device::kCpu).ok());
  compare();
  whiten.out = mine.data();
  CHECK(run(whiten, Device::kCuda).ok());
  whiten.out = cpu.data();
  CHECK(run(whiten, Device::kCpu).ok());
  compare();
}

TEST(groups_of_huge_tiny_and_equal_scores) {
  for (float size : {1e-42f, 1e-20f, 1.0f, 1e20f, 3e38f}) {
    const std::vector<float> scores{size, -size, size / 2, 0.0f, size, size, size, 0.1f * size};
    const std::vector<int64_t> groups{5, 5, 5, 5, -1, -1, -1, 9};
    std::vector<float> mine(8), cpu(8);
    for (bool normalize : {false, true}) {
      GroupParams<float> params{scores.data(), groups.data(), nullptr, 8, GroupBaseline::kMean, normalize};
      params.advantages = mine.data();
      CHECK(run(params, Device::kCuda).ok());
      params.advantages = cpu.data();
      CHECK(run(params, Device::kCpu).ok());
      for (int i = 0; i < 8; ++i) CHECK_NEAR(mine[i], cpu[i], 1e-6 * std::abs(static_cast<double>(cpu[i])));
      CHECK(mine[4] == 0.0f && mine[7] == 0.0f);
    }
  }
}

TEST(groups_close_together_far_from_zero) {
  // Their spread is 2^-24 of them: squares keep their bits only if they are in units of the farthest from the
  // mean, and of the mean of all.
  constexpr int64_t kSamples = 200;
  std::vector<double> scores(kSamples), mine(kSamples), cpu(kSamples);
  const std::vector<int64_t> groups(kSamples, 3);
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = 0x1p24 + 0.3 * static_cast<double>(i % 7);
  GroupParams<double> params{scores.data(), groups.data(), nullptr, kSamples, GroupBaseline::kMean, true};
  params.advantages = mine.data();
  CHECK(run(params, Device::kCuda).ok());
  params.advantages = cpu.data();
  CHECK(run(params, Device::kCpu).ok());
  for (size_t i = 0; i < mine.size(); ++i) CHECK_NEAR(mine[i], cpu[i], 1e-7);
}

TEST(calls_without_what_cuda_needs_are_refused) {
  const Batch<float> batch(10);
  std::vector<float> out(10);
  const std::vector<int32_t> bounds{0, 10};
  GaeParams<float> params{batch.x[0].data(), batch.x[1].data(), batch.trainable.data(), bounds.data(), 10, 1};
  CHECK(run_gae(params, Device::kCuda).message() == "[gae] fault: expected a word on the device, got none");
  FaultWord word = kNoFault;
  params.fault = &word;
  CHECK(run_gae(params, Device::kCuda).message() ==
        "[gae] workspace: expected memory on the device, got none");
  params.gamma = 2.0;
  CHECK(run_gae(params, Device::kCuda).message().find("[gae] gamma: expected a number in [0, 1]") == 0);
}
#endif
