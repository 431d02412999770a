// SPDX-License-Identifier: Apache-2.0
// Of path sm90a's forward schedules those that take turns do: no result shows it, the emulator's count of
// products does. Whoever passes no turn, or one too many, waits for ever or leaves it behind, which the
// emulator says.
#include "kernels/common/hopper_emulator.h"
#include "tests/cpp/check.h"
#include "tests/cpp/plain_attention.h"

using namespace earnest;
using namespace earnest::attention;

namespace {

int64_t products_in_between(Schedule schedule) {
  plain_attention::Case<BFloat16> c({150}, {260}, 1, 1, 64, true);
  c.p.path = CudaPath::kSm90a, c.p.schedule = schedule;
  simt::take_products_in_between();
  for (int repeat = 0; repeat < 2; ++repeat) CHECK(plain_attention::run_on_device(&c).ok());
  return simt::take_products_in_between();
}

}  // namespace

TEST(products_of_two_warpgroups_meet_only_where_nobody_takes_turns) {
  for (const Schedule schedule : {Schedule::kTurns, Schedule::kBoth, Schedule::kWide})
    CHECK(products_in_between(schedule) == 0);
  for (const Schedule schedule : {Schedule::kSeries, Schedule::kAhead})
    CHECK(products_in_between(schedule) > 0);
}
