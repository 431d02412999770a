// SPDX-License-Identifier: Apache-2.0
// Chooses the CPU tier and deals out the work.
#include "kernels/attention/attention.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "kernels/attention/attention_backend.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/common/cpu_tier.h"
#include "kernels/common/pages.h"
#include "kernels/common/thread_pool.h"

namespace earnest::attention {
namespace {

// Below this many multiply-adds, waking other threads costs more than they save.
constexpr int64_t kWorthThreads = 1 << 20;
constexpr int64_t kChunksPerThread = 16;

// Memory that each thread keeps between calls; it only grows, as a cache does step by step, so that what it
// outgrows has to go back to the system.
struct ThreadScratch {
  void* memory = nullptr;
  size_t size = 0;
  ~ThreadScratch() { give_pages_back(memory, size); }

  void* reserve(size_t bytes) {
    if (bytes <= size) return memory;
    give_pages_back(memory, size);
    memory = take_pages(bytes);
    size = memory == nullptr ? 0 : bytes;
    return memory;
  }
};
thread_local ThreadScratch thread_scratch;
thread_local ThreadScratch caller_scratch;  // for what the threads of one call share

// bfloat16 alone has code for the last tier; the other types run the one before it there.
Status choose(Type type, Backend* backend, CpuTier* tier) {
  if (type == Type::kFloat16)
    return unsupported("attention", "q", "float32, float64 or bfloat16 on the cpu", "float16");
  const CpuTier highest = type == Type::kBFloat16 ? CpuTier::kAvx512Bf16 : CpuTier::kAvx512;
  if (Status status = current_cpu_tier(tier, highest); !status.ok()) return status;
  *backend = *tier == CpuTier::kAvx512Bf16 ? avx512_bf16_backend()
             : *tier == CpuTier::kAvx512   ? avx512_backend(type)
             : *tier == CpuTier::kAvx2     ? avx2_backend(type)
                                           : scalar_backend(type);
  if (backend->forward == nullptr)
    return unsupported("attention", "EARNEST_CPU_TIER", "a tier in this build", name_of(*tier));
  return {};
}

// Multiply-adds, counting a row's worth of work for reading each key.
int64_t work_of(const Params& p, int64_t* longest, int64_t* most_keys) {
  int64_t work = 0;
  *longest = *most_keys = 0;
  for (int64_t n = 0; n < p.sequences; ++n) {
    const Unit unit = unit_of(p, n, 0);
    *longest = std::max(*longest, unit.queries);
    *most_keys = std::max(*most_keys, unit.keys);
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

const Status kOutOfMemory{StatusCode::kOutOfMemory, "[attention] workspace: out of memory"};

int64_t size_of(Type type) { return type == Type::kFloat64 ? sizeof(double) : sizeof(float); }

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Keys that the unit's last row sees, which is the one that sees most.
int64_t keys_seen(const Params& p, const Unit& unit) {
  if (!p.causal) return unit.keys;
  const int64_t tokens = (unit.row_end + p.heads / p.kv_heads - 1) / (p.heads / p.kv_heads);
  return std::max<int64_t>(0, tokens + unit.keys - unit.queries);
}

// ---- forward: a unit is one sequence, one key head and up to kForwardRows rows ----

struct ForwardUnits {
  const Params& p;
  int64_t pairs, blocks;

  int64_t count() const { return pairs * blocks; }
  Unit operator[](int64_t i) const {
    const int64_t block = blocks - 1 - i / pairs, pair = i % pairs;  // the longest rows first
    Unit unit = unit_of(p, pair / p.kv_heads, pair % p.kv_heads);
    unit.row_begin = block * kForwardRows;
    unit.row_end = std::min<int64_t>(unit.row_end, unit.row_begin + kForwardRows);
    return unit;
  }
};

// How many key heads one task takes: all of them, as they lie side by side, or the most that divides them,
// where that leaves enough tasks.
int64_t heads_together(const Params& p, int64_t parts, int64_t most_rows) {
  if (most_rows > kFewRows || p.sequences * parts < 4 * num_threads()) return 1;
  int64_t heads = std::min<int64_t>(p.kv_heads, kMostHeads);
  while (p.kv_heads % heads != 0) --heads;
  return heads;
}

// Where there are fewer units than would keep the threads busy, each part of the keys is a task.
Status forward_by_parts(const Params& p, const Output& output, const Backend& backend,
                        const ForwardUnits& units, int64_t work, int64_t parts, int64_t most_rows) {
  const size_t bytes = partial_bytes(p.type, p.dim, most_rows);
  char* memory =
      static_cast<char*>(caller_scratch.reserve(static_cast<size_t>(units.count() * parts) * bytes));
  if (memory == nullptr) return kOutOfMemory;
  const auto partials = [&](int64_t unit) { return memory + static_cast<size_t>(unit * parts) * bytes; };
  const int64_t together = heads_together(p, parts, most_rows), tasks_a_part = units.count() / together;
  const auto part = [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i / tasks_a_part, at = i % tasks_a_part * together;
      const Unit unit = units[at];
      if (unit.row_begin < unit.row_end && (part == 0 || part * kPartKeys < keys_seen(p, unit))) {
        backend.forward_part(p, unit, together, part, partials(at) + static_cast<size_t>(part) * bytes,
                             static_cast<size_t>(parts) * bytes, scratch);
      }
    }
  };
  const auto join = [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      const Unit unit = units[i];
      if (unit.row_begin < unit.row_end) backend.forward_join(p, output, unit, partials(i), bytes, scratch);
    }
  };
  const size_t scratch_bytes = forward_scratch_bytes(p.dim);
  if (Status status = for_each_chunk(tasks_a_part * parts, work, scratch_bytes, part); !status.ok())
    return status;
  return for_each_chunk(units.count(), work / kPartKeys, scratch_bytes, join);
}

// ---- backward: a unit is one sequence, one key head and a share of the queries ----

constexpr int64_t kShareQueries = 512, kMostShares = 8;
constexpr int64_t kOwnKeys = 2048;  // up to here a sequence of one share is summed in the thread's own memory

// A rule of the sequence alone, since it decides the order of sums.
int64_t shares_of(int64_t queries) {
  return std::clamp<int64_t>((queries + kShareQueries - 1) / kShareQueries, 1, kMostShares);
}

struct BackwardPlan {
  struct Sequence {
    int64_t first_unit, first_sum;  // of the sequences before it
    bool joined;                    // whether its sums lie in the workspace until all of them are there
  };
  const Params& p;
  std::unique_ptr<Sequence[]> sequences;
  int64_t units = 0, sums = 0, own_keys = 0;

  explicit BackwardPlan(const Params& params)
      : p(params), sequences(new (std::nothrow) Sequence[static_cast<size_t>(params.sequences) + 1]) {
    if (sequences == nullptr) return;
    for (int64_t n = 0; n < p.sequences; ++n) {
      const Unit unit = unit_of(p, n, 0);
      const int64_t shares = shares_of(unit.queries);
      sequences[n] = {units, sums, shares > 1 || unit.keys > kOwnKeys};
      units += shares * p.kv_heads;
      if (sequences[n].joined) {
        sums += shares * p.kv_heads * sums_per_share(unit.keys);
      } else {
        own_keys = std::max(own_keys, unit.keys);
      }
    }
  }

  int64_t sums_per_share(int64_t keys) const { return 2 * round_up(keys, 8) * padded_dim(p.dim); }

  int64_t sequence_of(int64_t unit) const {
    const auto* after =
        std::upper_bound(sequences.get(), sequences.get() + p.sequences, unit,
                         [](int64_t i, const Sequence& sequence) { return i < sequence.first_unit; });
    return after - sequences.get() - 1;
  }

  static Unit share_of(const Params& p, Unit unit, int64_t share) {
    const int64_t shares = shares_of(unit.queries), group = p.heads / p.kv_heads;
    const int64_t rows = (unit.queries + shares - 1) / shares * group;
    unit.row_begin = std::min(share * rows, unit.row_end);
    unit.row_end = std::min(unit.row_begin + rows, unit.row_end);
    return unit;
  }

  // Unit i and its share of the sequence, the last and longest first.
  Unit unit_at(int64_t i, int64_t sequence, int64_t* share) const {
    const int64_t local = i - sequences[sequence].first_unit;
    const Unit unit = unit_of(p, sequence, local % p.kv_heads);
    *share = shares_of(unit.queries) - 1 - local / p.kv_heads;
    return share_of(p, unit, *share);
  }

  KeySums sums_of(const Unit& unit, int64_t sequence, int64_t share, char* workspace) const {
    const int64_t slot = unit.kv_head * shares_of(unit.queries) + share;
    const int64_t at = sequences[sequence].first_sum + slot * sums_per_share(unit.keys);
    return {workspace + at * size_of(p.type), keys_seen(p, unit)};
  }
};

// Adds up the shares of the sequences that have several.
Status join_shares(const Params& p, const Gradients& g, const Backend& backend, const BackwardPlan& plan,
                   char* workspace) {
  for (int64_t n = 0; n < p.sequences; ++n) {
    if (!plan.sequences[n].joined) continue;
    const int64_t capacity = unit_of(p, n, 0).capacity, blocks = (capacity + kTileKeys - 1) / kTileKeys;
    const auto run = [&](int64_t begin, int64_t end, void*) {
      for (int64_t i = begin; i < end; ++i) {
        const Unit unit = unit_of(p, n, i % p.kv_heads);
        KeySums sums[kMostShares];
        for (int64_t share = 0; share < shares_of(unit.queries); ++share)
          sums[share] = plan.sums_of(BackwardPlan::share_of(p, unit, share), n, share, workspace);
        const int64_t first = i / p.kv_heads * kTileKeys;
        backend.write_key_gradients(p, g, unit, first, std::min(first + kTileKeys, capacity),
                                    shares_of(unit.queries), sums);
      }
    };
    const int64_t work = capacity * p.kv_heads * p.dim * 4;
    if (Status status = for_each_chunk(blocks * p.kv_heads, work, 64, run); !status.ok()) return status;
  }
  return {};
}

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

// As attention_forward.h and attention_backward.h cut them, in numbers of the largest type.
size_t forward_scratch_bytes(int64_t dim) {
  const int64_t elements =
      (3 * kForwardRows + 2 * kTileKeys) * padded_dim(dim) + 2 * kTileKeys * 48 + 8 * kForwardRows;
  return static_cast<size_t>(elements) * sizeof(double) + 4096;
}
size_t backward_scratch_bytes(int64_t dim) {
  const int64_t elements =
      (5 * kBackwardRows + 5 * kTileKeys + 1) * padded_dim(dim) + 5 * kTileKeys * 48 + 8 * kBackwardRows;
  return static_cast<size_t>(elements) * sizeof(double) + 4096;
}
size_t partial_bytes(Type type, int64_t dim, int64_t rows) {
  const int64_t lanes = rows <= kFewRows ? 16 : round_up(rows, 48);
  return static_cast<size_t>((padded_dim(dim) + 2) * lanes * size_of(type) + 3 * 64);
}

namespace {

// What is asked for, checked; on CUDA with the path that it takes.
template <typename... Arrays>
Status settle(const Params& asked, Params* p, const Arrays&... arrays) {
  *p = asked;
  if (p->device == Device::kCuda) {
    if (Status status = settle_path(p); !status.ok()) return status;
  }
  return check(*p, arrays...);
}

}  // namespace

size_t workspace_size(const Params& asked) {
  Params p;
  return asked.device == Device::kCuda && settle(asked, &p).ok() ? workspace_size_cuda(p)
                                                                 : 0;  // run tells the reason
}

size_t backward_workspace_size(const Params& asked) {
  Params p;
  return asked.device == Device::kCuda && settle(asked, &p).ok() ? backward_workspace_size_cuda(p) : 0;
}

Status which(Device device, Type type, int64_t dim, std::string* name) {
  if (device == Device::kCuda) {
    Params any;
    any.type = type, any.dim = dim;
    if (Status status = settle_path(&any); !status.ok()) return status;
    *name = std::string("cuda/") + name_of(any.path);
    return {};
  }
  Backend backend;
  CpuTier tier;
  if (Status status = choose(type, &backend, &tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

Status forward(const Params& asked, const Output& output) {
  Params p;
  if (Status status = settle(asked, &p, output); !status.ok()) return status;
  if (p.device == Device::kCuda) return forward_cuda(p, output);
  Backend backend;
  CpuTier tier;
  if (Status status = choose(p.type, &backend, &tier); !status.ok()) return status;
  int64_t longest, most_keys;
  const int64_t work = work_of(p, &longest, &most_keys);
  const int64_t most_rows = longest * (p.heads / p.kv_heads);
  const ForwardUnits units{p, p.sequences * p.kv_heads, (most_rows + kForwardRows - 1) / kForwardRows};
  const int64_t parts = parts_of(most_keys);
  if (parts > 1 && num_threads() > 1 && work >= kWorthThreads && units.count() < 4 * num_threads()) {
    return forward_by_parts(p, output, backend, units, work, parts,
                            std::min<int64_t>(most_rows, kForwardRows));
  }
  const auto run = [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      const Unit unit = units[i], next = i + p.kv_heads < end ? units[i + p.kv_heads] : Unit{};
      if (unit.row_begin < unit.row_end)
        backend.forward(p, output, unit, next.keys > 0 ? &next : nullptr, scratch);
    }
  };
  return for_each_chunk(units.count(), work, forward_scratch_bytes(p.dim), run);
}

Status backward(const Params& asked, const Gradients& gradients) {
  Params p;
  if (Status status = settle(asked, &p, gradients); !status.ok()) return status;
  if (p.device == Device::kCuda) return backward_cuda(p, gradients);
  Backend backend;
  CpuTier tier;
  if (Status status = choose(p.type, &backend, &tier); !status.ok()) return status;
  int64_t longest, most_keys;
  const int64_t work = work_of(p, &longest, &most_keys);
  const BackwardPlan plan(p);
  if (plan.sequences == nullptr) return kOutOfMemory;
  char* workspace =
      static_cast<char*>(caller_scratch.reserve(static_cast<size_t>(plan.sums * size_of(p.type) + 64)));
  if (workspace == nullptr) return kOutOfMemory;
  const size_t scratch_bytes = (backward_scratch_bytes(p.dim) + 63) / 64 * 64;
  const size_t own_bytes = static_cast<size_t>(plan.sums_per_share(plan.own_keys) * size_of(p.type));
  const auto run = [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sequence = plan.sequence_of(i);
      int64_t share;
      const Unit unit = plan.unit_at(i, sequence, &share);
      if (plan.sequences[sequence].joined) {
        backend.backward(p, gradients, unit, plan.sums_of(unit, sequence, share, workspace), nullptr,
                         scratch);
        continue;
      }
      const KeySums sums{static_cast<char*>(scratch) + scratch_bytes, keys_seen(p, unit)};
      const int64_t after = i + p.kv_heads;
      const Unit next = after < end ? plan.unit_at(after, plan.sequence_of(after), &share) : Unit{};
      backend.backward(p, gradients, unit, sums, next.keys > 0 ? &next : nullptr, scratch);
      backend.write_key_gradients(p, gradients, unit, 0, unit.capacity, 1, &sums);
    }
  };
  if (Status status = for_each_chunk(plan.units, work, scratch_bytes + own_bytes, run); !status.ok())
    return status;
  return join_shares(p, gradients, backend, plan, workspace);
}

}  // namespace earnest::attention
