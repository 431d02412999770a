// SPDX-License-Identifier: Apache-2.0
// The order of a product's tiles: every one once, rows that share columns together.
#include <cstdint>
#include <set>
#include <utility>

#include "kernels/common/tile_order.h"
#include "tests/cpp/check.h"

using namespace earnest;

TEST(every_tile_is_walked_once_and_groups_of_rows_stay_together) {
  for (int64_t rows : {1, 7, 8, 9, 16, 19}) {
    for (int64_t columns : {1, 2, 5, 78}) {
      std::set<std::pair<int64_t, int64_t>> seen;
      int64_t group = 0;
      for (int64_t i = 0; i < rows * columns; ++i) {
        const TilePlace tile = tile_at(i, rows, columns);
        CHECK(tile.row >= 0 && tile.row < rows && tile.column >= 0 && tile.column < columns);
        CHECK(tile.row / kRowBlocksTogether >= group);  // never back to an earlier group
        group = tile.row / kRowBlocksTogether;
        seen.insert({tile.row, tile.column});
      }
      CHECK(static_cast<int64_t>(seen.size()) == rows * columns);
    }
  }
}
