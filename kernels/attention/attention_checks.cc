// SPDX-License-Identifier: Apache-2.0
// What the attention kernels ask of their arguments.
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>

#include "kernels/attention/attention_backend.h"

namespace earnest::attention {
namespace {

Status wrong(const std::string& argument, const std::string& expected, const std::string& got) {
  return invalid_argument("attention", argument, expected, got);
}

Status check_sequences(const char* argument, const int32_t* cu_seqlens, int64_t sequences, int64_t tokens) {
  if (cu_seqlens == nullptr) {
    if (sequences == 0 ? tokens == 0 : tokens % sequences == 0) return {};
    return wrong(argument,
                 "given, or tokens that divide into " + std::to_string(sequences) + " equal sequences",
                 std::to_string(tokens) + " tokens");
  }
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

}  // namespace

Status check(const Params& p) {
  if (p.device == Device::kCuda) return unsupported_cuda();
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
  if (Status status = check_sequences("cu_seqlens_q", p.cu_seqlens_q, p.sequences, p.tokens_q); !status.ok())
    return status;
  if (Status status = check_sequences("cu_seqlens_k", p.cu_seqlens_k, p.sequences, p.tokens_k); !status.ok())
    return status;
  for (const auto& [argument, cu_seqlens, tokens] :
       {std::tuple{"q", p.cu_seqlens_q, p.tokens_q}, std::tuple{"k", p.cu_seqlens_k, p.tokens_k}}) {
    constexpr int64_t kMost = INT32_MAX;  // positions are compared as int32 in the lanes of vectors
    if (cu_seqlens == nullptr && p.sequences > 0 && tokens / p.sequences > kMost)
      return wrong(argument, "sequences of at most " + std::to_string(kMost) + " tokens",
                   std::to_string(tokens / p.sequences));
  }
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
  }
  return {};
}

}  // namespace earnest::attention
