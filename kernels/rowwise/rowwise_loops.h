// SPDX-License-Identifier: Apache-2.0
// The loops, written once, plainly enough for the compiler to put them into vectors; each tier compiles them
// with its own instructions. Sums go into kLanes partial sums that are joined in a fixed order, so that no
// vector width shows.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/rowwise/rowwise_tier.h"

namespace earnest::rowwise::EARNEST_TIER {
namespace {

constexpr int64_t kLanes = 16;

template <typename T>
T joined(T (&lanes)[kLanes]) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// sum_j term(j), j in [0, width)
template <typename T, typename Term>
T sum(int64_t width, const Term& term) {
  T lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(j + lane);
  }
  for (int64_t lane = 0; j < width; ++j, ++lane) lanes[lane] += term(j);
  return joined(lanes);
}

// exp(x): 2^n p(r) with x = n ln 2 + r, |r| <= ln(2) / 2, and p the Taylor polynomial of degree 7, whose
// remainder there is 6e-9 of the value. Infinity from 88.38 on, the value at -87 below that; a NaN stays one.
inline float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x < -87.0f ? -87.0f : x;
  x = x > 89.0f ? 89.0f : x;  // there n = 128, and the scale is infinity
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
inline double exponential(double x) { return std::exp(x); }

template <typename T>
T sigmoid(T x) {
  return T(1) / (T(1) + exponential(-x));
}

template <typename Stored>
const Stored* summed(const Stored* x, const Stored* added, Stored* sum, int64_t width) {
  for (int64_t j = 0; j < width; ++j) narrow(widen(x[j]) + widen(added[j]), sum + j);
  return sum;
}

template <typename Stored>
void rms_norm_rows(const RmsNorm<Stored>& job, int64_t begin, int64_t end) {
  using T = Arithmetic<Stored>;
  for (int64_t i = begin; i < end; ++i) {
    const Stored* x = job.x + i * job.width;
    Stored* y = job.y + i * job.width;
    if (job.added != nullptr) x = summed(x, job.added + i * job.width, job.sum + i * job.width, job.width);
    const T squares = sum<T>(job.width, [&](int64_t j) { return widen(x[j]) * widen(x[j]); });
    const T inverse = T(1) / std::sqrt(squares / static_cast<T>(job.width) + static_cast<T>(job.eps));
    job.inverse[i] = inverse;
    for (int64_t j = 0; j < job.width; ++j) narrow(widen(x[j]) * inverse * widen(job.weight[j]), y + j);
  }
}

template <typename Stored>
void rms_norm_backward_rows(const RmsNorm<Stored>& job, int64_t begin, int64_t end,
                            Arithmetic<Stored>* grad_weight) {
  using T = Arithmetic<Stored>;
  for (int64_t i = begin; i < end; ++i) {
    const Stored* x = job.x + i * job.width;
    const Stored* g = job.grad_y + i * job.width;
    Stored* grad_x = job.grad_x + i * job.width;
    const T inverse = job.inverse[i];
    const T along =
        sum<T>(job.width, [&](int64_t j) { return widen(g[j]) * widen(job.weight[j]) * widen(x[j]); });
    const T mean = along * inverse / static_cast<T>(job.width);
    for (int64_t j = 0; j < job.width; ++j) {
      const T n = widen(x[j]) * inverse;
      grad_weight[j] += widen(g[j]) * n;
      narrow(inverse * (widen(g[j]) * widen(job.weight[j]) - n * mean), grad_x + j);
    }
  }
}

// Turns `count` heads by the angles of their token; `direction` -1 turns them back.
template <typename From, typename To, typename T>
void turn(const From* from, To* to, const T* cosine, const T* sine, T direction, int64_t count, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t head = 0; head < count; ++head, from += dim, to += dim) {
    for (int64_t j = 0; j < half; ++j) {
      const T a = widen(from[j]), b = widen(from[j + half]);
      const T c = cosine[j], s = sine[j] * direction;
      narrow(a * c - b * s, to + j);
      narrow(b * c + a * s, to + j + half);
    }
  }
}

template <typename From, typename To>
void convert(const From* from, To* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) narrow(widen(from[j]), to + j);
}

template <typename Fused, typename Apart>
void rotary_rows(const Rotary<Fused, Apart>& job, int64_t begin, int64_t end) {
  using T = Arithmetic<Fused>;
  const int64_t wide = job.heads * job.dim, kv_wide = job.kv_heads * job.dim, half = job.dim / 2;
  for (int64_t i = begin; i < end; ++i) {
    const Fused* qkv = job.qkv + i * (wide + 2 * kv_wide);
    const T *cosine = job.cosine + i * half, *sine = job.sine + i * half;
    const int64_t slot = job.slots == nullptr ? i : job.slots[i];
    turn(qkv, job.q + i * wide, cosine, sine, T(1), job.heads, job.dim);
    turn(qkv + wide, job.k + slot * kv_wide, cosine, sine, T(1), job.kv_heads, job.dim);
    convert(qkv + wide + kv_wide, job.v + slot * kv_wide, kv_wide);
  }
}

template <typename Fused, typename Apart>
void rotary_backward_rows(const Rotary<Fused, Apart>& job, int64_t begin, int64_t end) {
  using T = Arithmetic<Fused>;
  const int64_t wide = job.heads * job.dim, kv_wide = job.kv_heads * job.dim, half = job.dim / 2;
  for (int64_t i = begin; i < end; ++i) {
    Fused* qkv = job.qkv + i * (wide + 2 * kv_wide);
    const T *cosine = job.cosine + i * half, *sine = job.sine + i * half;
    turn(job.q + i * wide, qkv, cosine, sine, T(-1), job.heads, job.dim);
    turn(job.k + i * kv_wide, qkv + wide, cosine, sine, T(-1), job.kv_heads, job.dim);
    convert(job.v + i * kv_wide, qkv + wide + kv_wide, kv_wide);
  }
}

// Runs body(first, count) over [0, width) in pieces whose arrays stay in registers and the nearest cache:
// apart from the conversions, which stand in loops of their own, the arithmetic of bfloat16 is then that of
// float. What needs no conversion is read and written where it lies, as one stream.
constexpr int64_t kPiece = 128;
template <typename Body>
void in_pieces(int64_t width, const Body& body) {
  for (int64_t first = 0; first < width; first += kPiece) {
    body(first, width - first < kPiece ? width - first : kPiece);
  }
}

// x itself, or widened into `room`.
template <typename Stored, typename T>
const T* widened(const Stored* x, T* room, int64_t count) {
  if constexpr (std::is_same_v<Stored, T>)
    return x;
  else
    return convert(x, room, count), room;
}

// Where to write what goes to x, and the writing of what was written elsewhere.
template <typename Stored, typename T>
T* place_for(Stored* x, T* room) {
  if constexpr (std::is_same_v<Stored, T>)
    return x;
  else
    return room;
}
template <typename Stored, typename T>
void narrow_into(Stored* x, const T* room, int64_t count) {
  if constexpr (!std::is_same_v<Stored, T>) convert(room, x, count);
}

template <typename Stored>
void swiglu_rows(const SwiGlu<Stored>& job, int64_t begin, int64_t end) {
  using T = Arithmetic<Stored>;
  T gates[kPiece], ups[kPiece], outs[kPiece];
  for (int64_t i = begin; i < end; ++i) {
    const Stored* row = job.gate_up + 2 * i * job.width;
    in_pieces(job.width, [&](int64_t first, int64_t count) {
      Stored* to = job.out + i * job.width + first;
      const T* gate = widened(row + first, gates, count);
      const T* up = widened(row + job.width + first, ups, count);
      T* out = place_for(to, outs);
      for (int64_t j = 0; j < count; ++j) out[j] = gate[j] * sigmoid(gate[j]) * up[j];
      narrow_into(to, outs, count);
    });
  }
}

// d silu / dg = s (1 + g (1 - s)), s = sigmoid(g)
template <typename Stored>
void swiglu_backward_rows(const SwiGlu<Stored>& job, int64_t begin, int64_t end) {
  using T = Arithmetic<Stored>;
  T gates[kPiece], ups[kPiece], grads[kPiece], grad_gates[kPiece], grad_ups[kPiece];
  for (int64_t i = begin; i < end; ++i) {
    const Stored* row = job.gate_up + 2 * i * job.width;
    Stored* grad_row = job.grad_gate_up + 2 * i * job.width;
    in_pieces(job.width, [&](int64_t first, int64_t count) {
      Stored *to_gate = grad_row + first, *to_up = to_gate + job.width;
      const T* gate = widened(row + first, gates, count);
      const T* up = widened(row + job.width + first, ups, count);
      const T* grad = widened(job.grad_out + i * job.width + first, grads, count);
      T *grad_gate = place_for(to_gate, grad_gates), *grad_up = place_for(to_up, grad_ups);
      for (int64_t j = 0; j < count; ++j) {
        const T g = gate[j], e = exponential(-g), s = T(1) / (T(1) + e);
        const T rest = s < T(0.5) ? T(1) - s : e * s;  // 1 - s without the difference of equals
        const T along = grad[j] * s;
        grad_gate[j] = along * up[j] * (T(1) + g * rest);
        grad_up[j] = along * g;
      }
      narrow_into(to_gate, grad_gates, count);
      narrow_into(to_up, grad_ups, count);
    });
  }
}

}  // namespace

template <typename Stored>
TierKernels<Stored> kernels() {
  return {rms_norm_rows<Stored>, rms_norm_backward_rows<Stored>, swiglu_rows<Stored>,
          swiglu_backward_rows<Stored>};
}
template TierKernels<float> kernels();
template TierKernels<double> kernels();
template TierKernels<BFloat16> kernels();

template <typename Fused, typename Apart>
RotaryKernels<Fused, Apart> rotary_kernels() {
  return {rotary_rows<Fused, Apart>, rotary_backward_rows<Fused, Apart>};
}
template RotaryKernels<float, float> rotary_kernels();
template RotaryKernels<double, double> rotary_kernels();
template RotaryKernels<BFloat16, BFloat16> rotary_kernels();
template RotaryKernels<BFloat16, float> rotary_kernels();

}  // namespace earnest::rowwise::EARNEST_TIER
