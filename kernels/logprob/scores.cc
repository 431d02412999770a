// SPDX-License-Identifier: Apache-2.0
// The tiles of the forward pass over a matrix that is packed already: [tile][panel][word][column].
#include "kernels/logprob/scores.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/common/thread_pool.h"
#include "kernels/logprob/logprob_packing.h"

namespace earnest::logprob {
namespace {

Status wrong(const char* argument, const std::string& expected, const std::string& got) {
  return invalid_argument("scores", argument, expected, got);
}

// The same sizes in the words of logprob.h.
Problem problem_of(Type type, int64_t rows, int64_t vocabulary, int64_t depth) {
  Problem p;
  p.type = type;
  p.rows = rows;
  p.vocabulary = vocabulary;
  p.depth = depth;
  return p;
}

Status check_sizes(const Problem& p) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 64;  // sizes in bytes must not overflow
  if (p.type == Type::kFloat64) return wrong("type", "float32 or bfloat16", "float64");
  if (p.rows < 0) return wrong("hidden", "N >= 0 rows", std::to_string(p.rows));
  if (p.depth < 1) return wrong("hidden", "H >= 1 columns", std::to_string(p.depth));
  if (p.vocabulary < 1) return wrong("weight", "V >= 1 rows", std::to_string(p.vocabulary));
  const int64_t longest = std::max(p.depth, p.vocabulary);
  if (p.rows <= kMost / longest && p.vocabulary <= kMost / p.depth) return {};
  return wrong("hidden", "sizes that fit in memory", "larger ones");
}

Status kernels_of(Type type, const TileKernels<float>** kernels) {
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  *kernels = &float_kernels(tier, type);
  return {};
}

// Offsets into scratch memory, and the sizes they come from.
struct Layout {
  int64_t words, tiles, rows;  // rows: padded
  size_t hidden, sums, row_sums, bytes;

  Layout(const Scores& s, int64_t pair)
      : words(ceil_div(s.depth, pair)),
        tiles(ceil_div(s.vocabulary, kTile)),
        rows(round_up(s.rows, kRowBlock)) {
    Offsets offsets;
    hidden = offsets.take(rows * words, sizeof(float));
    sums = offsets.take(3 * rows * tiles, sizeof(float));
    row_sums = offsets.take(3 * rows, sizeof(double));
    bytes = offsets.total();
  }
};

class Run {
 public:
  Run(const Scores& s, const TileKernels<float>& kernels, void* workspace)
      : s_(s), p_(problem_of(s.type, s.rows, s.vocabulary, s.depth)), k_(kernels), layout_(s, kernels.pair) {
    p_.hidden = s.hidden;
    char* base = Offsets::aligned(workspace);
    hidden_ = reinterpret_cast<float*>(base + layout_.hidden);
    sums_ = reinterpret_cast<float*>(base + layout_.sums);
    auto* row_sums = reinterpret_cast<double*>(base + layout_.row_sums);
    row_sums_ = {row_sums, row_sums + layout_.rows, row_sums + 2 * layout_.rows};
    none_.fill(-1);
  }

  void pack_hidden() const {
    const Packing<float> packing(p_, k_);
    parallel_for(blocks(), [&](int64_t block) {
      const int64_t first = block * kRowBlock;
      packing.hidden(first, rows_from(first), hidden_ + first * layout_.words);
    });
  }

  void tiles() const {
    parallel_for(layout_.tiles * blocks(), [&](int64_t task) {
      const int64_t tile = task % layout_.tiles, first = task / layout_.tiles * kRowBlock;
      const int64_t column = tile * kTile, columns = std::min(kTile, s_.vocabulary - column);
      alignas(64) float z[kRowBlock * kTile];
      const LogitTile<float> logits = {hidden_ + first * layout_.words,
                                       static_cast<const float*>(s_.packed) + column * layout_.words,
                                       layout_.words,
                                       rows_from(first),
                                       columns,
                                       column,
                                       none_.data(),
                                       1};
      k_.forward_tile(logits, z, sums_of(tile, first), nullptr);
      for (int64_t i = 0; i < rows_from(first); ++i) {
        std::memcpy(s_.logits + (first + i) * s_.vocabulary + column, z + i * kTile,
                    static_cast<size_t>(columns) * sizeof(float));
      }
    });
  }

  void join() const {
    std::fill_n(row_sums_.max, layout_.rows, -std::numeric_limits<double>::infinity());
    std::fill_n(row_sums_.sum, 2 * layout_.rows, 0.0);
    for (int64_t tile = 0; tile < layout_.tiles; ++tile) k_.join_tile(sums_of(tile, 0), row_sums_, s_.rows);
    for (int64_t row = 0; row < s_.rows; ++row)
      s_.norms[row] = {row_sums_.max[row], std::log(row_sums_.sum[row])};
  }

 private:
  int64_t blocks() const { return layout_.rows / kRowBlock; }
  int64_t rows_from(int64_t first) const { return std::min(kRowBlock, s_.rows - first); }
  TileSums<float> sums_of(int64_t tile, int64_t row) const {
    float* sums = sums_ + 3 * tile * layout_.rows + row;
    return {sums, sums + layout_.rows, sums + 2 * layout_.rows};
  }

  const Scores& s_;
  Problem p_;
  const TileKernels<float>& k_;
  const Layout layout_;
  float *hidden_, *sums_;
  TileSums<double> row_sums_;
  std::array<int64_t, kRowBlock> none_;  // targets of rows that have none yet
};

}  // namespace

Status packed_size(const ScoreMatrix& m, size_t* bytes) {
  const TileKernels<float>* kernels = nullptr;
  if (Status status = check_sizes(problem_of(m.type, 0, m.vocabulary, m.depth)); !status.ok()) return status;
  if (Status status = kernels_of(m.type, &kernels); !status.ok()) return status;
  *bytes = static_cast<size_t>(round_up(m.vocabulary, kernels->panel) * ceil_div(m.depth, kernels->pair)) *
           sizeof(float);
  return {};
}

Status pack(const ScoreMatrix& m, void* packed) {
  size_t bytes = 0;
  const TileKernels<float>* kernels = nullptr;
  if (Status status = packed_size(m, &bytes); !status.ok()) return status;
  if (Status status = kernels_of(m.type, &kernels); !status.ok()) return status;
  if (m.weight == nullptr || packed == nullptr) return wrong("weight", "an array", "null");
  Problem p = problem_of(m.type, 0, m.vocabulary, m.depth);
  p.weight = m.weight;
  const Packing<float> packing(p, *kernels);
  parallel_for(ceil_div(m.vocabulary, kTile), [&](int64_t tile) {
    const int64_t first = tile * kTile;
    packing.weight(first, std::min(kTile, m.vocabulary - first),
                   static_cast<float*>(packed) + first * ceil_div(m.depth, kernels->pair));
  });
  return {};
}

size_t workspace_size(const Scores& s) {
  const TileKernels<float>* kernels = nullptr;
  if (!check_sizes(problem_of(s.type, s.rows, s.vocabulary, s.depth)).ok()) return 0;
  if (!kernels_of(s.type, &kernels).ok()) return 0;  // run() reports the error
  return Layout(s, kernels->pair).bytes;
}

Status run(const Scores& s, void* workspace) {
  const TileKernels<float>* kernels = nullptr;
  Status status = check_sizes(problem_of(s.type, s.rows, s.vocabulary, s.depth));
  if (!status.ok() || s.rows == 0) return status;
  if (status = kernels_of(s.type, &kernels); !status.ok()) return status;
  for (const void* array : {s.hidden, s.packed, static_cast<const void*>(s.logits),
                            static_cast<const void*>(s.norms), static_cast<const void*>(workspace)}) {
    if (array == nullptr) return wrong("hidden", "arrays", "null");
  }
  const Run scores(s, *kernels, workspace);
  scores.pack_hidden();
  scores.tiles();
  scores.join();
  return {};
}

}  // namespace earnest::logprob
