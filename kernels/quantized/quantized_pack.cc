// SPDX-License-Identifier: Apache-2.0
// Weights to codes and back. Compiled once, for all tiers: a checkpoint quantised on one machine has the
// bytes of one quantised on another.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/common/bfloat16.h"
#include "kernels/common/thread_pool.h"
#include "kernels/quantized/quantized_cpu.h"

namespace earnest::quantized {
namespace {

constexpr int64_t kRun = kPanel * 4;  // bytes of four inputs of a panel, or of its words
constexpr int64_t kGroupBytes = 5 * kRun;
constexpr int64_t kChunk = 256;  // inputs that are taken at one time
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void read(Type type, const void* source, int64_t first, int64_t count, float* out) {
  if (type == Type::kFloat32) {
    std::memcpy(out, static_cast<const char*>(source) + first * 4, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    BFloat16 value;
    std::memcpy(&value, static_cast<const char*>(source) + (first + i) * 2, sizeof value);
    out[i] = widen(value);
  }
}

bool all_finite(const float* w, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= std::abs(w[i]) <= std::numeric_limits<float>::max();
  return finite;
}

float rounded(float value) {
  BFloat16 narrowed;
  narrow(value, &narrowed);
  return widen(narrowed);
}

// ---- int8 ----

// One output: its scale and codes, at every 64th run of four bytes.
void pack_int8(Type type, const void* source, int64_t first, int64_t inputs, unsigned char* out) {
  float largest = 0, w[kChunk];
  bool finite = true;
  for (int64_t k = 0; k < inputs; k += kChunk) {
    const int64_t count = std::min(kChunk, inputs - k);
    read(type, source, first + k, count, w);
    finite = finite && all_finite(w, count);
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(w[i]));
  }
  const float scale = finite ? largest / 127 : kNaN;
  std::memcpy(out, &scale, sizeof scale);
  float inverse = finite && scale > 0 ? 127 / largest : 0;
  if (!std::isfinite(inverse)) inverse = 0;  // numbers near the smallest there are count as zero
  for (int64_t k = 0; k < inputs; k += kChunk) {
    const int64_t count = std::min(kChunk, inputs - k);
    read(type, source, first + k, count, w);
    unsigned char* codes = out + (1 + k / 4) * kRun;
    for (int64_t i = 0; i < count; ++i) {
      const float value = finite ? w[i] * inverse : 0;
      const int code = static_cast<int>(value + (value < 0 ? -0.5f : 0.5f));
      codes[i / 4 * kRun + i % 4] = static_cast<unsigned char>(code + 128);
    }
  }
}

// ---- int4 ----

struct Affine {
  float scale, minimum;
};

// Codes of w under (scale, minimum), and their squared error.
float encode(const float* w, const Affine& a, float* codes) {
  const float inverse = a.scale > 0 ? 1 / a.scale : 0;
  float error = 0;
  for (int64_t i = 0; i < kGroup; ++i) {
    const float value = std::min(std::max((w[i] - a.minimum) * inverse, 0.0f), 15.0f);
    codes[i] = static_cast<float>(static_cast<int>(value + 0.5f));
    const float off = w[i] - (codes[i] * a.scale + a.minimum);
    error += off * off;
  }
  return error;
}

// Least squares: the scale and minimum that these codes fit best, rounded as they are stored.
Affine fitted(const float* w, const float* codes, Affine otherwise) {
  float q = 0, qq = 0, x = 0, qx = 0;
  for (int64_t i = 0; i < kGroup; ++i) {
    q += codes[i];
    qq += codes[i] * codes[i];
    x += w[i];
    qx += codes[i] * w[i];
  }
  const float n = static_cast<float>(kGroup), determinant = n * qq - q * q;
  if (!(determinant > 0)) return otherwise;
  const float scale = rounded((n * qx - q * x) / determinant);
  if (!(scale > 0) || !std::isfinite(scale)) return otherwise;
  return {scale, rounded((x - scale * q) / n)};
}

// The best of some ranges, each improved by least squares. The first is the group's own.
Affine best_affine(const float* w, float* codes) {
  const auto [low, high] = std::minmax_element(w, w + kGroup);
  const float range = *high - *low;
  Affine best = {rounded(range / 15), rounded(*low)};
  if (!std::isfinite(range)) best.scale = 0;
  float least = encode(w, best, codes);
  if (!(range > 1e-30f) || !std::isfinite(range)) return best;
  constexpr float kLevels[] = {15.0f, 15.6f, 16.4f, 17.4f, 18.6f};
  for (const float levels : kLevels) {
    const float scale = range / levels;
    Affine tried = {scale, *low + (range - 15 * scale) / 2};
    float found[kGroup];
    encode(w, tried, found);
    tried = fitted(w, found, best);
    const float error = encode(w, tried, found);
    if (error >= least) continue;
    least = error;
    best = tried;
    std::copy(found, found + kGroup, codes);
  }
  return best;
}

uint32_t bits_of(const Affine& a) {
  BFloat16 scale, minimum;
  narrow(a.scale, &scale);
  narrow(a.minimum, &minimum);
  return scale.bits | static_cast<uint32_t>(minimum.bits) << 16;
}

// One output of one group; `at` is where the output's first word lies.
void pack_int4(const float* w, int64_t count, unsigned char* at) {
  float group[kGroup] = {}, codes[kGroup] = {};
  std::copy(w, w + count, group);
  std::fill(group + count, group + kGroup, w[count - 1]);  // of no weight: x is zero there
  const Affine affine = all_finite(group, kGroup) ? best_affine(group, codes) : Affine{kNaN, kNaN};
  const uint32_t both = bits_of(affine);
  std::memcpy(at, &both, sizeof both);
  for (int64_t i = 0; i < kGroup / 2; ++i) {
    const int64_t eight = i / 4 * 8 + i % 4;
    const int lower = static_cast<int>(codes[eight]), upper = static_cast<int>(codes[eight + 4]);
    at[(1 + i / 4) * kRun + i % 4] = static_cast<unsigned char>(lower | upper << 4);
  }
}

void pack_panel(const Shape& shape, Type type, const void* source, int64_t panel, unsigned char* out) {
  std::memset(out, 0, static_cast<size_t>(panel_bytes(shape)));
  const int64_t count = std::min(kPanel, shape.outputs - panel * kPanel);
  for (int64_t j = 0; j < count; ++j, out += 4) {
    const int64_t first = (panel * kPanel + j) * shape.inputs;
    if (shape.codes == Codes::kInt8) {
      pack_int8(type, source, first, shape.inputs, out);
      continue;
    }
    for (int64_t k = 0; k < shape.inputs; k += kGroup) {
      float w[kGroup];
      const int64_t here = std::min(kGroup, shape.inputs - k);
      read(type, source, first + k, here, w);
      pack_int4(w, here, out + k / kGroup * kGroupBytes);
    }
  }
}

// Inputs [first, first + count) of one output.
void unpack_part(const Shape& shape, const unsigned char* output, int64_t first, int64_t count, float* row) {
  float scale = 0;
  if (shape.codes == Codes::kInt8) std::memcpy(&scale, output, sizeof scale);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = first + i;
    if (shape.codes == Codes::kInt8) {
      row[i] = scale * static_cast<float>(output[(1 + k / 4) * kRun + k % 4] - 128);
      continue;
    }
    const unsigned char* group = output + k / kGroup * kGroupBytes;
    uint32_t both;
    std::memcpy(&both, group, sizeof both);
    const int64_t within = k % kGroup;
    const int byte = group[(1 + within / 8) * kRun + within % 4];
    const int code = within % 8 < 4 ? byte & 15 : byte >> 4;
    row[i] = widen(BFloat16{static_cast<uint16_t>(both)}) * static_cast<float>(code) +
             widen(BFloat16{static_cast<uint16_t>(both >> 16)});
  }
}

}  // namespace

void run_pack(const Shape& shape, Type type, const void* source, void* packed) {
  const int64_t bytes = panel_bytes(shape);
  parallel_for(panels(shape), [&](int64_t i) {
    pack_panel(shape, type, source, i, static_cast<unsigned char*>(packed) + i * bytes);
  });
}

void run_unpack(const Shape& shape, const void* packed, int64_t first, int64_t count, Type type, void* rows) {
  for (int64_t i = first; i < first + count; ++i) {
    const auto* output =
        static_cast<const unsigned char*>(packed) + i / kPanel * panel_bytes(shape) + i % kPanel * 4;
    for (int64_t k = 0; k < shape.inputs; k += kChunk) {
      const int64_t here = std::min(kChunk, shape.inputs - k), at = (i - first) * shape.inputs + k;
      float part[kChunk];
      unpack_part(shape, output, k, here, part);
      for (int64_t j = 0; j < here; ++j) {
        if (type == Type::kFloat32) static_cast<float*>(rows)[at + j] = part[j];
        if (type == Type::kBFloat16) narrow(part[j], static_cast<BFloat16*>(rows) + at + j);
      }
    }
  }
}

}  // namespace earnest::quantized
