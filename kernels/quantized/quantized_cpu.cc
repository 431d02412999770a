// SPDX-License-Identifier: Apache-2.0
// A task owns a rectangle of the output and walks over all of the depth for it, so neither threads nor batch
// mates change a bit. Some panels at a time stay in the caches while all rows of the task pass by.
#include "kernels/quantized/quantized_cpu.h"

#include <algorithm>

#include "kernels/common/lanes.h"

namespace earnest::quantized {
namespace {

constexpr int64_t kTaskRows = 96;
constexpr size_t kAlignment = 64;
constexpr int64_t kMostAhead = int64_t{256} << 10;  // a part of the second cache

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t cut(int64_t part, int64_t parts, int64_t whole) { return part * whole / parts; }
size_t element_size(Type type) { return type == Type::kFloat32 ? 4 : 2; }

// Bytes between rows of x. Exact ones are no power of two; with one plane they are about twice the inputs,
// which may be.
int64_t left_stride(const Product& p) {
  return blocks_of(p.inputs, planes_of(p)) * block_bytes(planes_of(p));
}

// Where the panels of all parts lie, one part after another.
class Columns {
 public:
  explicit Columns(const Product& p) : p_(p) {
    for (int64_t i = 0; i < p.count; ++i) {
      panels_ += panels({p.codes, p.parts[i].outputs, p.inputs});
      outputs_ += p.parts[i].outputs;
    }
  }
  int64_t panel_count() const { return panels_; }
  int64_t outputs() const { return outputs_; }

  // Fills in panels [first, first + count) of a tile whose first row is `row` of the output.
  void fill(int64_t first, int64_t count, int64_t row, Tile* tile) const {
    int64_t part = 0, columns_before = 0;
    const auto panels_here = [&] { return panels({p_.codes, p_.parts[part].outputs, p_.inputs}); };
    for (; first >= panels_here(); ++part) {
      first -= panels_here();
      columns_before += p_.parts[part].outputs;
    }
    const size_t size = element_size(p_.type);
    for (int64_t j = 0; j < count; ++j, ++first) {
      if (first == panels_here()) {
        first = 0;
        columns_before += p_.parts[part++].outputs;
      }
      const Part& from = p_.parts[part];
      const int64_t column = first * kPanel;
      tile->panels[j] =
          static_cast<const char*>(from.packed) + first * panel_bytes({p_.codes, from.outputs, p_.inputs});
      tile->counts[j] = std::min(kPanel, from.outputs - column);
      tile->biases[j] = from.bias == nullptr
                            ? nullptr
                            : static_cast<const char*>(from.bias) + static_cast<size_t>(column) * size;
      tile->outputs[j] = static_cast<char*>(p_.output) +
                         static_cast<size_t>(row * outputs_ + columns_before + column) * size;
    }
  }

 private:
  const Product& p_;
  int64_t panels_ = 0, outputs_ = 0;
};

struct Grid {
  int64_t row_tasks, panel_tasks, lanes;
};

Grid grid_of(const Product& p, int64_t panel_count, int64_t row_tile) {
  // Under some 5 microseconds of reading or arithmetic another thread would come too late.
  const double bytes =
      static_cast<double>(panel_count) * static_cast<double>(panel_bytes({p.codes, kPanel, p.inputs}));
  const double work = bytes * static_cast<double>(std::max<int64_t>(1, ceil_div(p.rows, row_tile)));
  Grid grid;
  grid.lanes = work < 96.0 * 1024 ? 1 : p.threads;
  const int64_t wanted = grid.lanes == 1 ? 1 : 4 * grid.lanes;
  grid.row_tasks = ceil_div(p.rows, kTaskRows);
  grid.panel_tasks = std::min(ceil_div(wanted, grid.row_tasks), ceil_div(panel_count, 4));
  grid.lanes = std::min(grid.lanes, grid.row_tasks * grid.panel_tasks);
  return grid;
}

void run_rectangle(const Product& p, const Kernels& k, const Columns& columns, const char* left,
                   int64_t first_row, int64_t rows, int64_t first_panel, int64_t panel_count) {
  Tile tile;
  tile.left_stride = left_stride(p);
  tile.inputs = p.inputs;
  tile.output_stride = columns.outputs();
  const int64_t most = k.panels_of_rows[std::min(rows, k.row_tile) - 1];
  tile.ahead = std::min(most * panel_bytes({p.codes, kPanel, p.inputs}), kMostAhead);
  for (int64_t panel = 0; panel < panel_count; panel += most) {
    const int64_t count = std::min(most, panel_count - panel);
    for (int64_t row = 0; row < rows; row += k.row_tile) {
      columns.fill(first_panel + panel, count, first_row + row, &tile);
      tile.left = left + (first_row + row) * tile.left_stride;
      k.multiply(tile, std::min(k.row_tile, rows - row), count);
    }
  }
}

void quantise_rows(const Product& p, const Kernels& k, char* left) {
  const int64_t stride = left_stride(p), size = static_cast<int64_t>(element_size(p.type));
  const auto quantise = [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) {
      k.quantise(static_cast<const char*>(p.left) + row * p.inputs * size, p.inputs, left + row * stride);
    }
  };
  const bool small = static_cast<double>(p.rows) * static_cast<double>(p.inputs) < 65536 || p.threads == 1;
  if (small) return quantise(0, p.rows);
  const int64_t tasks = std::min<int64_t>(p.rows, 4 * p.threads);
  run_in_lanes(tasks, p.threads,
               [&](int64_t i, int64_t) { quantise(cut(i, tasks, p.rows), cut(i + 1, tasks, p.rows)); });
}

}  // namespace

int planes_of(const Product& p) {
  return p.activations == Activations::kInt8 ? 1 : p.type == Type::kBFloat16 ? 2 : 3;
}

size_t product_workspace(const Product& p) {
  return kAlignment + static_cast<size_t>(p.rows) * static_cast<size_t>(left_stride(p));
}

void run_product(const Product& p, const Kernels& k, void* workspace) {
  char* left = static_cast<char*>(workspace) +
               (kAlignment - reinterpret_cast<uintptr_t>(workspace) % kAlignment) % kAlignment;
  quantise_rows(p, k, left);
  const Columns columns(p);
  const Grid grid = grid_of(p, columns.panel_count(), k.row_tile);
  run_in_lanes(grid.row_tasks * grid.panel_tasks, grid.lanes, [&](int64_t i, int64_t) {
    const int64_t row = i % grid.row_tasks, panel = i / grid.row_tasks;
    const int64_t groups = ceil_div(columns.panel_count(), 4), tiles = ceil_div(p.rows, k.row_tile);
    const int64_t first_row = cut(row, grid.row_tasks, tiles) * k.row_tile;
    const int64_t end_row = std::min(cut(row + 1, grid.row_tasks, tiles) * k.row_tile, p.rows);
    const int64_t first_panel = 4 * cut(panel, grid.panel_tasks, groups);
    const int64_t end = std::min(4 * cut(panel + 1, grid.panel_tasks, groups), columns.panel_count());
    run_rectangle(p, k, columns, left, first_row, end_row - first_row, first_panel, end - first_panel);
  });
}

}  // namespace earnest::quantized
