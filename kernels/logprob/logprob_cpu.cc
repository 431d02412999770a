// SPDX-License-Identifier: Apache-2.0
// Outer loop: slabs of columns; inner loop: chunks of rows. Within one (slab, chunk), tasks own whole
// outputs, and what a task computes does not depend on how the rows were cut, so neither threads nor batch
// mates change a bit.
#include "kernels/logprob/logprob_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/thread_pool.h"
#include "kernels/logprob/bfloat16.h"

namespace earnest::logprob {
namespace {

constexpr size_t kAlignment = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
size_t size_of_row(Type type) { return type == Type::kFloat64 ? sizeof(double) : sizeof(float); }
size_t size_of_stored(Type type) { return type == Type::kBFloat16 ? 2 : size_of_row(type); }

// Hands out offsets of a workspace, each on a 64-byte boundary.
class Offsets {
 public:
  size_t take(int64_t elements, size_t size) {
    const size_t offset = bytes_;
    bytes_ += (static_cast<size_t>(elements) * size + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  size_t total() const { return bytes_ + kAlignment; }  // the caller's pointer may lie anywhere

 private:
  size_t bytes_ = 0;
};

char* aligned(void* workspace) {
  return static_cast<char*>(workspace) +
         (kAlignment - reinterpret_cast<uintptr_t>(workspace) % kAlignment) % kAlignment;
}

int64_t chunk_rows(const Problem& p) { return std::min(kChunk, round_up(p.rows, kRowBlock)); }
int64_t slab_columns(const Problem& p) { return std::min(kSlab, round_up(p.vocabulary, kTile)); }

// What a row has gathered of its logits so far: the same three numbers as TileSums, in double.
struct RowState {
  double max = -std::numeric_limits<double>::infinity(), sum = 0, product = 0;

  template <typename T>
  void add(const TileSums<T>& tile) {
    if (sum == 0) {
      *this = {tile.max, tile.sum, tile.product};
      return;
    }
    // product holds sum of (z - max) e^(z - max): moving the maximum by d adds d times the sum.
    if (tile.max > max) {
      const double down = max - tile.max, factor = std::exp(down);
      product = factor == 0 ? 0 : factor * (product + down * sum);
      sum *= factor;
      max = tile.max;
    }
    const double down = tile.max - max, factor = down == 0 ? 1 : std::exp(down);
    product += factor == 0 ? 0 : factor * (tile.product + down * tile.sum);
    sum += factor * tile.sum;
  }
};

// Packed operands of one slab of columns and one chunk of rows.
template <typename T>
class Packing {
 public:
  Packing(const Problem& problem, const TileKernels<T>& kernels)
      : p_(problem),
        k_(kernels),
        bfloat16_(problem.type == Type::kBFloat16),
        stored_(size_of_stored(problem.type)) {}

  // Groups of rows, depth-major: the left side of the logits' product.
  void hidden(int64_t first, int64_t rows, T* out) const {
    for (int64_t row = 0; row < rows; row += k_.row_group) {
      k_.pack_transposed(at(p_.hidden, first + row, 0), bfloat16_, p_.depth,
                         std::min(k_.row_group, rows - row), k_.row_group, p_.depth, out + row * p_.depth);
    }
  }
  // Panels of columns, depth-major: the right side of the logits' product.
  void weight(int64_t first, int64_t columns, T* out) const {
    for (int64_t column = 0; column < columns; column += k_.panel) {
      k_.pack_transposed(at(p_.weight, first + column, 0), bfloat16_, p_.depth,
                         std::min(k_.panel, columns - column), k_.panel, p_.depth, out + column * p_.depth);
    }
  }
  // One panel over the depth, of `count` rows of hidden or weight: the right side of the gradients' products.
  void rows(const void* source, int64_t first, int64_t count, int64_t panel, T* out) const {
    const int64_t column = panel * k_.panel;
    k_.pack_rows(at(source, first, column), bfloat16_, p_.depth, count, std::min(k_.panel, p_.depth - column),
                 out);
  }

 private:
  const void* at(const void* base, int64_t row, int64_t column) const {
    return static_cast<const char*>(base) + static_cast<size_t>(row * p_.depth + column) * stored_;
  }
  const Problem& p_;
  const TileKernels<T>& k_;
  const bool bfloat16_;
  const size_t stored_;
};

template <typename T>
LogitTile<T> logit_tile(const Problem& p, const T* hidden, const T* weight, int64_t first_row, int64_t rows,
                        int64_t first_column) {
  return {hidden,
          weight,
          p.depth,
          rows,
          std::min(kTile, p.vocabulary - first_column),
          first_column,
          p.targets + first_row,
          static_cast<T>(1 / p.temperature)};
}

template <typename T>
void finish_row(const Forward& f, int64_t row, const RowState& state, T target_logit) {
  const double log_sum = std::log(state.sum);
  static_cast<T*>(f.lse)[row] = static_cast<T>(state.max + log_sum);
  static_cast<T*>(f.logp)[row] = static_cast<T>(static_cast<double>(target_logit) - state.max - log_sum);
  static_cast<T*>(f.entropy)[row] = static_cast<T>(log_sum - state.product / state.sum);
}

// Converts sums to the stored type where it is narrower than the arithmetic.
void narrow_all(const float* from, int64_t count, void* to) {
  auto* out = static_cast<BFloat16*>(to);
  constexpr int64_t kBlock = 1 << 16;
  parallel_for(ceil_div(count, kBlock), [=](int64_t block) {
    const int64_t end = std::min(count, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) narrow(from[i], &out[i]);
  });
}

}  // namespace

ForwardLayout layout(const Forward& f) {
  const Problem& p = f.problem;
  const size_t size = size_of_row(p.type);
  const int64_t rows = chunk_rows(p), columns = slab_columns(p);
  Offsets offsets;
  ForwardLayout result;
  result.hidden = offsets.take(rows * p.depth, size);
  result.weight = offsets.take(columns * p.depth, size);
  result.sums = offsets.take(3 * rows * columns / kTile, size);
  result.target_logits = offsets.take(p.rows, size);
  result.states = offsets.take(p.rows, sizeof(RowState));
  result.bytes = offsets.total();
  return result;
}

BackwardLayout layout(const Backward& b) {
  const Problem& p = b.problem;
  const size_t size = size_of_row(p.type);
  const int64_t rows = chunk_rows(p), columns = slab_columns(p);
  const int64_t depth = round_up(p.depth, kTile);  // a multiple of every tier's panel
  const bool widened = p.type == Type::kBFloat16;  // gradients gather in float, also over slabs and chunks
  Offsets offsets;
  BackwardLayout result;
  result.hidden = offsets.take(rows * p.depth, size);
  result.hidden_rows = offsets.take(b.grad_weight ? rows * depth : 0, size);
  result.weight = offsets.take(columns * p.depth, size);
  result.weight_rows = offsets.take(b.grad_hidden ? columns * depth : 0, size);
  result.dz = offsets.take(rows * columns, size);
  result.grad_hidden = offsets.take(widened && b.grad_hidden ? p.rows * p.depth : 0, size);
  result.grad_weight = offsets.take(widened && b.grad_weight ? columns * p.depth : 0, size);
  result.bytes = offsets.total();
  return result;
}

template <typename T>
void run_forward(const Forward& f, const TileKernels<T>& kernels, void* workspace) {
  const Problem& p = f.problem;
  const ForwardLayout offsets = layout(f);
  char* base = aligned(workspace);
  T* hidden = reinterpret_cast<T*>(base + offsets.hidden);
  T* weight = reinterpret_cast<T*>(base + offsets.weight);
  auto* sums = reinterpret_cast<TileSums<T>*>(base + offsets.sums);
  T* target_logits = reinterpret_cast<T*>(base + offsets.target_logits);
  auto* states = reinterpret_cast<RowState*>(base + offsets.states);
  std::fill(states, states + p.rows, RowState{});
  const Packing<T> packing(p, kernels);
  const int64_t chunk = chunk_rows(p);

  for (int64_t column = 0; column < p.vocabulary; column += kSlab) {
    const int64_t columns = std::min(kSlab, p.vocabulary - column), tiles = ceil_div(columns, kTile);
    for (int64_t row = 0; row < p.rows; row += chunk) {
      const int64_t rows = std::min(chunk, p.rows - row), blocks = ceil_div(rows, kRowBlock);
      const bool pack_hidden = column == 0 || p.rows > chunk, pack_weight = row == 0;
      parallel_for(tiles + blocks, [&](int64_t task) {
        if (task < tiles) {
          const int64_t first = task * kTile;
          if (pack_weight)
            packing.weight(column + first, std::min(kTile, columns - first), weight + first * p.depth);
        } else if (pack_hidden) {
          const int64_t first = (task - tiles) * kRowBlock;
          packing.hidden(row + first, std::min(kRowBlock, rows - first), hidden + first * p.depth);
        }
      });
      parallel_for(tiles * blocks, [&](int64_t task) {
        const int64_t tile = task % tiles, first = task / tiles * kRowBlock;
        kernels.forward_tile(
            logit_tile<T>(p, hidden + first * p.depth, weight + tile * kTile * p.depth, row + first,
                          std::min(kRowBlock, rows - first), column + tile * kTile),
            sums + tile * chunk + first, target_logits + row + first);
      });
      const bool last = column + kSlab >= p.vocabulary;
      parallel_for(blocks, [&](int64_t block) {
        for (int64_t i = block * kRowBlock; i < std::min(rows, (block + 1) * kRowBlock); ++i) {
          for (int64_t tile = 0; tile < tiles; ++tile) states[row + i].add(sums[tile * chunk + i]);
          if (last) finish_row<T>(f, row + i, states[row + i], target_logits[row + i]);
        }
      });
    }
  }
}

namespace {

template <typename T>
struct BackwardBuffers {
  T *hidden, *hidden_rows, *weight, *weight_rows, *dz, *grad_hidden, *grad_weight;
};

// One (slab, chunk) of the backward pass.
template <typename T>
class BackwardStep {
 public:
  BackwardStep(const Backward& b, const TileKernels<T>& kernels, const BackwardBuffers<T>& buffers,
               int64_t column, int64_t row)
      : b_(b),
        p_(b.problem),
        k_(kernels),
        to_(buffers),
        column_(column),
        row_(row),
        columns_(std::min(kSlab, p_.vocabulary - column)),
        rows_(std::min(chunk_rows(p_), p_.rows - row)),
        tiles_(ceil_div(columns_, kTile)),
        blocks_(ceil_div(rows_, kRowBlock)),
        panels_(ceil_div(p_.depth, k_.panel)),
        tile_stride_(chunk_rows(p_)) {}

  void pack() const {
    const Packing<T> packing(p_, k_);
    const bool pack_hidden = column_ == 0 || p_.rows > tile_stride_, pack_weight = row_ == 0;
    const int64_t weight_panels = pack_weight && b_.grad_hidden ? panels_ : 0;
    const int64_t hidden_panels = pack_hidden && b_.grad_weight ? panels_ : 0;
    const int64_t tiles = pack_weight ? tiles_ : 0, blocks = pack_hidden ? blocks_ : 0;
    parallel_for(tiles + blocks + weight_panels + hidden_panels, [&](int64_t task) {
      if (task < tiles) {
        const int64_t first = task * kTile;
        packing.weight(column_ + first, std::min(kTile, columns_ - first), to_.weight + first * p_.depth);
      } else if ((task -= tiles) < blocks) {
        const int64_t first = task * kRowBlock;
        packing.hidden(row_ + first, std::min(kRowBlock, rows_ - first), to_.hidden + first * p_.depth);
      } else if ((task -= blocks) < weight_panels) {
        packing.rows(p_.weight, column_, columns_, task, to_.weight_rows + task * k_.panel * columns_);
      } else {
        task -= weight_panels;
        packing.rows(p_.hidden, row_, rows_, task, to_.hidden_rows + task * k_.panel * rows_);
      }
    });
  }

  void logit_gradients() const {
    parallel_for(tiles_ * blocks_, [&](int64_t task) {
      const int64_t tile = task % tiles_, first = task / tiles_ * kRowBlock;
      const auto rows_from = [&](const void* values) {
        return values == nullptr ? nullptr : static_cast<const T*>(values) + row_ + first;
      };
      k_.backward_tile(
          logit_tile<T>(p_, to_.hidden + first * p_.depth, to_.weight + tile * kTile * p_.depth, row_ + first,
                        std::min(kRowBlock, rows_ - first), column_ + tile * kTile),
          {rows_from(b_.lse), rows_from(b_.entropy), rows_from(b_.grad_logp), rows_from(b_.grad_entropy),
           rows_from(b_.grad_lse)},
          to_.dz + (tile * tile_stride_ + first) * kTile);
    });
  }

  // Both products read dz and write different outputs, so they share one round of tasks.
  void multiply() const {
    const int64_t hidden_tasks = b_.grad_hidden ? blocks_ : 0, weight_tasks = b_.grad_weight ? tiles_ * 2 : 0;
    parallel_for(hidden_tasks + weight_tasks, [&](int64_t task) {
      if (task < hidden_tasks) {
        const int64_t first = task * kRowBlock;
        k_.multiply_tiles({to_.dz + first * kTile, to_.weight_rows,
                           to_.grad_hidden + (row_ + first) * p_.depth, tile_stride_, columns_, p_.depth,
                           std::min(kRowBlock, rows_ - first), p_.depth, columns_, column_ > 0});
        return;
      }
      task -= hidden_tasks;
      const int64_t first = task * (kTile / 2), tile = task / 2;
      if (first >= columns_) return;
      k_.multiply_tile_transposed({to_.dz + tile * tile_stride_ * kTile + first % kTile, to_.hidden_rows,
                                   to_.grad_weight + first * p_.depth, 0, rows_, p_.depth,
                                   std::min(kTile / 2, columns_ - first), p_.depth, rows_, row_ > 0});
    });
  }

 private:
  const Backward& b_;
  const Problem& p_;
  const TileKernels<T>& k_;
  const BackwardBuffers<T>& to_;
  const int64_t column_, row_, columns_, rows_, tiles_, blocks_, panels_, tile_stride_;
};

}  // namespace

template <typename T>
void run_backward(const Backward& b, const TileKernels<T>& kernels, void* workspace) {
  const Problem& p = b.problem;
  const BackwardLayout offsets = layout(b);
  char* base = aligned(workspace);
  const auto at = [base](size_t offset) { return reinterpret_cast<T*>(base + offset); };
  const bool widened = p.type == Type::kBFloat16;
  BackwardBuffers<T> buffers = {at(offsets.hidden),
                                at(offsets.hidden_rows),
                                at(offsets.weight),
                                at(offsets.weight_rows),
                                at(offsets.dz),
                                widened ? at(offsets.grad_hidden) : static_cast<T*>(b.grad_hidden),
                                nullptr};
  if (p.rows == 0 && b.grad_weight != nullptr) {
    std::fill_n(static_cast<char*>(b.grad_weight),
                static_cast<size_t>(p.vocabulary * p.depth) * size_of_stored(p.type), 0);
  }
  if (p.rows == 0) return;
  for (int64_t column = 0; column < p.vocabulary; column += kSlab) {
    const int64_t columns = std::min(kSlab, p.vocabulary - column);
    if (b.grad_weight != nullptr) {
      buffers.grad_weight =
          widened ? at(offsets.grad_weight) : static_cast<T*>(b.grad_weight) + column * p.depth;
    }
    for (int64_t row = 0; row < p.rows; row += kChunk) {
      const BackwardStep<T> step(b, kernels, buffers, column, row);
      step.pack();
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

template void run_forward(const Forward&, const TileKernels<float>&, void*);
template void run_forward(const Forward&, const TileKernels<double>&, void*);
template void run_backward(const Backward&, const TileKernels<float>&, void*);
template void run_backward(const Backward&, const TileKernels<double>&, void*);

}  // namespace earnest::logprob
