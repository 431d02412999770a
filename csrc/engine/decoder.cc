// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/decoder.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>
#include <string>

#include "csrc/engine/attend.h"
#include "csrc/engine/guard.h"
#include "kernels/frames/frames.h"
#include "kernels/rowwise/angles.h"
#include "kernels/rowwise/rowwise.h"

namespace earnest::engine {
namespace {

template <typename T>
Status rms_norm(const T* x, const Array& weight, double eps, int64_t rows, int64_t width, T* y,
                Arena* arena) {
  const Arena::Scope scope(arena);
  rowwise::RmsNorm<T> job;
  job.rows = rows;
  job.width = width;
  job.eps = eps;
  job.x = x;
  job.weight = weight.template as<T>();
  job.y = y;
  job.inverse = arena->take<float>(rows);
  return rowwise::rms_norm(job);
}

template <typename T>
Status add_same(const T* y, int64_t count, T* x) {
  frames::Add<T> job;
  job.count = count;
  job.x = job.sum = x;
  job.y = y;
  return frames::run(job);
}

// x += y, of which each number is exact in T.
template <typename T, typename P>
Status add(const P* y, int64_t count, T* x) {
  if constexpr (!std::is_same_v<T, P>) {
    for (int64_t i = 0; i < count; ++i) x[i] += widen(y[i]);
    return {};
  } else {
    return add_same(y, count, x);
  }
}

// The product of rows of T that are rounded to P, the precision of products, on their way in.
template <typename T, typename P>
Status multiply(const Matrix& matrix, const T* x, int64_t rows, P* y, Arena* arena) {
  if constexpr (std::is_same_v<T, P>) {
    return matrix.multiply(x, rows, y, arena);
  } else {
    const Arena::Scope scope(arena);
    const int64_t count = rows * matrix.inputs();
    P* rounded = arena->take<P>(count);
    for (int64_t i = 0; i < count; ++i) narrow(x[i], rounded + i);
    return matrix.multiply(rounded, rows, y, arena);
  }
}

Status wrong(const std::string& argument, const std::string& expected, const std::string& got) {
  return invalid_argument("decoder", argument, expected, got);
}

}  // namespace

// The segments in the order in which their caches lie in the pool, as attention wants them, and what follows
// from it. Rows are tokens in that order; later only those whose hidden states are wanted.
struct Decoder::Batch {
  std::vector<Segment> segments;
  std::vector<size_t> order;       // segments[i] is the caller's order[i]
  std::vector<int64_t> positions;  // of each row
  std::vector<int32_t> cu_seqlens_q, cu_seqlens_k, used;
  int64_t rows = 0, wanted = 0;
  float *cosine = nullptr, *sine = nullptr;

  explicit Batch(const std::vector<Segment>& given) : order(given.size()) {
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return given[a].cache->start() < given[b].cache->start(); });
    for (const size_t i : order) segments.push_back(given[i]);
    const int64_t first = segments.front().cache->start();
    cu_seqlens_q.push_back(0);
    for (const Segment& segment : segments) {
      const KVCache& cache = *segment.cache;
      for (int64_t i = 0; i < segment.count; ++i) positions.push_back(cache.length() + i);
      rows += segment.count;
      wanted += segment.wanted;
      cu_seqlens_q.push_back(static_cast<int32_t>(rows));
      // A span of keys runs up to the next cache; `used` ends it at its own length.
      cu_seqlens_k.push_back(static_cast<int32_t>(cache.start() - first));
      used.push_back(static_cast<int32_t>(cache.length() + segment.count));
    }
    const KVCache& last = *segments.back().cache;
    cu_seqlens_k.push_back(static_cast<int32_t>(last.start() + last.capacity() - first));
  }

  // Keeps of `values` [rows, width] the rows that are wanted.
  template <typename T>
  void keep_wanted(const T* values, int64_t width, T* kept) const {
    for (const Segment& segment : segments) {
      values += segment.count * width;
      const size_t count = static_cast<size_t>(segment.wanted * width);
      std::memcpy(kept, values - count, count * sizeof(T));
      kept += count;
    }
  }

  // From now on the rows are the wanted ones. Segments without any need no attention.
  void become_wanted() {
    int64_t end = 0;
    for (size_t i = 0; i < segments.size(); ++i) {
      end += segments[i].wanted;
      cu_seqlens_q[i + 1] = static_cast<int32_t>(end);
    }
    rows = wanted;
  }

  // Rows in this order to rows in the caller's.
  template <typename T>
  void restore_order(const T* values, int64_t width, T* out) const {
    std::vector<int64_t> starts(order.size() + 1, 0);
    for (size_t i = 0; i < order.size(); ++i) starts[order[i] + 1] = segments[i].wanted;
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t count = static_cast<size_t>(segments[i].wanted * width);
      std::memcpy(out + starts[order[i]] * width, values, count * sizeof(T));
      values += count;
    }
  }
};

Status Decoder::create(const TextConfig& config, Weights* weights) {
  config_ = config;
  precision_ = weights->precision();
  EARNEST_RETURN_IF_ERROR(weights->table("model.embed_tokens.weight", &embeddings_));
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i) + ".", attn = name + "self_attn.";
    Layer layer;
    EARNEST_RETURN_IF_ERROR(weights->array(name + "input_layernorm.weight", &layer.attention_norm));
    EARNEST_RETURN_IF_ERROR(weights->array(name + "post_attention_layernorm.weight", &layer.mlp_norm));
    const MatrixNames qkv = {{attn + "q_proj.weight", attn + "k_proj.weight", attn + "v_proj.weight"},
                             {attn + "q_proj.bias", attn + "k_proj.bias", attn + "v_proj.bias"}};
    const MatrixNames gate_up = {{name + "mlp.gate_proj.weight", name + "mlp.up_proj.weight"}, {}};
    EARNEST_RETURN_IF_ERROR(weights->matrix(qkv, &layer.qkv));
    EARNEST_RETURN_IF_ERROR(weights->matrix({{attn + "o_proj.weight"}, {}}, &layer.o_proj));
    EARNEST_RETURN_IF_ERROR(weights->matrix(gate_up, &layer.gate_up));
    EARNEST_RETURN_IF_ERROR(weights->matrix({{name + "mlp.down_proj.weight"}, {}}, &layer.down_proj));
    layers_.push_back(layer);
  }
  return weights->array("model.norm.weight", &norm_);
}

Status Decoder::check(const Segment& s) const {
  if (s.cache == nullptr || s.cache->pool() == nullptr) return wrong("cache", "one with room", "none");
  const KVPool& pool = *s.cache->pool();
  const auto token_bytes =
      static_cast<size_t>(config_.num_key_value_heads * config_.head_dim()) * size_of(precision_);
  if (pool.layers() != config_.num_hidden_layers || pool.token_bytes() != token_bytes)
    return wrong("cache", "one of this model", "one of another");
  if (s.count < 1) return wrong("count", "at least 1", std::to_string(s.count));
  if (s.ids == nullptr) return wrong("ids", "token ids", "null");
  if (s.wanted < 0 || s.wanted > s.count)
    return wrong("wanted", "0 to " + std::to_string(s.count), std::to_string(s.wanted));
  const int64_t room = std::min(s.cache->capacity(), config_.max_position_embeddings) - s.cache->length();
  if (s.count > room) {
    return {StatusCode::kContextFull, "[decoder] count: expected at most " + std::to_string(room) +
                                          " more tokens, got " + std::to_string(s.count)};
  }
  int64_t given = 0;
  for (int64_t i = 0; i < s.count; ++i) {
    given += s.ids[i] == kGivenEmbedding;
    if (s.ids[i] != kGivenEmbedding && (s.ids[i] < 0 || s.ids[i] >= config_.vocab_size))
      return wrong("ids", "ids in [0, " + std::to_string(config_.vocab_size) + ")", std::to_string(s.ids[i]));
  }
  if (given == s.embedding_rows && (given == 0 || s.embeddings != nullptr)) return {};
  return wrong("embeddings", std::to_string(given) + " rows, one for each place",
               std::to_string(s.embeddings == nullptr ? 0 : s.embedding_rows));
}

Status Decoder::check(const std::vector<Segment>& segments) const {
  constexpr int64_t kMostRows = int64_t{1} << 24;
  std::set<const KVCache*> caches;
  int64_t rows = 0;
  for (const Segment& segment : segments) {
    EARNEST_RETURN_IF_ERROR(check(segment));
    if (!caches.insert(segment.cache).second) return wrong("cache", "one for each segment", "one twice");
    if (segment.cache->pool() != segments[0].cache->pool())
      return wrong("cache", "all of one pool", "those of several");
    rows += segment.count;
    if (rows > kMostRows) return wrong("segments", "at most 2^24 tokens at once", std::to_string(rows));
  }
  return {};
}

Status Decoder::run(const std::vector<Segment>& segments, void* hidden, Arena* arena) const {
  if (segments.empty()) return {};
  EARNEST_RETURN_IF_ERROR(check(segments));
  Status status;
  switch (precision_) {
    case Precision::kFloat32:
      status = run_as<float, float>(segments, static_cast<float*>(hidden), arena);
      break;
    case Precision::kMixed:
      status = run_as<float, BFloat16>(segments, static_cast<float*>(hidden), arena);
      break;
    case Precision::kBFloat16:
      status = run_as<BFloat16, BFloat16>(segments, static_cast<BFloat16*>(hidden), arena);
      break;
  }
  EARNEST_RETURN_IF_ERROR(status);
  for (const Segment& segment : segments) segment.cache->length_ += segment.count;
  return {};
}

template <typename T, typename P>
Status Decoder::run_as(const std::vector<Segment>& segments, T* hidden, Arena* arena) const {
  const Arena::Scope scope(arena);
  const int64_t width = config_.hidden_size;
  Batch batch(segments);
  rowwise::RotaryAngles angles;
  angles.rows = batch.rows;
  angles.dim = config_.head_dim();
  angles.theta = config_.rope_theta;
  angles.positions = batch.positions.data();
  angles.cosine = batch.cosine = arena->take<float>(batch.rows * angles.dim / 2);
  angles.sine = batch.sine = arena->take<float>(batch.rows * angles.dim / 2);
  EARNEST_RETURN_IF_ERROR(rowwise::run(angles));
  T* x = arena->take<T>(batch.rows * width);
  EARNEST_RETURN_IF_ERROR(embed(batch, x));
  for (size_t i = 0; i < layers_.size(); ++i) {
    EARNEST_RETURN_IF_ERROR((attend<T, P>(i, &batch, x, arena)));
    if (batch.rows == 0) return {};
    EARNEST_RETURN_IF_ERROR((feed_forward<T, P>(layers_[i], batch.rows, x, arena)));
  }
  T* normed = arena->take<T>(batch.rows * width);
  EARNEST_RETURN_IF_ERROR(rms_norm(x, *norm_, config_.rms_norm_eps, batch.rows, width, normed, arena));
  batch.restore_order(normed, width, hidden);
  return {};
}

template <typename T>
Status Decoder::embed(const Batch& batch, T* x) const {
  const int64_t width = config_.hidden_size;
  for (const Segment& segment : batch.segments) {
    const T* given = static_cast<const T*>(segment.embeddings);
    for (int64_t i = 0; i < segment.count; ++i, x += width) {
      if (segment.ids[i] != kGivenEmbedding) {
        EARNEST_RETURN_IF_ERROR(embeddings_->copy_row(segment.ids[i], x));
        continue;
      }
      std::memcpy(x, given, static_cast<size_t>(width) * sizeof(T));
      given += width;
    }
  }
  return {};
}

// x += o_proj(attention(...)). New keys and values go into the caches first. The last layer goes on with the
// rows that are wanted.
template <typename T, typename P>
Status Decoder::attend(size_t index, Batch* batch, T* x, Arena* arena) const {
  const Arena::Scope scope(arena);
  const Layer& layer = layers_[index];
  const int64_t width = config_.hidden_size, dim = config_.head_dim(), rows = batch->rows;
  const int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  T* normed = arena->take<T>(rows * width);
  P* qkv = arena->take<P>(rows * layer.qkv->outputs());
  T* mixed = arena->take<T>(rows * width);
  P* projected = arena->take<P>(rows * width);
  rowwise::Rotary<P, T> turn;
  turn.rows = rows;
  turn.heads = heads;
  turn.kv_heads = kv_heads;
  turn.dim = dim;
  turn.cosine = batch->cosine;
  turn.sine = batch->sine;
  turn.qkv = qkv;
  turn.q = arena->take<T>(rows * width);
  turn.k = arena->take<T>(rows * kv_heads * dim);
  turn.v = arena->take<T>(rows * kv_heads * dim);
  EARNEST_RETURN_IF_ERROR(
      rms_norm(x, *layer.attention_norm, config_.rms_norm_eps, rows, width, normed, arena));
  EARNEST_RETURN_IF_ERROR(multiply(*layer.qkv, normed, rows, qkv, arena));
  EARNEST_RETURN_IF_ERROR(rowwise::rotary(turn));

  const KVPool& pool = *batch->segments[0].cache->pool();
  const auto at = static_cast<int64_t>(index);
  const T *k = turn.k, *v = turn.v;
  for (const Segment& segment : batch->segments) {
    const int64_t first = segment.cache->start() + segment.cache->length(),
                  count = segment.count * kv_heads * dim;
    std::memcpy(pool.keys(at, first), k, static_cast<size_t>(count) * sizeof(T));
    std::memcpy(pool.values(at, first), v, static_cast<size_t>(count) * sizeof(T));
    k += count;
    v += count;
  }
  const T* q = turn.q;
  if (index + 1 == layers_.size() && batch->wanted < batch->rows) {
    T* kept = arena->take<T>(batch->wanted * width);
    batch->keep_wanted(turn.q, width, kept);
    batch->keep_wanted(x, width, normed);
    batch->become_wanted();
    std::memcpy(x, normed, static_cast<size_t>(batch->wanted * width) * sizeof(T));
    q = kept;
    if (batch->rows == 0) return {};
  }
  const int64_t first = batch->segments[0].cache->start();
  attention::Params params = attention_over<T>(heads, kv_heads, dim);
  params.sequences = static_cast<int64_t>(batch->segments.size());
  params.tokens_q = batch->rows;
  params.tokens_k = batch->cu_seqlens_k.back();
  params.cu_seqlens_q = batch->cu_seqlens_q.data();
  params.cu_seqlens_k = batch->cu_seqlens_k.data();
  params.seqused_k = batch->used.data();
  params.causal = true;
  params.q = q;
  params.k = pool.keys(at, first);
  params.v = pool.values(at, first);
  EARNEST_RETURN_IF_ERROR(attention::forward(params, {mixed, nullptr}));
  EARNEST_RETURN_IF_ERROR(multiply(*layer.o_proj, mixed, batch->rows, projected, arena));
  return add(projected, batch->rows * width, x);
}

template <typename T, typename P>
Status Decoder::feed_forward(const Layer& layer, int64_t rows, T* x, Arena* arena) const {
  const Arena::Scope scope(arena);
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  T* normed = arena->take<T>(rows * width);
  P* gate_up = arena->take<P>(rows * 2 * inner);
  P* gated = arena->take<P>(rows * inner);
  P* projected = arena->take<P>(rows * width);
  EARNEST_RETURN_IF_ERROR(rms_norm(x, *layer.mlp_norm, config_.rms_norm_eps, rows, width, normed, arena));
  EARNEST_RETURN_IF_ERROR(multiply(*layer.gate_up, normed, rows, gate_up, arena));
  rowwise::SwiGlu<P> job;
  job.rows = rows;
  job.width = inner;
  job.gate_up = gate_up;
  job.out = gated;
  EARNEST_RETURN_IF_ERROR(rowwise::swiglu(job));
  EARNEST_RETURN_IF_ERROR(layer.down_proj->multiply(gated, rows, projected, arena));
  return add(projected, rows * width, x);
}

}  // namespace earnest::engine
