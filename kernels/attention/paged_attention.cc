// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/paged_attention.h"

#include <cmath>
#include <tuple>

#include "kernels/attention/paged_backend.h"
#include "kernels/attention/paged_checks.h"
#include "kernels/attention/paged_plan.h"

namespace earnest::attention::paged {
namespace {

constexpr const char* kOp = "paged_attention";
constexpr int64_t kMostCount = int64_t{1} << 30;  // so that an int counts rows, sequences and units of work

Status wrong(const std::string& argument, const std::string& expected, const std::string& got) {
  return invalid_argument(kOp, argument, expected, got);
}

bool in_range(int64_t size, int64_t least, int64_t most) { return size >= least && size <= most; }

// The product of sizes of at least 0; more than kMostElements if it is more.
int64_t elements(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (size == 0) return 0;
    product = product > kMostElements / size ? kMostElements + 1 : product * size;
  }
  return product;
}

// On the CPU attention.h's kernels have their own pieces.
Status check_variant(const Params& p) {
  const bool on_cpu = p.device == Device::kCpu;
  if (on_cpu ? p.piece_keys != kPieceKeys : !is_piece(p.piece_keys)) {
    return wrong("piece_keys", on_cpu ? "512 on the CPU" : "256, 512, 1024 or 2048",
                 std::to_string(p.piece_keys));
  }
  if (p.stages == 0 || (!on_cpu && in_range(p.stages, kLeastStages, kMostStages))) return {};
  return wrong("stages", on_cpu ? "0 on the CPU" : "2 to 4, or 0 for a choice", std::to_string(p.stages));
}

// The most that a sequence can have.
int64_t most_pieces(const Params& p) {
  return pieces_of(p.table_pages * p.page_size, piece_shift(p.piece_keys));
}

Status check_sizes(const Params& p) {
  if (p.sequences < 0 || p.tokens < 0 || p.pages < 0 || p.table_pages < 0)
    return wrong("sequences, tokens, pages", "sizes of at least 0", "less");
  if (Status status = check_numbers(kOp, "q", p.type, p.dim); !status.ok()) return status;
  if (p.kv_heads < 1 || p.heads < 1 || p.heads % p.kv_heads != 0 || p.heads / p.kv_heads > kMostGroup) {
    return wrong("k",
                 "a number of heads that divides q's " + std::to_string(p.heads) + " into at most " +
                     std::to_string(kMostGroup) + " each",
                 std::to_string(p.kv_heads));
  }
  if (Status status = check_page_size(kOp, p.page_size); !status.ok()) return status;
  if (Status status = check_variant(p); !status.ok()) return status;
  if (!in_range(p.most_queries, 1, kMostQueries))
    return wrong("most_queries", "1 to " + std::to_string(kMostQueries), std::to_string(p.most_queries));
  if (p.pages > INT32_MAX || p.table_pages > INT32_MAX / p.page_size)
    return wrong("page_table", "pages and keys of a sequence that an int32 counts",
                 std::to_string(p.table_pages));
  const int64_t most = elements({p.sequences, p.most_queries});
  if (p.cu_seqlens_q == nullptr ? p.tokens != most : p.tokens > most) {
    return wrong("q",
                 (p.cu_seqlens_q == nullptr ? "" : "at most ") + std::to_string(most) + " tokens (" +
                     std::to_string(p.most_queries) + " queries a sequence)",
                 std::to_string(p.tokens));
  }
  if (!(p.scale > 0) || !std::isfinite(p.scale))
    return wrong("scale", "a positive finite number", std::to_string(p.scale));
  if (elements({p.sequences, p.most_queries, p.heads}) > kMostCount)
    return wrong("q", "at most 2^30 rows", std::to_string(p.sequences) + " sequences");
  const int64_t pieces = most_pieces(p), rows = p.most_queries * (p.heads / p.kv_heads);
  if (elements({p.sequences, pieces, p.kv_heads, row_slices(rows)}) > kMostCount) {
    return wrong("page_table", "at most 2^30 times " + std::to_string(p.piece_keys) + " keys and key heads",
                 std::to_string(p.sequences) + " x " + std::to_string(p.table_pages) + " pages");
  }
  if (elements({p.sequences, pieces, p.most_queries, p.heads, p.dim}) > kMostElements)
    return wrong("page_table", "a workspace of at most 2^52 numbers", "more");
  return {};
}

Status check(const Params& p, const Output& output) {
  if (Status status = check_sizes(p); !status.ok()) return status;
  const int64_t pool = elements({p.pages, p.kv_heads, p.page_size, p.dim}),
                rows = elements({p.tokens, p.heads, p.dim}), table = elements({p.sequences, p.table_pages});
  const int64_t of_cache = p.cache == Cache::kFloat8 ? p.kv_heads : 0;
  for (const auto& [argument, data, size, alignment] :
       {std::tuple{"q", p.q, rows, size_t{16}}, std::tuple{"k", p.k, pool, size_t{16}},
        std::tuple{"v", p.v, pool, size_t{16}},
        std::tuple{"page_table", static_cast<const void*>(p.page_table), table, size_t{4}},
        std::tuple{"k_scale", static_cast<const void*>(p.k_scale), of_cache, size_t{4}},
        std::tuple{"v_scale", static_cast<const void*>(p.v_scale), of_cache, size_t{4}},
        std::tuple{"lengths", static_cast<const void*>(p.lengths), p.sequences, size_t{4}},
        std::tuple{"out", static_cast<const void*>(output.out), rows, size_t{4}}}) {
    if (Status status = check_array(kOp, argument, data, size, p.device, alignment); !status.ok())
      return status;
  }
  return {};
}

}  // namespace

size_t workspace_size(const Params& p) {
  if (p.device == Device::kCpu || !check_sizes(p).ok()) return 0;
  return workspace_bytes(part_rows(p.sequences, most_pieces(p), p.most_queries, p.heads), p.dim);
}

Status run(const Params& p, const Output& output, void* workspace) {
  if (Status status = check(p, output); !status.ok()) return status;
  if (p.tokens == 0) return {};
  if (p.device == Device::kCpu) return run_cpu(p, output);
  if (workspace == nullptr && workspace_size(p) > 0)
    return wrong("workspace", "memory on the device", "none");
  return run_cuda(p, output, workspace);
}

Status which(Device device, std::string* name) {
  return device == Device::kCuda ? which_cuda(name) : which_cpu(name);
}

Status fault(const Params& p, FaultWord word) {
  if (word == kNoFault) return {};
  const Fault found = fault_of(word);
  if (found.argument == faults::kScale) return scale_fault(kOp, found.index);
  const std::string got = "another for sequence " + std::to_string(found.index);
  if (found.argument == faults::kLength)
    return wrong("lengths", "0 to " + std::to_string(p.table_pages * p.page_size) + " keys", got);
  if (found.argument == faults::kPage)
    return wrong("page_table", "pages in [0, " + std::to_string(p.pages) + ") up to the length", got);
  return wrong("cu_seqlens_q",
               "0 to " + std::to_string(p.most_queries) + " queries a sequence within " +
                   std::to_string(p.tokens) + " tokens",
               got);
}

}  // namespace earnest::attention::paged
