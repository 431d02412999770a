// SPDX-License-Identifier: Apache-2.0
// Chooses the CPU tier and deals out the work: a unit is one sequence, one key head and a block of query
// rows.
#include "kernels/attention/attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/attention/attention_backend.h"
#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"

namespace earnest::attention {
namespace {

// Below this many multiply-adds, waking other threads costs more than they save.
constexpr int64_t kWorthThreads = 1 << 20;
constexpr int64_t kChunksPerThread = 16;

// Memory that each thread keeps between calls; it only grows.
struct ThreadScratch {
  char* memory = nullptr;
  size_t size = 0;
  ~ThreadScratch() { std::free(memory); }

  void* reserve(size_t bytes) {
    if (bytes <= size) return memory;
    std::free(memory);
    size = (bytes + 63) / 64 * 64;
    memory = static_cast<char*>(std::aligned_alloc(64, size));
    if (memory == nullptr) size = 0;
    return memory;
  }
};
thread_local ThreadScratch thread_scratch;

Status choose(Type type, int64_t dim, Backend* backend, CpuTier* tier) {
  if (Status status = current_cpu_tier(tier, CpuTier::kAvx512); !status.ok()) return status;
  *backend = *tier == CpuTier::kAvx512 ? avx512_backend(type, dim)
             : *tier == CpuTier::kAvx2 ? avx2_backend(type, dim)
                                       : scalar_backend(type, dim);
  if (backend->forward == nullptr)
    return unsupported("attention", "EARNEST_CPU_TIER", "a tier in this build", name_of(*tier));
  return {};
}

// Multiply-adds, counting a row's worth of work for reading each key.
int64_t work_of(const Params& p, int64_t* longest) {
  int64_t work = 0;
  *longest = 0;
  for (int64_t n = 0; n < p.sequences; ++n) {
    const Unit unit = unit_of(p, n, 0);
    *longest = std::max(*longest, unit.queries);
    work += (unit.queries * (p.heads / p.kv_heads) * 2 + 16) * unit.keys;
  }
  return work * p.dim * p.kv_heads;
}

// Calls run(begin, end, scratch) until every unit is covered. The order in which they run does not change any
// result.
template <typename Run>
Status for_each_chunk(int64_t units, int64_t work, size_t scratch_bytes, const Run& run) {
  const int64_t threads = work < kWorthThreads ? 1 : num_threads();
  const int64_t chunk = std::max<int64_t>(1, units / (threads * kChunksPerThread));
  std::atomic<bool> out_of_memory{false};
  const auto task = [&](int64_t c) {
    void* scratch = thread_scratch.reserve(scratch_bytes);
    if (scratch == nullptr) {
      out_of_memory = true;
      return;
    }
    run(c * chunk, std::min(units, (c + 1) * chunk), scratch);
  };
  const int64_t chunks = (units + chunk - 1) / chunk;
  if (threads == 1) {
    for (int64_t c = 0; c < chunks; ++c) task(c);
  } else {
    parallel_for(chunks, task);
  }
  if (out_of_memory) return {StatusCode::kOutOfMemory, "[attention] scratch: out of memory"};
  return {};
}

size_t size_of(Type type) { return type == Type::kFloat64 ? sizeof(double) : sizeof(float); }

}  // namespace

Unit unit_of(const Params& p, int64_t sequence, int64_t kv_head) {
  Unit unit;
  unit.kv_head = kv_head;
  const int64_t equal_q = p.tokens_q / p.sequences, equal_k = p.tokens_k / p.sequences;
  unit.query_begin = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[sequence] : sequence * equal_q;
  unit.queries = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[sequence + 1] - unit.query_begin : equal_q;
  unit.key_begin = p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[sequence] : sequence * equal_k;
  unit.capacity = p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[sequence + 1] - unit.key_begin : equal_k;
  unit.keys = p.seqused_k != nullptr ? p.seqused_k[sequence] : unit.capacity;
  unit.row_end = unit.queries * (p.heads / p.kv_heads);
  return unit;
}

size_t forward_scratch_bytes(int64_t dim) {
  const int64_t width = padded_dim(dim);
  const int64_t elements =
      2 * kForwardRows * width + 2 * kTileKeys * width + 8 * kTileKeys + 4 * kForwardRows;
  return static_cast<size_t>(elements) * sizeof(double) + 1024;
}

size_t backward_scratch_bytes(int64_t dim) {
  const int64_t width = padded_dim(dim);
  const int64_t elements = (2 * kBackwardRows + 5 * kTileKeys + 8) * width +
                           (2 * kBackwardRows + 1) * kTileKeys + 2 * kBackwardRows;
  return static_cast<size_t>(elements) * sizeof(double) + 1024;
}

Status which(Device device, Type type, int64_t dim, std::string* name) {
  if (device == Device::kCuda) return unsupported_cuda();
  Backend backend;
  CpuTier tier;
  if (Status status = choose(type, dim, &backend, &tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

Status forward(const Params& p, const Output& output) {
  if (Status status = check(p, output); !status.ok()) return status;
  Backend backend;
  CpuTier tier;
  if (Status status = choose(p.type, p.dim, &backend, &tier); !status.ok()) return status;
  int64_t longest;
  const int64_t work = work_of(p, &longest);
  const int64_t pairs = p.sequences * p.kv_heads;
  const int64_t blocks = (longest * (p.heads / p.kv_heads) + kForwardRows - 1) / kForwardRows;
  const auto unit_at = [&](int64_t i) {
    const int64_t block = blocks - 1 - i / pairs, pair = i % pairs;  // the longest rows first
    Unit unit = unit_of(p, pair / p.kv_heads, pair % p.kv_heads);
    unit.row_begin = block * kForwardRows;
    unit.row_end = std::min<int64_t>(unit.row_end, unit.row_begin + kForwardRows);
    return unit;
  };
  const auto run = [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      const Unit unit = unit_at(i), next = i + p.kv_heads < end ? unit_at(i + p.kv_heads) : Unit{};
      if (unit.row_begin < unit.row_end)
        backend.forward(p, output, unit, next.keys > 0 ? &next : nullptr, scratch);
    }
  };
  return for_each_chunk(pairs * blocks, work, forward_scratch_bytes(p.dim), run);
}

Status backward(const Params& p, const Gradients& gradients) {
  if (Status status = check(p, gradients); !status.ok()) return status;
  Backend backend;
  CpuTier tier;
  if (Status status = choose(p.type, p.dim, &backend, &tier); !status.ok()) return status;
  int64_t longest;
  const int64_t work = work_of(p, &longest);
  const size_t rows = static_cast<size_t>(p.tokens_q * p.heads);
  const size_t row_bytes =
      size_of(p.type) * static_cast<size_t>(backend.needs_grad_q ? 1 + padded_dim(p.dim) : 1);
  std::unique_ptr<char[]> memory(new (std::nothrow) char[rows * row_bytes]);
  if (memory == nullptr) return {StatusCode::kOutOfMemory, "[attention] workspace: out of memory"};
  const Workspace workspace{memory.get(), memory.get() + rows * size_of(p.type)};
  const auto unit_at = [&](int64_t i) { return unit_of(p, i / p.kv_heads, i % p.kv_heads); };
  const auto run = [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      const Unit next = i + p.kv_heads < end ? unit_at(i + p.kv_heads) : Unit{};
      backend.backward(p, gradients, workspace, unit_at(i), next.keys > 0 ? &next : nullptr, scratch);
    }
  };
  return for_each_chunk(p.sequences * p.kv_heads, work, backward_scratch_bytes(p.dim), run);
}

}  // namespace earnest::attention
