// SPDX-License-Identifier: Apache-2.0
// CUDA's names, and ours of simt.h, with the emulator's meaning.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/common/simt_emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

#define threadIdx (::earnest::simt::emulator::here().thread)
#define blockIdx (::earnest::simt::emulator::here().block)
#define blockDim (::earnest::simt::emulator::here().block_dim)
#define gridDim (::earnest::simt::emulator::here().grid_dim)

#define EARNEST_SHARED(T, name, size) \
  static char name##_site = 0;        \
  const auto name = ::earnest::simt::Shared<T>::of_block(&name##_site, #name, size)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace earnest::simt {

// An array in the block's shared memory whose bounds are watched.
template <typename T>
class Shared {
 public:
  Shared(const char* name, T* data, int64_t size) : name_(name), data_(data), size_(size) {}
  static Shared of_block(const void* site, const char* name, int64_t size) {
    return {name, static_cast<T*>(emulator::static_shared(site, static_cast<size_t>(size) * sizeof(T))),
            size};
  }

  T& operator[](int64_t i) const {
    if (i < 0 || i >= size_) emulator::fail_index(name_, i, size_);
    return data_[i];
  }
  T& operator*() const { return (*this)[0]; }
  T* operator->() const { return &(*this)[0]; }
  Shared operator+(int64_t offset) const {
    if (offset < 0 || offset > size_) emulator::fail_offset(name_, offset, size_);
    return {name_, data_ + offset, size_ - offset};
  }

 private:
  const char* name_;
  T* data_;
  int64_t size_;
};

template <typename T>
Shared<T> dynamic_shared(size_t offset, size_t count) {
  size_t bytes;
  char* data = static_cast<char*>(emulator::dynamic_shared(&bytes));
  if (offset + count * sizeof(T) > bytes || offset % alignof(T) != 0)
    emulator::fail_part(offset, count * sizeof(T), bytes);
  return {"dynamic memory", reinterpret_cast<T*>(data + offset), static_cast<int64_t>(count)};
}

inline uint32_t load_acquire(const uint32_t* address) { return __atomic_load_n(address, __ATOMIC_ACQUIRE); }
inline void store_release(uint32_t* address, uint32_t value) {
  __atomic_store_n(address, value, __ATOMIC_RELEASE);
}
inline void pause() { emulator::pause(); }

template <typename... P, typename... A>
Status launch_clusters(unsigned cluster, const Label& label, void (*kernel)(P...), dim3 grid, dim3 block,
                       size_t shared_bytes, void* stream, A&&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
  };
  const auto call = std::make_shared<const Call>(kernel, std::tuple<P...>(std::forward<A>(arguments)...));
  const auto as_one_thread = [](const void* context) {
    const auto* one = static_cast<const Call*>(context);
    std::apply(one->kernel, one->arguments);
  };
  const auto* const function = reinterpret_cast<const void*>(kernel);
  return emulator::put(stream, {label, grid, block, cluster, shared_bytes, function, as_one_thread, nullptr},
                       call);
}

template <typename... P, typename... A>
Status launch(const Label& label, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
              void* stream, A&&... arguments) {
  return launch_clusters(1, label, kernel, grid, block, shared_bytes, stream, std::forward<A>(arguments)...);
}

namespace emulator {

template <typename T>
struct Exchange {
  T value;
  int source;  // the lane whose value is wanted
};

template <typename T>
T exchange(const char* name, unsigned mask, T value, int source, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  if (!(mask >> source & 1u)) fail("a source lane of the mask", std::to_string(source));
  Exchange<T> mine{value, source};
  meet_warp(
      name, mask, &mine,
      [](void* const* lanes, int count) {
        T values[32];
        for (int i = 0; i < count; ++i)
          if (lanes[i]) values[i] = static_cast<Exchange<T>*>(lanes[i])->value;
        for (int i = 0; i < count; ++i) {
          if (!lanes[i]) continue;
          auto* lane = static_cast<Exchange<T>*>(lanes[i]);
          lane->value = values[lane->source];
        }
      },
      site);
  return mine.value;
}

inline int lane() {
  const Place& place = here();
  const dim3 &t = place.thread, &n = place.block_dim;
  return static_cast<int>((t.x + n.x * (t.y + n.y * t.z)) % 32);
}

inline unsigned ballot(const char* name, unsigned mask, bool predicate, const Site& site) {
  unsigned vote = predicate ? 1u : 0u;
  meet_warp(
      name, mask, &vote,
      [](void* const* lanes, int count) {
        unsigned all = 0;
        for (int i = 0; i < count; ++i)
          if (lanes[i]) all |= *static_cast<unsigned*>(lanes[i]) << i;
        for (int i = 0; i < count; ++i)
          if (lanes[i]) *static_cast<unsigned*>(lanes[i]) = all;
      },
      site);
  return vote;
}

inline int count_block(const char* name, bool predicate, const Site& site) {
  int votes = predicate ? 1 : 0;
  meet_block(
      name, &votes,
      [](void* const* threads, int count) {
        int all = 0;
        for (int i = 0; i < count; ++i) all += *static_cast<int*>(threads[i]);
        for (int i = 0; i < count; ++i) *static_cast<int*>(threads[i]) = all;
      },
      site);
  return votes;
}

}  // namespace emulator
}  // namespace earnest::simt

// ---- CUDA's own names; what they do is in its programming guide ----

using EarnestSite = earnest::simt::emulator::Site;

inline void __syncthreads(EarnestSite site = EarnestSite::current()) {
  earnest::simt::emulator::meet_block("__syncthreads", nullptr, nullptr, site);
}
inline int __syncthreads_count(int predicate, EarnestSite site = EarnestSite::current()) {
  return earnest::simt::emulator::count_block("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, EarnestSite site = EarnestSite::current()) {
  return earnest::simt::emulator::count_block("__syncthreads_or", predicate != 0, site) > 0;
}
inline int __syncthreads_and(int predicate, EarnestSite site = EarnestSite::current()) {
  return earnest::simt::emulator::count_block("__syncthreads_and", predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EarnestSite site = EarnestSite::current()) {
  earnest::simt::emulator::meet_warp("__syncwarp", mask, nullptr, nullptr, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EarnestSite site = EarnestSite::current()) {
  return earnest::simt::emulator::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, EarnestSite site = EarnestSite::current()) {
  return earnest::simt::emulator::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EarnestSite site = EarnestSite::current()) {
  return earnest::simt::emulator::ballot("__all_sync", mask, predicate != 0, site) == mask;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EarnestSite site = EarnestSite::current()) {
  const int lane = earnest::simt::emulator::lane();
  const int first = lane / width * width;
  return earnest::simt::emulator::exchange("__shfl_sync", mask, value, first + (source & (width - 1)), site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 EarnestSite site = EarnestSite::current()) {
  const int lane = earnest::simt::emulator::lane(), source = lane - static_cast<int>(delta);
  return earnest::simt::emulator::exchange("__shfl_up_sync", mask, value,
                                           source < lane / width * width ? lane : source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   EarnestSite site = EarnestSite::current()) {
  const int lane = earnest::simt::emulator::lane(), source = lane + static_cast<int>(delta);
  return earnest::simt::emulator::exchange("__shfl_down_sync", mask, value,
                                           source >= (lane / width + 1) * width ? lane : source, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  EarnestSite site = EarnestSite::current()) {
  const int lane = earnest::simt::emulator::lane(), source = lane ^ lanes;
  return earnest::simt::emulator::exchange("__shfl_xor_sync", mask, value,
                                           source >= (lane / width + 1) * width ? lane : source, site);
}

// Only on integers: a sum of floats in no fixed order is not the same twice.
template <typename T, typename V>
T atomicAdd(T* address, V value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_fetch_add(address, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename V>
T atomicExch(T* address, V value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_exchange_n(address, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename V, typename W>
T atomicCAS(T* address, V expected, W value) {
  static_assert(std::is_integral_v<T>);
  T old = static_cast<T>(expected);
  __atomic_compare_exchange_n(address, &old, static_cast<T>(value), false, __ATOMIC_RELAXED,
                              __ATOMIC_RELAXED);
  return old;
}
template <typename T, typename V>
T atomicOr(T* address, V value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_fetch_or(address, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename V>
T atomicAnd(T* address, V value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_fetch_and(address, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename V>
T atomicMin(T* address, V value) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  if (static_cast<T>(value) < old) __atomic_store_n(address, static_cast<T>(value), __ATOMIC_RELAXED);
  return old;
}
template <typename T, typename V>
T atomicMax(T* address, V value) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  if (static_cast<T>(value) > old) __atomic_store_n(address, static_cast<T>(value), __ATOMIC_RELAXED);
  return old;
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
