// SPDX-License-Identifier: Apache-2.0
// Forward: every tile of logits leaves three numbers a row, which are joined tile after tile.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/thread_pool.h"
#include "kernels/logprob/logprob_packing.h"

namespace earnest::logprob {
namespace {

template <typename T>
void finish_row(const Forward& f, int64_t row, double max, double sum, double product, T target_logit) {
  const double log_sum = std::log(sum);
  static_cast<T*>(f.lse)[row] = static_cast<T>(max + log_sum);
  static_cast<T*>(f.logp)[row] = static_cast<T>(static_cast<double>(target_logit) - max - log_sum);
  static_cast<T*>(f.entropy)[row] = static_cast<T>(log_sum - product / sum);
}

// Offsets into scratch memory.
struct Layout {
  size_t hidden, weight, tile_sums, target_logits, row_sums, bytes;

  Layout(const Problem& p, const Extent& extent) {
    const int64_t size = size_of_row(p.type);
    Offsets offsets;
    hidden = offsets.take(extent.chunk * extent.words, size);
    weight = offsets.take(extent.slab * extent.words, size);
    tile_sums = offsets.take(3 * extent.chunk * extent.slab / kTile, size);
    target_logits = offsets.take(p.rows, size);
    row_sums = offsets.take(3 * round_up(p.rows, kRowPad), sizeof(double));
    bytes = offsets.total();
  }
};

// One (slab, chunk) of the forward pass.
template <typename T>
class ForwardStep {
 public:
  ForwardStep(const Forward& f, const TileKernels<T>& kernels, const Extent& extent, const Layout& layout,
              char* base, int64_t column, int64_t row)
      : f_(f),
        p_(f.problem),
        k_(kernels),
        extent_(extent),
        kept_(f.problem),
        hidden_(reinterpret_cast<T*>(base + layout.hidden)),
        weight_(reinterpret_cast<T*>(base + layout.weight)),
        tile_sums_(reinterpret_cast<T*>(base + layout.tile_sums)),
        target_logits_(reinterpret_cast<T*>(base + layout.target_logits) + row),
        row_sums_(row_sums(base, layout, p_.rows, row)),
        column_(column),
        row_(row),
        columns_(std::min(extent.slab, p_.vocabulary - column)),
        rows_(std::min(extent.chunk, p_.rows - row)),
        tiles_(ceil_div(columns_, kTile)),
        blocks_(ceil_div(rows_, kRowBlock)) {}

  void pack() const {
    const Packing<T> packing(p_, k_);
    const int64_t tiles = row_ == 0 ? tiles_ : 0;
    const int64_t blocks = column_ == 0 || p_.rows > extent_.chunk ? blocks_ : 0;
    parallel_for(tiles + blocks, [&](int64_t task) {
      if (task < tiles) {
        const int64_t first = task * kTile;
        packing.weight(column_ + first, std::min(kTile, columns_ - first), weight_ + first * extent_.words);
      } else {
        const int64_t first = (task - tiles) * kRowBlock;
        packing.hidden(row_ + first, std::min(kRowBlock, rows_ - first), hidden_ + first * extent_.words);
      }
    });
  }

  void tiles() const {
    parallel_for(tiles_ * blocks_, [&](int64_t task) {
      const int64_t tile = task % tiles_, first = task / tiles_ * kRowBlock;
      const int64_t rows = std::min(kRowBlock, rows_ - first);
      T* kept = kept_.at(static_cast<T*>(f_.logits), column_ / kTile + tile, row_ + first);
      k_.forward_tile(
          logit_tile<T>(p_, extent_, hidden_ + first * extent_.words, weight_ + tile * kTile * extent_.words,
                        row_ + first, rows, column_ + tile * kTile),
          kept, tile_sums(tile, first), target_logits_ + first);
    });
  }

  void join() const {
    const bool last = column_ + columns_ == p_.vocabulary;
    parallel_for(blocks_, [&](int64_t block) {
      const int64_t first = block * kRowBlock, end = std::min(rows_, first + kRowBlock);
      const TileSums<double> rows = {row_sums_.max + first, row_sums_.sum + first, row_sums_.product + first};
      for (int64_t tile = 0; tile < tiles_; ++tile) k_.join_tile(tile_sums(tile, first), rows, end - first);
      for (int64_t i = first; last && i < end; ++i) {
        finish_row<T>(f_, row_ + i, row_sums_.max[i], row_sums_.sum[i], row_sums_.product[i],
                      target_logits_[i]);
      }
    });
  }

  static TileSums<double> row_sums(char* base, const Layout& layout, int64_t rows, int64_t row) {
    auto* sums = reinterpret_cast<double*>(base + layout.row_sums) + row;
    rows = round_up(rows, kRowPad);
    return {sums, sums + rows, sums + 2 * rows};
  }

 private:
  TileSums<T> tile_sums(int64_t tile, int64_t row) const {
    T* sums = tile_sums_ + 3 * tile * extent_.chunk + row;
    return {sums, sums + extent_.chunk, sums + 2 * extent_.chunk};
  }

  const Forward& f_;
  const Problem& p_;
  const TileKernels<T>& k_;
  const Extent& extent_;
  const Kept kept_;
  T *hidden_, *weight_;
  T* tile_sums_;
  T* target_logits_;
  TileSums<double> row_sums_;
  const int64_t column_, row_, columns_, rows_, tiles_, blocks_;
};

}  // namespace

size_t workspace_size(const Forward& f, int64_t pair) {
  return Layout(f.problem, Extent(f.problem, pair)).bytes;
}

template <typename T>
void run_forward(const Forward& f, const TileKernels<T>& kernels, void* workspace) {
  const Problem& p = f.problem;
  const Extent extent(p, kernels.pair);
  const Layout layout(p, extent);
  char* base = Offsets::aligned(workspace);
  const TileSums<double> sums = ForwardStep<T>::row_sums(base, layout, p.rows, 0);
  std::fill(sums.max, sums.sum, -std::numeric_limits<double>::infinity());
  std::fill_n(sums.sum, 2 * (sums.sum - sums.max), 0.0);
  for (int64_t column = 0; column < p.vocabulary; column += extent.slab) {
    for (int64_t row = 0; row < p.rows; row += extent.chunk) {
      const ForwardStep<T> step(f, kernels, extent, layout, base, column, row);
      step.pack();
      step.tiles();
      step.join();
    }
  }
}

template void run_forward(const Forward&, const TileKernels<float>&, void*);
template void run_forward(const Forward&, const TileKernels<double>&, void*);

}  // namespace earnest::logprob
