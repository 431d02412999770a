// SPDX-License-Identifier: Apache-2.0
// Which block does what in log-mel's launches, and their constants: numbers alone, no device.
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "kernels/logmel/constants.h"
#include "kernels/logmel/push_grid.h"
#include "kernels/logmel/schedule.h"
#include "kernels/logmel/tables.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest::logmel;

std::vector<int64_t> sums(const std::vector<int64_t>& counts) {
  std::vector<int64_t> result = {0};
  for (int64_t count : counts) result.push_back(result.back() + count);
  return result;
}

// Walks all tickets: every tile that a clip's frames need is there once, and every part comes after its
// clip's tiles.
void check_schedule(const Schedule& schedule, const std::vector<int64_t>& frames) {
  std::vector<int64_t> tiles_seen(frames.size(), 0), parts_seen(frames.size(), 0);
  int64_t ticket = 0;
  for (int64_t step = 0; step < schedule.steps(); ++step) {
    CHECK(schedule.begin(step) == ticket);
    if (step < schedule.clips) {
      CHECK(schedule.tiles_of(step) >= 1);
      tiles_seen[static_cast<size_t>(step)] = schedule.tiles_of(step);
      ticket += schedule.tiles_of(step);
    }
    const int64_t clip = step - schedule.lag;
    if (schedule.lag == 0 || clip < 0) continue;
    CHECK(tiles_seen[static_cast<size_t>(clip)] > 0);
    const int64_t parts = schedule.parts_before(clip + 1) - schedule.parts_before(clip);
    CHECK(parts >= 1);
    parts_seen[static_cast<size_t>(clip)] = parts;
    ticket += parts;
  }
  CHECK(ticket == schedule.tickets());
  for (size_t c = 0; c < frames.size(); ++c) {
    CHECK(tiles_seen[c] * kFramesOfTile >= frames[c]);
    CHECK((tiles_seen[c] - 2) * kFramesOfTile < frames[c]);  // one in vain at most
    if (schedule.lag > 0) CHECK(parts_seen[c] * kTilesOfPart * kFramesOfTile >= frames[c]);
  }
}

template <int kMels>
void check_filters() {
  constexpr Filters<kMels> kFilters;
  const Tables& tables = *tables_for(kMels);
  for (int m = 0; m <= kMels; ++m) CHECK(kFilters.end[m] == tables.end[m]);
  for (int k = 0; k < kBins; ++k) {
    CHECK(kFilters.falling[k] == tables.weights[k].falling);
    CHECK(kFilters.rising[k] == tables.weights[k].rising);
  }
}

}  // namespace

TEST(constants_of_the_compiler_are_the_tables) {
  check_filters<80>();
  check_filters<128>();
  for (int r = 0; r < 25; ++r)
    for (int l = 0; l < 16; ++l)
      CHECK(window_at(sample_of(r, l)) == static_cast<float>(tables_for(80)->window[r][l]));
}

TEST(every_frame_has_one_tile_and_parts_come_after_tiles) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<int64_t> frames(random() % 70);
    for (int64_t& count : frames) count = random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 400);
    const std::vector<int64_t> offsets = sums(frames);
    for (const bool normalized : {false, true}) {
      const int64_t clips = static_cast<int64_t>(frames.size());
      check_schedule(schedule_of(clips, offsets.data(), offsets.back(), normalized, 264), frames);
      const std::vector<int64_t> same(frames.size(), round);
      check_schedule(schedule_of(clips, nullptr, round * clips, normalized, 1 + round), same);
    }
  }
}

TEST(between_a_clip_and_its_parts_lie_as_many_tiles_as_run_at_a_time) {
  const Schedule half_minutes = schedule_of(64, nullptr, 64 * 3000, true, 264);
  CHECK(half_minutes.lag == 3);
  CHECK(half_minutes.tiles == 64 * 94);
  CHECK(schedule_of(1, nullptr, 3000, true, 264).lag == 1);  // one clip has nobody behind it
  CHECK(schedule_of(2000, nullptr, 2000 * 100, true, 264).lag == 66);
  CHECK(schedule_of(2000, nullptr, 2000 * 100, false, 264).lag == 0);
  CHECK(schedule_of(0, nullptr, 0, true, 264).tickets() == 0);
}

TEST(a_step_of_streams_has_a_block_for_each_four_and_no_more_in_vain_than_run_at_a_time) {
  CHECK(push_grid(512, 8, 264).x == 128 && push_grid(512, 8, 264).y == 1);
  CHECK(push_grid(1, 0, 264).x == 1 && push_grid(1, 0, 264).y == 1);
  CHECK(push_grid(5, 9, 264).x == 2 && push_grid(5, 9, 264).y == 2);
  CHECK(push_grid(4, 60000, 264).y == 264);
  CHECK(push_grid(4096, 60000, 264).y == 1);
  CHECK(push_grid(4, int64_t{1} << 34, 1 << 20).y == 65535);  // what a grid may have
}
