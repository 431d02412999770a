// SPDX-License-Identifier: Apache-2.0
// What the CUDA back end's two paths to a product are given, and how it is cut: no bit of a result depends on
// that.
#pragma once

#include <cstdint>

#include "kernels/common/bfloat16.h"
#include "kernels/common/host_device.h"
#include "kernels/common/parts.h"
#include "kernels/common/status.h"
#include "kernels/quantized/quantized.h"

namespace earnest::quantized::gpu {

constexpr const char* kOp = "quantized";
constexpr int kPair = 2 * kPanel;  // outputs that a warp takes: two panels
constexpr int kTileRows = 128, kTileOutputs = 2 * kPair;

EARNEST_HOST_DEVICE constexpr int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

struct PartJob {
  const unsigned char* packed;
  const void* bias;
  int64_t outputs;
  int64_t first_output;  // in a row of the result
  int64_t first_block;   // of the launch
};

// x lies as bfloat16: as it is, or a float32 as the three that it is the sum of (planes).
struct Job {
  const BFloat16* left;  // [planes][rows][pitch]
  int64_t pitch, plane;  // numbers between two rows, two planes
  int planes;
  bool wide;     // left can be read 16 bytes at a time
  bool float32;  // output and biases; else bfloat16
  void* output;
  int64_t rows, inputs, outputs, panel_bytes;
  int count;
  PartJob parts[kMostParts];
};

// Gives each part its blocks of so many outputs; returns how many there are.
inline int64_t cut_into_blocks(Job* job, int outputs_of_block) {
  int64_t blocks = 0;
  for (int i = 0; i < job->count; ++i) {
    job->parts[i].first_block = blocks;
    blocks += blocks_of(job->parts[i].outputs, outputs_of_block);
  }
  return blocks;
}

// Few rows: 8 `halves` rows by a pair of panels to a block.
constexpr int few_halves(int64_t rows, int64_t shared_bytes) {
  constexpr int64_t kFor64 = 160 * 1024;
  return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 || shared_bytes < kFor64 ? 4 : 8;
}
// As in kernels/linear: codes are read once for up to 64 rows; up to 256, tiles must occupy half of the chip.
constexpr bool is_few(int64_t rows, int64_t outputs, int multiprocessors) {
  if (rows <= 64) return true;
  return rows <= 256 && 2 * blocks_of(rows, kTileRows) * blocks_of(outputs, kTileOutputs) < multiprocessors;
}

template <int kBits>  // of a code: 8, 4
Status run_tiles(Job job, void* stream);
template <int kBits>
Status run_few(Job job, int64_t shared_bytes, void* stream);

}  // namespace earnest::quantized::gpu
