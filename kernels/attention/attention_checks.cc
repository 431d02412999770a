// SPDX-License-Identifier: Apache-2.0
// What the attention kernels ask of their arguments.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>

#include "kernels/attention/attention_backend.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_plan.h"

namespace earnest::attention {
namespace {

Status wrong(const std::string& argument, const std::string& expected, const std::string& got) {
  return invalid_argument("attention", argument, expected, got);
}

Status check_equal_sequences(const char* argument, int64_t sequences, int64_t tokens) {
  if (sequences == 0 ? tokens == 0 : tokens % sequences == 0) return {};
  return wrong(argument,
               "given, or tokens that divide into " + std::to_string(sequences) + " equal sequences",
               std::to_string(tokens) + " tokens");
}

Status check_sequences(const char* argument, const int32_t* cu_seqlens, int64_t sequences, int64_t tokens) {
  if (cu_seqlens == nullptr) return check_equal_sequences(argument, sequences, tokens);
  if (cu_seqlens[0] != 0) return wrong(argument, "a first entry of 0", std::to_string(cu_seqlens[0]));
  for (int64_t n = 0; n < sequences; ++n) {
    if (cu_seqlens[n + 1] < cu_seqlens[n]) {
      return wrong(argument, "entries that never decrease",
                   std::to_string(cu_seqlens[n]) + " before " + std::to_string(cu_seqlens[n + 1]));
    }
  }
  if (cu_seqlens[sequences] != tokens)
    return wrong(argument, "a last entry of " + std::to_string(tokens) + " (all tokens)",
                 std::to_string(cu_seqlens[sequences]));
  return {};
}

Status check_pointer(const char* argument, const void* pointer, int64_t elements) {
  if (pointer != nullptr || elements == 0) return {};
  return wrong(argument, "an array", "none");
}

// Bytes, workspaces and units of work are a small multiple of these numbers, so that none of them overflows.
constexpr int64_t kMostElements = int64_t{1} << 52;
constexpr double kMostWork = 0x1p60;  // multiply-adds, which are counted to share them out: years of them

Status check_size(const char* argument, int64_t tokens, int64_t heads, int64_t dim) {
  if (heads <= kMostElements / dim && tokens <= kMostElements / (heads * dim)) return {};
  return wrong(argument, "at most 2^52 elements",
               std::to_string(tokens) + " x " + std::to_string(heads) + " x " + std::to_string(dim));
}

Status check_work(const Params& p) {
  const double width = static_cast<double>(p.heads) * static_cast<double>(p.dim);
  const auto of = [&](double queries, double keys) { return (queries + 16) * keys * width; };
  if (of(static_cast<double>(p.tokens_q), static_cast<double>(p.tokens_k)) <= kMostWork) return {};
  double work = 0;
  for (int64_t n = 0; n < p.sequences; ++n) {
    const Unit unit = unit_of(p, n, 0);
    work += of(static_cast<double>(unit.queries), static_cast<double>(unit.keys));
  }
  if (work <= kMostWork) return {};
  return wrong("q, k", "at most 2^60 multiply-adds", std::to_string(work));
}

// What is asked for on CUDA besides; bounds lie on the device, where the kernel looks at them.
Status check_cuda(const Params& p) {
  for (const auto& [argument, pointer] : {std::tuple{"q", p.q}, std::tuple{"k", p.k}, std::tuple{"v", p.v},
                                          std::tuple{"workspace", static_cast<const void*>(p.workspace)}}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
      return wrong(argument, "an array that begins on 16 bytes on cuda", "another");
  }
  for (const auto& [argument, cu_seqlens, tokens] :
       {std::tuple{"cu_seqlens_q", p.cu_seqlens_q, p.tokens_q},
        std::tuple{"cu_seqlens_k", p.cu_seqlens_k, p.tokens_k}}) {
    const int64_t sequences = cu_seqlens == nullptr ? p.sequences : p.sequences == 0 ? 0 : 1;
    if (Status status = check_equal_sequences(argument, sequences, tokens); !status.ok()) return status;
    if (cu_seqlens != nullptr && tokens > INT32_MAX)
      return wrong(argument, "at most 2^31 - 1 tokens", std::to_string(tokens));
  }
  if (p.heads > INT32_MAX) return wrong("q", "fewer than 2^31 heads on cuda", std::to_string(p.heads));
  const auto factor = static_cast<float>(p.scale);
  if (factor < FLT_MIN || !std::isfinite(2 * factor))
    return wrong("scale", "a normal number of float32 on cuda", std::to_string(p.scale));
  if (p.most_keys < 0) return wrong("most_keys", "at least 0", std::to_string(p.most_keys));
  if (p.tile_rows != 0 && p.tile_rows != gpu::kFewTileRows && p.tile_rows != gpu::kTileRows)
    return wrong("tile_rows", "0, 64 or 128", std::to_string(p.tile_rows));
  if (p.schedule != Schedule::kBest && p.path != CudaPath::kSm90a)
    return wrong("schedule", "best on other paths than sm90a", "another");
  if (p.most_keys > 0 && p.path == CudaPath::kSm90a && gpu::schedule_of(p) != Schedule::kWide)
    return wrong("schedule", "best or wide where most_keys is given", "another");
  return {};
}

}  // namespace

Status check(const Params& p) {
  if (p.sequences < 0 || p.tokens_q < 0 || p.tokens_k < 0)
    return wrong("q, k", "sizes of at least 0", "less");
  if (p.dim < 8 || p.dim > kMaxDim || p.dim % 8 != 0)
    return wrong("q", "a head size that is a multiple of 8 up to 256", std::to_string(p.dim));
  if (p.kv_heads < 1 || p.heads < 1 || p.heads % p.kv_heads != 0)
    return wrong("k", "a number of heads that divides q's " + std::to_string(p.heads),
                 std::to_string(p.kv_heads));
  if (!(p.scale > 0) || !std::isfinite(p.scale))
    return wrong("scale", "a positive finite number", std::to_string(p.scale));
  for (const auto& [argument, tokens, heads, dim] :
       {std::tuple{"q", p.tokens_q, p.heads, p.dim}, std::tuple{"k", p.tokens_k, p.kv_heads, p.dim},
        std::tuple{"sequences", p.sequences, p.heads, int64_t{1}}}) {
    if (Status status = check_size(argument, tokens, heads, dim); !status.ok()) return status;
  }
  for (const auto& [argument, pointer, elements] :
       {std::tuple{"q", p.q, p.tokens_q}, std::tuple{"k", p.k, p.tokens_k},
        std::tuple{"v", p.v, p.tokens_k}}) {
    if (Status status = check_pointer(argument, pointer, elements); !status.ok()) return status;
  }
  for (const auto& [argument, cu_seqlens, tokens] :
       {std::tuple{"q", p.cu_seqlens_q, p.tokens_q}, std::tuple{"k", p.cu_seqlens_k, p.tokens_k}}) {
    constexpr int64_t kMost = INT32_MAX;  // positions are compared as int32 in the lanes of vectors
    if (cu_seqlens == nullptr && p.sequences > 0 && tokens / p.sequences > kMost)
      return wrong(argument, "sequences of at most " + std::to_string(kMost) + " tokens",
                   std::to_string(tokens / p.sequences));
  }
  if (p.device == Device::kCuda) return check_cuda(p);
  if (Status status = check_sequences("cu_seqlens_q", p.cu_seqlens_q, p.sequences, p.tokens_q); !status.ok())
    return status;
  if (Status status = check_sequences("cu_seqlens_k", p.cu_seqlens_k, p.sequences, p.tokens_k); !status.ok())
    return status;
  for (int64_t n = 0; p.seqused_k != nullptr && n < p.sequences; ++n) {
    const int64_t capacity = unit_of(p, n, 0).capacity;
    if (p.seqused_k[n] < 0 || p.seqused_k[n] > capacity) {
      return wrong("seqused_k",
                   "0 to " + std::to_string(capacity) + " (the keys of sequence " + std::to_string(n) + ")",
                   std::to_string(p.seqused_k[n]));
    }
  }
  return check_work(p);
}

Status check(const Params& p, const Output& output) {
  if (Status status = check(p); !status.ok()) return status;
  if (p.device == Device::kCuda && reinterpret_cast<uintptr_t>(output.out) % 16 != 0)
    return wrong("out", "an array that begins on 16 bytes on cuda", "another");
  if (p.device == Device::kCuda && p.workspace == nullptr && workspace_size_cuda(p) > 0)
    return wrong("workspace", "an array", "none");
  return check_pointer("out", output.out, p.tokens_q);
}

Status check(const Params& p, const Gradients& g) {
  if (Status status = check(p); !status.ok()) return status;
  for (const auto& [argument, pointer, elements] :
       {std::tuple{"out", g.out, p.tokens_q}, std::tuple{"lse", static_cast<const void*>(g.lse), p.tokens_q},
        std::tuple{"grad_out", g.grad_out, p.tokens_q},
        std::tuple{"grad_q", static_cast<const void*>(g.grad_q), p.tokens_q},
        std::tuple{"grad_k", static_cast<const void*>(g.grad_k), p.tokens_k},
        std::tuple{"grad_v", static_cast<const void*>(g.grad_v), p.tokens_k}}) {
    if (Status status = check_pointer(argument, pointer, elements); !status.ok()) return status;
    if (p.device == Device::kCuda && reinterpret_cast<uintptr_t>(pointer) % 16 != 0 && pointer != g.lse)
      return wrong(argument, "an array that begins on 16 bytes on cuda", "another");
  }
  if (p.device != Device::kCuda) return {};
  if (p.tokens_q > INT32_MAX / (p.heads / p.kv_heads))  // rows of a sequence are counted so
    return wrong("q", "fewer than 2^31 tokens times heads of a key head on cuda",
                 std::to_string(p.tokens_q) + " x " + std::to_string(p.heads / p.kv_heads));
  if (p.workspace == nullptr && backward_workspace_size_cuda(p) > 0)
    return wrong("workspace", "an array", "none");
  return {};
}

Status fault(const Params& p, FaultWord word) {
  if (word == kNoFault) return {};
  const Fault found = fault_of(word);
  const std::string of = "others at sequence " + std::to_string(found.index);
  switch (static_cast<gpu::Bounds>(found.argument)) {
    case gpu::Bounds::kQueries:
      return wrong("cu_seqlens_q", "entries that never decrease, from 0 to " + std::to_string(p.tokens_q),
                   of);
    case gpu::Bounds::kKeys:
      return wrong("cu_seqlens_k", "entries that never decrease, from 0 to " + std::to_string(p.tokens_k),
                   of);
    default:
      return wrong("seqused_k", "0 to the keys of each sequence", of);
  }
}

}  // namespace earnest::attention
