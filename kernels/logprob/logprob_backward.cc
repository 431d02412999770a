// SPDX-License-Identifier: Apache-2.0
// Backward: tiles of logits (kept by forward, or made again) become dz of one slab and chunk, which two
// products turn into gradients.
#include <algorithm>

#include "kernels/common/bfloat16.h"
#include "kernels/common/thread_pool.h"
#include "kernels/logprob/logprob_packing.h"

namespace earnest::logprob {
namespace {

// Converts sums to the stored type where it is narrower than the arithmetic.
void narrow_all(const float* from, int64_t count, void* to) {
  auto* out = static_cast<BFloat16*>(to);
  constexpr int64_t kBlock = 1 << 16;
  parallel_for(ceil_div(count, kBlock), [=](int64_t block) {
    const int64_t end = std::min(count, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) narrow(from[i], &out[i]);
  });
}

// The target's dz is the largest of most rows: what its rounding to bfloat16 took is given back here, so that
// a gradient's error stays near that of its own rounding.
template <typename T>
void add_row(const BFloat16* row, T factor, int64_t count, T* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += factor * widen(row[i]);
}

// Offsets into scratch memory.
struct Layout {
  size_t hidden, hidden_rows, weight, weight_rows, dz, dz_pairs, lost, grad_hidden, grad_weight, bytes;

  Layout(const Backward& b, const Extent& extent, int64_t pair) {
    const Problem& p = b.problem;
    const int64_t size = size_of_row(p.type);
    const int64_t depth = round_up(p.depth, kTile);  // a multiple of every tier's panel
    const int64_t dz_words = extent.chunk * extent.slab / pair;
    const bool widened = p.type == Type::kBFloat16;  // gradients gather in float, over slabs and chunks
    Offsets offsets;
    hidden = offsets.take(extent.chunk * extent.words, size);
    hidden_rows = offsets.take(b.grad_weight ? extent.chunk / pair * depth : 0, size);
    weight = offsets.take(extent.slab * extent.words, size);
    weight_rows = offsets.take(b.grad_hidden ? extent.slab / pair * depth : 0, size);
    dz = offsets.take(dz_words, size);
    dz_pairs = pair == 1 ? dz : offsets.take(dz_words, size);
    lost = offsets.take(pair == 1 ? 0 : extent.chunk, size);
    grad_hidden = offsets.take(widened && b.grad_hidden ? p.rows * p.depth : 0, size);
    grad_weight = offsets.take(widened && b.grad_weight ? extent.slab * p.depth : 0, size);
    bytes = offsets.total();
  }
};

template <typename T>
struct Buffers {
  T *hidden, *hidden_rows, *weight, *weight_rows, *dz, *dz_pairs, *lost, *grad_hidden, *grad_weight;
};

// One (slab, chunk) of the backward pass.
template <typename T>
class BackwardStep {
 public:
  BackwardStep(const Backward& b, const TileKernels<T>& kernels, const Extent& extent,
               const Buffers<T>& buffers, int64_t column, int64_t row)
      : b_(b),
        p_(b.problem),
        k_(kernels),
        extent_(extent),
        kept_(b.problem),
        to_(buffers),
        column_(column),
        row_(row),
        columns_(std::min(extent.slab, p_.vocabulary - column)),
        rows_(std::min(extent.chunk, p_.rows - row)),
        tiles_(ceil_div(columns_, kTile)),
        made_(b.logits ? std::clamp(kept_.tiles - column / kTile, int64_t{0}, tiles_) : 0),
        blocks_(ceil_div(rows_, kRowBlock)),
        panels_(ceil_div(p_.depth, k_.panel)) {}

  // `first`: no step before this one has packed these rows of hidden for logits (or for products).
  void pack(bool first_for_logits, bool first_for_products) const {
    const Packing<T> packing(p_, k_);
    const int64_t tiles = row_ == 0 ? tiles_ - made_ : 0;
    const int64_t blocks = first_for_logits ? blocks_ : 0;
    const int64_t weight_panels = row_ == 0 && b_.grad_hidden ? panels_ : 0;
    const int64_t hidden_panels = first_for_products && b_.grad_weight ? panels_ : 0;
    parallel_for(tiles + blocks + weight_panels + hidden_panels, [&](int64_t task) {
      if (task < tiles) {
        const int64_t first = (made_ + task) * kTile;
        packing.weight(column_ + first, std::min(kTile, columns_ - first),
                       to_.weight + first * extent_.words);
      } else if ((task -= tiles) < blocks) {
        const int64_t first = task * kRowBlock;
        packing.hidden(row_ + first, std::min(kRowBlock, rows_ - first), to_.hidden + first * extent_.words);
      } else if ((task -= blocks) < weight_panels) {
        packing.rows(p_.weight, column_, columns_, task,
                     to_.weight_rows + task * k_.panel * ceil_div(columns_, k_.pair));
      } else {
        task -= weight_panels;
        packing.rows(p_.hidden, row_, rows_, task,
                     to_.hidden_rows + task * k_.panel * ceil_div(rows_, k_.pair));
      }
    });
  }
  bool needs_logits() const { return made_ < tiles_; }

  void logit_gradients() const {
    parallel_for(tiles_ * blocks_, [&](int64_t task) {
      const int64_t tile = task % tiles_, first = task / tiles_ * kRowBlock;
      const auto rows_from = [&](const void* values) {
        return values == nullptr ? nullptr : static_cast<const T*>(values) + row_ + first;
      };
      const int64_t offset = (tile * extent_.chunk + first) * kTile / k_.pair;
      k_.backward_tile(logit_tile<T>(p_, extent_, to_.hidden + first * extent_.words,
                                     to_.weight + tile * kTile * extent_.words, row_ + first,
                                     std::min(kRowBlock, rows_ - first), column_ + tile * kTile),
                       kept_.at(static_cast<const T*>(b_.logits), column_ / kTile + tile, row_ + first),
                       {rows_from(b_.lse), rows_from(b_.entropy), rows_from(b_.grad_logp),
                        rows_from(b_.grad_entropy), rows_from(b_.grad_lse)},
                       to_.dz + offset, to_.dz_pairs + offset, to_.lost + first);
    });
  }

  // Both products read dz and write different outputs, so they share one round of tasks.
  void multiply() const {
    const int64_t hidden_tasks = b_.grad_hidden ? blocks_ : 0, weight_tasks = b_.grad_weight ? tiles_ * 2 : 0;
    parallel_for(hidden_tasks + weight_tasks, [&](int64_t task) {
      if (task < hidden_tasks) {
        const int64_t first = task * kRowBlock;
        k_.multiply_tiles({to_.dz + first * kTile / k_.pair, to_.weight_rows,
                           to_.grad_hidden + (row_ + first) * p_.depth, extent_.chunk,
                           ceil_div(columns_, k_.pair), p_.depth, std::min(kRowBlock, rows_ - first),
                           p_.depth, columns_, column_ > 0});
        add_lost_to_hidden(first, std::min(kRowBlock, rows_ - first));
        return;
      }
      task -= hidden_tasks;
      const int64_t first = task * (kTile / 2), tile = task / 2;
      if (first >= columns_) return;
      k_.multiply_tile_transposed({to_.dz_pairs + tile * extent_.chunk * kTile / k_.pair + first % kTile,
                                   to_.hidden_rows, to_.grad_weight + first * p_.depth, 0,
                                   ceil_div(rows_, k_.pair), p_.depth, std::min(kTile / 2, columns_ - first),
                                   p_.depth, rows_, row_ > 0});
      add_lost_to_weight(first, std::min(kTile / 2, columns_ - first));
    });
  }

 private:
  void add_lost_to_hidden(int64_t first, int64_t rows) const {
    if (k_.pair == 1) return;
    const auto* weight = static_cast<const BFloat16*>(p_.weight);
    for (int64_t n = first; n < first + rows; ++n) {
      const int64_t target = p_.targets[row_ + n];
      if (target < column_ || target >= column_ + columns_) continue;
      add_row(weight + target * p_.depth, to_.lost[n], p_.depth, to_.grad_hidden + (row_ + n) * p_.depth);
    }
  }
  void add_lost_to_weight(int64_t first, int64_t columns) const {
    if (k_.pair == 1) return;
    const auto* hidden = static_cast<const BFloat16*>(p_.hidden);
    for (int64_t n = 0; n < rows_; ++n) {
      const int64_t column = p_.targets[row_ + n] - column_;
      if (column < first || column >= first + columns) continue;
      add_row(hidden + (row_ + n) * p_.depth, to_.lost[n], p_.depth, to_.grad_weight + column * p_.depth);
    }
  }

  const Backward& b_;
  const Problem& p_;
  const TileKernels<T>& k_;
  const Extent& extent_;
  const Kept kept_;
  const Buffers<T>& to_;
  const int64_t column_, row_, columns_, rows_, tiles_;
  const int64_t made_;  // tiles whose logits forward has kept
  const int64_t blocks_, panels_;
};

}  // namespace

size_t workspace_size(const Backward& b, int64_t pair) {
  return Layout(b, Extent(b.problem, pair), pair).bytes;
}

template <typename T>
void run_backward(const Backward& b, const TileKernels<T>& kernels, void* workspace) {
  const Problem& p = b.problem;
  if (p.rows == 0) {
    if (b.grad_weight == nullptr) return;
    std::fill_n(static_cast<char*>(b.grad_weight), p.vocabulary * p.depth * size_of_stored(p.type), 0);
    return;
  }
  const Extent extent(p, kernels.pair);
  const Layout layout(b, extent, kernels.pair);
  char* base = Offsets::aligned(workspace);
  const auto at = [base](size_t offset) { return reinterpret_cast<T*>(base + offset); };
  const bool widened = p.type == Type::kBFloat16;
  Buffers<T> buffers = {at(layout.hidden),
                        at(layout.hidden_rows),
                        at(layout.weight),
                        at(layout.weight_rows),
                        at(layout.dz),
                        at(layout.dz_pairs),
                        at(layout.lost),
                        widened ? at(layout.grad_hidden) : static_cast<T*>(b.grad_hidden),
                        nullptr};
  const bool chunks = p.rows > extent.chunk;  // then hidden is packed for each of them, slab after slab
  bool packed_for_logits = false;
  for (int64_t column = 0; column < p.vocabulary; column += extent.slab) {
    const int64_t columns = std::min(extent.slab, p.vocabulary - column);
    if (b.grad_weight != nullptr) {
      buffers.grad_weight =
          widened ? at(layout.grad_weight) : static_cast<T*>(b.grad_weight) + column * p.depth;
    }
    for (int64_t row = 0; row < p.rows; row += extent.chunk) {
      const BackwardStep<T> step(b, kernels, extent, buffers, column, row);
      step.pack(step.needs_logits() && (chunks || !packed_for_logits), chunks || column == 0);
      packed_for_logits |= step.needs_logits();
      step.logit_gradients();
      step.multiply();
    }
    if constexpr (sizeof(T) == 4) {
      if (widened && b.grad_weight != nullptr) {
        narrow_all(buffers.grad_weight, columns * p.depth,
                   static_cast<BFloat16*>(b.grad_weight) + column * p.depth);
      }
    }
  }
  if constexpr (sizeof(T) == 4) {
    if (widened && b.grad_hidden != nullptr) narrow_all(buffers.grad_hidden, p.rows * p.depth, b.grad_hidden);
  }
}

template void run_backward(const Backward&, const TileKernels<float>&, void*);
template void run_backward(const Backward&, const TileKernels<double>&, void*);

}  // namespace earnest::logprob
