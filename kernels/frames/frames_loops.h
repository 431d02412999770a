// SPDX-License-Identifier: Apache-2.0
// The loops, written once, plainly enough for the compiler to put them into vectors; each tier compiles them
// with its own instructions. Values pass through in pieces: conversions stand in loops of their own, and a
// piece at the end is filled up, so that every value goes through the same instructions wherever it stands.
#include <cmath>
#include <cstring>

#include "kernels/frames/frames_tier.h"

namespace earnest::frames::EARNEST_TIER {
namespace {

constexpr int64_t kPiece = 128;
constexpr int64_t kLanes = 16;  // partial sums; kPiece is a multiple

template <typename From, typename To>
void convert(const From* from, To* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) narrow(widen(from[j]), to + j);
}

// A piece of a row, filled up with `fill`.
template <typename Stored, typename T>
void load(const Stored* from, int64_t count, T fill, T* to) {
  if (count == kPiece) {
    convert(from, to, kPiece);
    return;
  }
  convert(from, to, count);
  for (int64_t j = count; j < kPiece; ++j) to[j] = fill;
}

// Runs body(first, count) over [0, width) in pieces.
template <typename Body>
void in_pieces(int64_t width, const Body& body) {
  for (int64_t first = 0; first < width; first += kPiece) {
    body(first, width - first < kPiece ? width - first : kPiece);
  }
}

// Adds the values of a piece to the partial sums.
template <typename T>
void accumulate(const T* values, T* lanes) {
  for (int64_t j = 0; j < kPiece; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[j + lane];
  }
}

template <typename T>
T joined(T* lanes) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <typename Stored>
void layer_norm_rows(const LayerNorm<Stored>& job, int64_t begin, int64_t end) {
  using T = Arithmetic<Stored>;
  alignas(64) T values[kPiece], weight[kPiece], bias[kPiece];
  const T width = static_cast<T>(job.width);
  for (int64_t i = begin; i < end; ++i) {
    const Stored* x = job.x + i * job.width;
    alignas(64) T sums[kLanes] = {}, squares[kLanes] = {};
    in_pieces(job.width, [&](int64_t first, int64_t count) {
      load(x + first, count, T(0), values);
      accumulate(values, sums);
    });
    const T mean = joined(sums) / width;
    in_pieces(job.width, [&](int64_t first, int64_t count) {
      load(x + first, count, mean, values);
      for (int64_t j = 0; j < kPiece; ++j) values[j] = (values[j] - mean) * (values[j] - mean);
      accumulate(values, squares);
    });
    const T inverse = T(1) / std::sqrt(joined(squares) / width + static_cast<T>(job.eps));
    job.mean[i] = mean;
    job.inverse[i] = inverse;
    in_pieces(job.width, [&](int64_t first, int64_t count) {
      load(x + first, count, mean, values);
      load(job.weight + first, count, T(0), weight);
      load(job.bias + first, count, T(0), bias);
      for (int64_t j = 0; j < kPiece; ++j) values[j] = (values[j] - mean) * inverse * weight[j] + bias[j];
      convert(values, job.y + i * job.width + first, count);
    });
  }
}

template <typename Stored>
void layer_norm_backward_rows(const LayerNorm<Stored>& job, int64_t begin, int64_t end,
                              Arithmetic<Stored>* grad_weight, Arithmetic<Stored>* grad_bias) {
  using T = Arithmetic<Stored>;
  alignas(64) T normed[kPiece], grad[kPiece], scaled[kPiece], product[kPiece];
  const T width = static_cast<T>(job.width);
  for (int64_t i = begin; i < end; ++i) {
    const Stored *x = job.x + i * job.width, *grad_y = job.grad_y + i * job.width;
    const T mean = job.mean[i], inverse = job.inverse[i];
    const auto read = [&](int64_t first, int64_t count) {
      load(x + first, count, mean, normed);
      load(grad_y + first, count, T(0), grad);
      load(job.weight + first, count, T(0), scaled);
      for (int64_t j = 0; j < kPiece; ++j) {
        normed[j] = (normed[j] - mean) * inverse;
        scaled[j] *= grad[j];
      }
    };
    alignas(64) T sums[kLanes] = {}, products[kLanes] = {};
    in_pieces(job.width, [&](int64_t first, int64_t count) {
      read(first, count);
      for (int64_t j = 0; j < kPiece; ++j) product[j] = scaled[j] * normed[j];
      accumulate(scaled, sums);
      accumulate(product, products);
    });
    const T average = joined(sums) / width, along = joined(products) / width;
    in_pieces(job.width, [&](int64_t first, int64_t count) {
      read(first, count);
      for (int64_t j = 0; j < kPiece; ++j) product[j] = inverse * (scaled[j] - average - normed[j] * along);
      convert(product, job.grad_x + i * job.width + first, count);
      for (int64_t j = 0; j < count; ++j) {
        grad_weight[first + j] += grad[j] * normed[j];
        grad_bias[first + j] += grad[j];
      }
    });
  }
}

// exp(x) for x <= 0: 2^n p(r) with x = n ln 2 + r, |r| <= ln(2) / 2, and p the Taylor polynomial of degree 7,
// whose remainder there is 6e-9 of the value. The value at -87 below that; a NaN stays one.
inline float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits - 0x4b400000 + 127) << 23);
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// Phi(x), and x phi(x).
template <typename T>
struct Normal {
  T below, slope;
};

// Phi(-a) = exp(-a^2 / 2) R(a), a >= 0, and R(a) is a polynomial in z = a / (a + 4) from 0.5 on: fitted to
// 1.3e-8 of the value for a up to 13.5 (least squares on Chebyshev points, reweighted towards the largest
// error). Beyond kFar Phi(-a) is no longer a float.
inline Normal<float> normal(float x) {
  constexpr float kFar = 13.25f;
  const float a = x < 0 ? -x : x;
  const float z = 0.25f * a / (1.0f + 0.25f * a);
  float p = -0.03469382567844889f;
  p = p * z + 0.11211693082924847f;
  p = p * z - 0.05201692243661754f;
  p = p * z - 0.2061483549336608f;
  p = p * z + 0.10800935699756424f;
  p = p * z + 0.8705418430797541f;
  p = p * z - 2.106272715888039f;
  p = p * z + 2.404208242001605f;
  p = p * z - 1.5957684640867649f;
  p = p * z + 0.5f;
  const float e = exponential(-0.5f * a * a);
  const float tail = a < kFar ? e * p : 0.0f;
  const float slope = a < kFar ? x * (e * 0.398942280f) : 0.0f;
  return {x < 0 ? tail : 1.0f - tail, slope};
}
inline Normal<double> normal(double x) {
  const double density = 0.3989422804014327 * std::exp(-0.5 * x * x);
  return {0.5 * std::erfc(-x * 0.7071067811865476), density > 0 ? x * density : 0.0};
}

template <typename Stored>
void gelu_values(const Stored* x, Stored* y, int64_t count) {
  using T = Arithmetic<Stored>;
  alignas(64) T values[kPiece];
  in_pieces(count, [&](int64_t first, int64_t size) {
    load(x + first, size, T(0), values);
    for (int64_t j = 0; j < kPiece; ++j) values[j] *= normal(values[j]).below;
    convert(values, y + first, size);
  });
}

template <typename Stored>
void gelu_backward_values(const Stored* x, const Stored* grad_y, Stored* grad_x, int64_t count) {
  using T = Arithmetic<Stored>;
  alignas(64) T values[kPiece], grad[kPiece];
  in_pieces(count, [&](int64_t first, int64_t size) {
    load(x + first, size, T(0), values);
    load(grad_y + first, size, T(0), grad);
    for (int64_t j = 0; j < kPiece; ++j) {
      const Normal<T> at = normal(values[j]);
      values[j] = grad[j] * (at.below + at.slope);
    }
    convert(values, grad_x + first, size);
  });
}

// Single roundings of exact sums: no order of instructions can change a bit here.
template <typename Stored>
void relu_values(const Stored* x, Stored* y, int64_t count) {
  using T = Arithmetic<Stored>;
  for (int64_t j = 0; j < count; ++j) narrow(widen(x[j]) < T(0) ? T(0) : widen(x[j]), y + j);
}

template <typename Stored>
void add_values(const Stored* x, const Stored* y, Stored* sum, int64_t count) {
  for (int64_t j = 0; j < count; ++j) narrow(widen(x[j]) + widen(y[j]), sum + j);
}

template <typename Stored>
void halve_values(Stored* y, int64_t count) {
  using T = Arithmetic<Stored>;
  for (int64_t j = 0; j < count; ++j) narrow(widen(y[j]) * T(0.5), y + j);
}

}  // namespace

template <typename Stored>
TierKernels<Stored> kernels() {
  return {layer_norm_rows<Stored>, layer_norm_backward_rows<Stored>,
          gelu_values<Stored>,     gelu_backward_values<Stored>,
          relu_values<Stored>,     add_values<Stored>,
          halve_values<Stored>};
}
template TierKernels<float> kernels();
template TierKernels<double> kernels();
template TierKernels<BFloat16> kernels();

}  // namespace earnest::frames::EARNEST_TIER
