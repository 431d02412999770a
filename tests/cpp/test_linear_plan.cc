// SPDX-License-Identifier: Apache-2.0
// How the CUDA back end of linear layers cuts its work: strands that cover the depth, every tile once, rings
// that fit.

#include "kernels/common/strands.h"
#include "kernels/linear/linear_plan.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest;
using namespace earnest::linear::gpu;

constexpr int64_t kOfHopper = 227 * 1024, kOfAmpere = 163 * 1024, kOfAda = 99 * 1024;

}  // namespace

TEST(strands_cover_the_depth_in_whole_64s) {
  for (int64_t depth : {1, 63, 64, 65, 511, 512, 513, 576, 1536, 3584, 8960, 18944, 1 << 20}) {
    const int64_t length = strand_length(depth);
    const int count = strands_of(depth);
    CHECK(length % kStrandUnit == 0 && count >= 1 && count <= kStrands);
    CHECK(length * count >= depth && length * (count - 1) < depth);
  }
  CHECK(strand_length(1536) == 192 && strands_of(1536) == 8);
  CHECK(strand_length(576) == 128 && strands_of(576) == 5);
}

TEST(few_rows_fit_in_the_shared_memory_of_the_chip) {
  for (int64_t shared : {kOfHopper, kOfAmpere, kOfAda}) {
    for (int64_t rows : {1, 8, 9, 16, 17, 32, 33, 64, 1000}) {
      const Few plan = few_plan(rows, shared);
      CHECK(plan.shared_bytes() <= shared);
      CHECK(plan.stages >= 2);
      // Sums of all strands lie where the rings were.
      CHECK(plan.shared_bytes() >= int64_t{kStrands} * 4 * plan.rows_of_block() * plan.columns_of_block());
      const bool in_one_go = rows <= plan.rows_of_block();
      CHECK(in_one_go == (rows <= 32 || (rows <= 64 && shared == kOfHopper)));
    }
  }
}

TEST(few_rows_are_chosen_while_tiles_would_leave_the_chip_idle) {
  CHECK(is_few(1, 151936, 132) && is_few(64, 151936, 132));
  CHECK(!is_few(65, 151936, 132));
  CHECK(is_few(128, 1536, 132) && !is_few(128, 17920, 132));
  CHECK(!is_few(257, 128, 132));
}
