// SPDX-License-Identifier: Apache-2.0
// How the CUDA back end of log-probabilities cuts its work: every unit once, neighbours together, chunks that
// fit.
#include <cstdint>
#include <vector>

#include "kernels/logprob/logprob_plan.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest::logprob::gpu;

constexpr Sizes kLarge = {16384, 3584, 158720, 2, int64_t{64} << 20};

std::vector<Chunk> chunks_of(const Sizes& sizes, bool weight_wanted) {
  std::vector<Chunk> chunks;
  for (int64_t first = 0; first < sizes.vocabulary; first += chunks.back().columns) {
    chunks.push_back(chunk_at(first, sizes, weight_wanted));
    CHECK(chunks.back().columns > 0);
    if (chunks.back().columns <= 0) break;
  }
  return chunks;
}

}  // namespace

TEST(chunks_cover_the_vocabulary_in_steps) {
  for (const Sizes& s :
       {Sizes{1, 1, 1, 2, 0}, Sizes{20, 64, 2076, 2, 0}, Sizes{300, 8, 5000, 4, 1 << 20}, kLarge}) {
    for (bool weight_wanted : {false, true}) {
      int64_t end = 0;
      for (const Chunk& chunk : chunks_of(s, weight_wanted)) {
        CHECK(chunk.first == end && end % kChunkStep == 0);
        end += chunk.columns;
      }
      CHECK(end == s.vocabulary);
    }
  }
}

TEST(gradients_of_logits_fit_where_they_lie) {
  for (const Sizes& s :
       {Sizes{20, 64, 2076, 2, 0}, Sizes{3, 64, 4001, 4, 0}, Sizes{3, 1000, 4001, 8, 0}, kLarge}) {
    int64_t in_gradient = 0;
    for (const Chunk& chunk : chunks_of(s, true)) {
      const int64_t bytes = s.rows * chunk_pitch(chunk.columns) * s.bytes;
      if (chunk.in_gradient) {
        ++in_gradient;
        const int64_t behind = (s.vocabulary - chunk.first - chunk.columns) * s.depth * s.bytes;
        CHECK(bytes + kAlignment <= behind);
      } else {
        CHECK(chunk.columns <= workspace_columns(s));
      }
    }
    CHECK(in_gradient > 0);
    for (const Chunk& chunk : chunks_of(s, false))
      CHECK(!chunk.in_gradient && chunk.columns <= workspace_columns(s));
  }
}

TEST(the_large_problem_goes_in_few_chunks) {
  CHECK(workspace_columns(kLarge) == 2048);
  CHECK(chunks_of(kLarge, false).size() == 78);
  const auto chunks = chunks_of(kLarge, true);
  CHECK(chunks.size() == 20 && chunks.front().columns == 28416);
}
