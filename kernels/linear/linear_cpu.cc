// SPDX-License-Identifier: Apache-2.0
// A task owns a rectangle of the output and walks over all of the depth for it, block by block in order, so
// neither threads nor batch mates change a bit. Its share of one block of the packed matrix passes by tiles
// of the left side that stay in the first cache.
#include "kernels/linear/linear_cpu.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/common/lanes.h"

namespace earnest::linear {
namespace {

// A rectangle: of rows a multiple of every row_tile; of panels so many that the left side is moved into tiles
// as seldom as can be. A block of their depth need not stay in the second cache: it is fetched ahead.
constexpr int64_t kTaskRows = 48;
constexpr int64_t kTaskPanels = 64;
constexpr int64_t kSumsPad = 16;  // keeps the rows of sums out of each other's cache sets
constexpr size_t kAlignment = 64;
constexpr size_t kMostLeftBytes = 12 * (kMostSteps + 16) * 8;  // of any tier

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

size_t sum_size(Type type) { return type == Type::kFloat64 ? 8 : 4; }
int64_t depth_per_step(Type type) { return type == Type::kBFloat16 ? 2 : 1; }
size_t step_size(Type type) { return element_size(type) * static_cast<size_t>(depth_per_step(type)); }

char* aligned(void* workspace) {
  return static_cast<char*>(workspace) +
         (kAlignment - reinterpret_cast<uintptr_t>(workspace) % kAlignment) % kAlignment;
}
const char* at(const void* base, int64_t elements, size_t size) {
  return static_cast<const char*>(base) + static_cast<size_t>(elements) * size;
}
char* at(void* base, int64_t elements, size_t size) {
  return static_cast<char*>(base) + static_cast<size_t>(elements) * size;
}

// Where the parts of a packed matrix lie: [block of depth][panel][step][column], after the header.
class Packing {
 public:
  Packing(Type type, int64_t columns, int64_t depth)
      : type_(type), depth_(depth), panels_(ceil_div(columns, kPanel)) {
    // Blocks of equal size, whole steps each.
    const int64_t most = kMostSteps * depth_per_step(type);
    block_ = round_up(ceil_div(depth, ceil_div(depth, most)), 2);
  }
  int64_t panels() const { return panels_; }
  int64_t blocks() const { return ceil_div(depth_, block_); }
  int64_t first(int64_t block) const { return block * block_; }
  int64_t depth(int64_t block) const { return std::min(block_, depth_ - first(block)); }
  int64_t steps(int64_t block) const { return ceil_div(depth(block), depth_per_step(type_)); }
  size_t offset(int64_t block, int64_t panel) const {
    const int64_t steps_before = first(block) / depth_per_step(type_) * panels_ + panel * steps(block);
    return sizeof(PackedHeader) + static_cast<size_t>(steps_before * kPanel) * step_size(type_);
  }
  size_t bytes() const {
    const int64_t steps = ceil_div(depth_, depth_per_step(type_));
    return sizeof(PackedHeader) + static_cast<size_t>(steps * panels_ * kPanel) * step_size(type_);
  }

 private:
  Type type_;
  int64_t depth_, panels_, block_;
};

// A product whose left side may be transposed, as it is for the weight's gradient.
struct Walk {
  Type type;
  int64_t rows, columns, depth;
  const void* left;
  int64_t left_stride;
  bool left_transposed;
  const void* packed;
  const void* bias;
  void* output;
  int64_t threads;
};

// How the output is cut: row_tasks times panel_tasks rectangles of whole tiles and panels, none larger than
// another by more than one of them, so that no thread is left with a last large one.
struct Grid {
  int64_t row_tasks, panel_tasks, lanes;
};
int64_t cut(int64_t part, int64_t parts, int64_t whole) { return part * whole / parts; }

Grid grid_of(const Walk& w, const Packing& packing, int64_t row_tile) {
  // Under some 15 microseconds of arithmetic or reading, another thread would come too late.
  const double flops =
      2.0 * static_cast<double>(w.rows) * static_cast<double>(w.columns) * static_cast<double>(w.depth);
  const bool small = flops < 1.5e6 && packing.bytes() < (size_t{256} << 10);
  Grid grid;
  grid.lanes = small ? 1 : w.threads;
  const int64_t wanted = grid.lanes == 1 ? 1 : 4 * grid.lanes;
  const int64_t most_panels = std::min(kTaskPanels, packing.panels());
  int64_t row_tasks = ceil_div(w.rows, kTaskRows), panel_tasks = ceil_div(packing.panels(), most_panels);
  // Cut rows first: it costs no second copy of the left side.
  row_tasks = std::max(row_tasks, std::min(ceil_div(wanted, panel_tasks), ceil_div(w.rows, 2 * row_tile)));
  panel_tasks = std::max(panel_tasks, std::min(ceil_div(wanted, row_tasks), ceil_div(packing.panels(), 2)));
  // As many for each lane: of 11 rectangles, two lanes would do 6 and 5.
  row_tasks = round_up(row_tasks, grid.lanes / std::gcd(grid.lanes, panel_tasks));
  grid.row_tasks = std::min(row_tasks, ceil_div(w.rows, row_tile));
  grid.panel_tasks = panel_tasks;
  grid.lanes = std::min(grid.lanes, grid.row_tasks * grid.panel_tasks);
  return grid;
}

struct Rectangle {
  int64_t first_row, rows, first_panel, panels;
};

void run_rectangle(const Walk& w, const Packing& packing, const TileKernels& k, const Rectangle& r,
                   char* workspace) {
  char* tile = workspace;
  char* sums = workspace + kMostLeftBytes;
  const size_t size = element_size(w.type);
  const int64_t sums_stride = r.panels * kPanel + kSumsPad, first_column = r.first_panel * kPanel;
  const int64_t columns = std::min(r.panels * kPanel, w.columns - first_column);
  for (int64_t block = 0; block < packing.blocks(); ++block) {
    const int64_t depth = packing.depth(block), steps = packing.steps(block);
    for (int64_t row = 0; row < r.rows; row += k.row_tile) {
      const int64_t rows = std::min(k.row_tile, r.rows - row), first_row = r.first_row + row;
      const int64_t corner = w.left_transposed ? packing.first(block) * w.left_stride + first_row
                                               : first_row * w.left_stride + packing.first(block);
      k.load_left(at(w.left, corner, size), w.left_stride, w.left_transposed, rows, depth, tile);
      char* row_sums = at(sums, row * sums_stride, sum_size(w.type));
      k.multiply(tile, w.left_transposed, rows, steps,
                 static_cast<const char*>(w.packed) + packing.offset(block, r.first_panel), steps, r.panels,
                 row_sums, sums_stride, block > 0);
      if (block + 1 < packing.blocks()) continue;
      k.finish(row_sums, sums_stride, rows, columns,
               w.bias == nullptr ? nullptr : at(w.bias, first_column, size),
               at(w.output, first_row * w.columns + first_column, size), w.columns);
    }
  }
}

size_t lane_workspace(Type type) {
  return kMostLeftBytes + static_cast<size_t>(kTaskRows * (kTaskPanels * kPanel + kSumsPad)) * sum_size(type);
}

void run_walk(const Walk& w, const TileKernels& kernels, char* workspace) {
  if (w.rows == 0) return;
  const Packing packing(w.type, w.columns, w.depth);
  const Grid grid = grid_of(w, packing, kernels.row_tile);
  const int64_t tiles = ceil_div(w.rows, kernels.row_tile);
  run_in_lanes(grid.row_tasks * grid.panel_tasks, grid.lanes, [&](int64_t task, int64_t lane) {
    const int64_t row = task % grid.row_tasks, panel = task / grid.row_tasks;
    Rectangle r;
    r.first_row = cut(row, grid.row_tasks, tiles) * kernels.row_tile;
    r.rows = std::min(cut(row + 1, grid.row_tasks, tiles) * kernels.row_tile, w.rows) - r.first_row;
    r.first_panel = cut(panel, grid.panel_tasks, packing.panels());
    r.panels = cut(panel + 1, grid.panel_tasks, packing.panels()) - r.first_panel;
    run_rectangle(w, packing, kernels, r, workspace + static_cast<size_t>(lane) * lane_workspace(w.type));
  });
}

void sum_rows(const WeightGradient& g, const TileKernels& kernels, char* sums) {
  const int64_t block = kMostSteps, columns = 256;
  const bool small = static_cast<double>(g.rows) * static_cast<double>(g.outputs) < 2e5;
  const size_t size = element_size(g.type), sum = sum_size(g.type);
  run_in_lanes(ceil_div(g.outputs, columns), small ? 1 : g.threads, [&](int64_t task, int64_t) {
    const int64_t first = task * columns, count = std::min(columns, g.outputs - first);
    char* to = at(sums, first, sum);
    for (int64_t row = 0; row < g.rows; row += block) {
      kernels.sum_rows(at(g.grad_output, row * g.outputs + first, size), g.outputs,
                       std::min(block, g.rows - row), count, to, row > 0);
    }
    kernels.finish(to, count, 1, count, nullptr, at(g.grad_bias, first, size), count);
  });
}

}  // namespace

size_t element_size(Type type) { return type == Type::kFloat64 ? 8 : type == Type::kFloat32 ? 4 : 2; }

size_t packed_bytes(Type type, int64_t columns, int64_t depth) {
  return Packing(type, columns, depth).bytes();
}

void run_pack(const Pack& p, const TileKernels& kernels, void* packed) {
  const Packing packing(p.type, p.columns, p.depth);
  const PackedHeader header = {PackedHeader::kMagic, static_cast<int64_t>(p.type), p.columns, p.depth};
  std::memcpy(packed, &header, sizeof header);
  const int64_t stride = p.transposed ? p.columns : p.depth;
  const bool small = packing.bytes() < (size_t{256} << 10);
  run_in_lanes(packing.blocks() * packing.panels(), small ? 1 : num_threads(), [&](int64_t task, int64_t) {
    const int64_t block = task / packing.panels(), panel = task % packing.panels();
    const int64_t column = panel * kPanel, k = packing.first(block);
    const int64_t corner = p.transposed ? k * stride + column : column * stride + k;
    kernels.pack_panel(at(p.source, corner, element_size(p.type)), stride, p.transposed,
                       std::min(kPanel, p.columns - column), packing.depth(block),
                       static_cast<char*>(packed) + packing.offset(block, panel));
  });
}

size_t product_workspace(Type type, int threads) {
  return kAlignment + static_cast<size_t>(threads) * lane_workspace(type);
}

void run_product(const Product& p, const TileKernels& kernels, void* workspace) {
  run_walk(
      {p.type, p.rows, p.columns, p.depth, p.left, p.depth, false, p.packed, p.bias, p.output, p.threads},
      kernels, aligned(workspace));
}

// grad_weight = grad_output^T input: the left side is turned, and the input is packed as the right side.
void run_weight_gradient(const WeightGradient& g, const TileKernels& kernels, void* workspace) {
  char* lanes = aligned(workspace);
  if (g.rows == 0) {
    if (g.grad_weight != nullptr)
      std::memset(g.grad_weight, 0, static_cast<size_t>(g.outputs * g.inputs) * element_size(g.type));
    if (g.grad_bias != nullptr)
      std::memset(g.grad_bias, 0, static_cast<size_t>(g.outputs) * element_size(g.type));
    return;
  }
  char* scratch = lanes + static_cast<size_t>(g.threads) * lane_workspace(g.type);
  if (g.grad_bias != nullptr) sum_rows(g, kernels, scratch);
  if (g.grad_weight == nullptr) return;
  run_pack({g.type, g.inputs, g.rows, true, g.input, g.device}, kernels, scratch);
  run_walk({g.type, g.outputs, g.inputs, g.rows, g.grad_output, g.outputs, true, scratch, nullptr,
            g.grad_weight, g.threads},
           kernels, lanes);
}

}  // namespace earnest::linear
