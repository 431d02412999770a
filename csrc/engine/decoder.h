// SPDX-License-Identifier: Apache-2.0
// The decoder: a Qwen2-type transformer over the new tokens of many sequences at once, each with its own
// cache: whole prompts, pieces of prompts and single steps side by side.
//
//   for every layer: x += o_proj(attention(rope(q), rope(k), v)) of input_layernorm(x)
//                    x += down_proj(silu(gate_proj(y)) * up_proj(y)), y = post_attention_layernorm(x)
//   hidden = norm(x)
//
// A token's hidden state depends on the tokens before it in its own sequence alone, bit for bit: not on how
// they were cut into calls, nor on the other sequences.
#pragma once

#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/config.h"
#include "csrc/engine/kv_cache.h"
#include "csrc/engine/weights.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// In place of a token id: the next row of `embeddings` instead of a row of the embedding table.
constexpr int64_t kGivenEmbedding = -1;

// New tokens of one sequence.
struct Segment {
  KVCache* cache = nullptr;          // what came before; grows by these
  int64_t count = 0;                 // at least 1
  const int64_t* ids = nullptr;      // [count]
  const void* embeddings = nullptr;  // [embedding_rows, hidden_size], of the model's precision
  int64_t embedding_rows = 0;        // all are used, no more and no less
  int64_t wanted = 1;                // of how many of the last tokens the hidden states are wanted
};

struct DecoderBatch;

class Decoder {
 public:
  Status create(const TextConfig& config, Weights* weights);

  // hidden [sum of wanted, hidden_size], segment by segment, in memory of the host, as is what segments point
  // to; the arena and the caches lie where the weights do. Refused input leaves the caches as they were. All
  // caches belong to one pool, and no two segments to one cache. May throw std::bad_alloc.
  Status run(const std::vector<Segment>& segments, void* hidden, Arena* arena) const;

  // The same on a GPU step by step, for work that is recorded (decode_graphs.h): what is refused; what the
  // pass reads, into the arena; the pass itself, which puts work on the arena's stream, waits for nothing and
  // knows no more of the batch than its sizes and where it lies: hidden [batch->wanted, hidden_size], there;
  // and the caches that have grown.
  Status check(const std::vector<Segment>& segments) const;
  Status send(DecoderBatch* batch, Arena* arena) const;
  Status launch(DecoderBatch* batch, Arena* arena, BFloat16* hidden) const;
  static void advance(const std::vector<Segment>& segments);
  const TextConfig& config() const { return config_; }

 private:
  struct Layer {
    const Array *attention_norm = nullptr, *mlp_norm = nullptr;
    const Matrix *qkv = nullptr, *o_proj = nullptr, *gate_up = nullptr, *down_proj = nullptr;
  };
  // T: of activations, P: of what goes into products and comes out.
  template <typename T, typename P>
  struct Rows;

  Status check(const Segment& segment) const;
  template <typename T, typename P>
  Status run_as(const std::vector<Segment>& segments, T* hidden, Arena* arena) const;
  template <typename T, typename P>
  Status run_here(DecoderBatch* batch, T* hidden, Arena* arena) const;
  Status run_there(DecoderBatch* batch, BFloat16* hidden, Arena* arena) const;
  template <typename T>
  Status embed(const DecoderBatch& batch, T* x) const;
  Status list_embeddings(DecoderBatch* batch) const;
  template <typename T, typename P>
  Status transform(DecoderBatch* batch, T* x, Arena* arena, const T** normed) const;
  template <typename T, typename P>
  Status attend(size_t index, DecoderBatch* batch, Rows<T, P>* stream, Arena* arena) const;
  template <typename T, typename P>
  Status feed_forward(const Layer& layer, int64_t rows, const Rows<T, P>& stream, Arena* arena) const;

  TextConfig config_;
  Precision precision_ = Precision::kFloat32;
  Place place_;
  Products products_ = Products::kOurs;
  const Table* embeddings_ = nullptr;
  const Array* norm_ = nullptr;
  std::vector<Layer> layers_;
};

}  // namespace earnest::engine
