// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/decoder.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "csrc/engine/attend.h"
#include "csrc/engine/decoder_batch.h"
#include "csrc/engine/gather_rows.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/key_pieces.h"
#include "csrc/engine/parcel.h"
#include "kernels/rowwise/rowwise.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "decoder";

// y = norm(x), after x += added where there is something.
template <typename T, typename P>
Status rms_norm(T* x, const P* added, const Array& weight, double eps, int64_t rows, int64_t width, T* y,
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
  job.stream = arena->stream();
  if constexpr (std::is_same_v<T, P>) {
    job.added = added;
    job.sum = x;
  } else if (added != nullptr) {  // each of them is exact in T
    for (int64_t i = 0; i < rows * width; ++i) x[i] += widen(added[i]);
  }
  return rowwise::rms_norm(job, arena->device());
}

// The product of rows of T that are rounded to P, the precision of products, on their way in.
template <typename T, typename P>
Status multiply(const Matrix& matrix, const T* x, int64_t rows, P* y, Arena* arena) {
  if constexpr (std::is_same_v<T, P>) {
    return matrix.multiply(x, rows, y, arena);
  } else {
    const Arena::Scope scope(arena);
    const int64_t count = rows * matrix.inputs();
    P* rounded = arena->take<P>(count);  // on the CPU: a GPU computes in bfloat16 alone
    for (int64_t i = 0; i < count; ++i) narrow(x[i], rounded + i);
    return matrix.multiply(rounded, rows, y, arena);
  }
}

Status wrong(const std::string& argument, const std::string& expected, const std::string& got) {
  return invalid_argument(kOp, argument, expected, got);
}

}  // namespace

// The stream of a pass, room for the rows of it that are wanted, and what a branch adds to it.
template <typename T, typename P>
struct Decoder::Rows {
  T *x, *wanted;
  P* added;
};

Status Decoder::create(const TextConfig& config, Weights* weights) {
  config_ = config;
  precision_ = weights->precision();
  place_ = weights->place();
  products_ = weights->products();
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
  if (pool.place() != place_)
    return wrong("cache", "one on " + name_of(place_), "one on " + name_of(pool.place()));
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
  advance(segments);
  return {};
}

template <typename T, typename P>
Status Decoder::run_as(const std::vector<Segment>& segments, T* hidden, Arena* arena) const {
  const Arena::Scope scope(arena);
  DecoderBatch batch(segments);
  EARNEST_RETURN_IF_ERROR(batch.turn_by(config_));
  if (arena->device() == Device::kCpu) return run_here<T, P>(&batch, hidden, arena);
  if constexpr (std::is_same_v<T, BFloat16>) return run_there(&batch, hidden, arena);
  return unsupported(kOp, "precision", "bfloat16 on cuda", "another");
}

template <typename T, typename P>
Status Decoder::run_here(DecoderBatch* batch, T* hidden, Arena* arena) const {
  const int64_t width = config_.hidden_size;
  Parcel parcel;
  batch->pack(&parcel);
  EARNEST_RETURN_IF_ERROR(parcel.send(kOp, arena));
  T* x = arena->take<T>(batch->rows * width);
  EARNEST_RETURN_IF_ERROR(embed(*batch, x));
  const T* normed = nullptr;
  EARNEST_RETURN_IF_ERROR((transform<T, P>(batch, x, arena, &normed)));
  if (batch->rows == 0) return {};
  return gather_rows<T>(Device::kCpu, {normed, batch->rows}, {}, width, batch->there.restored, batch->rows,
                        hidden);
}

Status Decoder::run_there(DecoderBatch* batch, BFloat16* hidden, Arena* arena) const {
  EARNEST_RETURN_IF_ERROR(send(batch, arena));
  batch->fault = arena->take<FaultWord>(1);
  BFloat16* const made = arena->take<BFloat16>(batch->wanted * config_.hidden_size);
  EARNEST_RETURN_IF_ERROR(launch(batch, arena, made));
  const auto bytes = static_cast<size_t>(batch->rows * config_.hidden_size) * sizeof(BFloat16);
  EARNEST_RETURN_IF_ERROR(copy(kOp, place_.device, hidden, made, bytes));
  return batch->check_faults();
}

// Rows of tokens from the table, and given ones.
template <typename T>
Status Decoder::embed(const DecoderBatch& batch, T* x) const {
  const int64_t width = config_.hidden_size;
  for (const Segment& segment : batch.segments) {
    const T* given = static_cast<const T*>(segment.embeddings);
    for (int64_t i = 0; i < segment.count; ++i, x += width) {
      if (segment.ids[i] == kGivenEmbedding) {
        std::memcpy(x, given, static_cast<size_t>(width) * sizeof(T));
        given += width;
      } else {
        EARNEST_RETURN_IF_ERROR(embeddings_->copy_row(segment.ids[i], x));
      }
    }
  }
  return {};
}

// Which rows of the table there, and those that are not in it.
Status Decoder::list_embeddings(DecoderBatch* batch) const {
  const size_t row_bytes = static_cast<size_t>(config_.hidden_size) * sizeof(BFloat16);
  std::vector<int64_t> index;
  const auto add = [&] {
    index.push_back(-1 - static_cast<int64_t>(batch->sent.size() / row_bytes));
    batch->sent.resize(batch->sent.size() + row_bytes);
    return batch->sent.data() + batch->sent.size() - row_bytes;
  };
  for (const Segment& segment : batch->segments) {
    const char* given = static_cast<const char*>(segment.embeddings);
    for (int64_t i = 0; i < segment.count; ++i) {
      if (segment.ids[i] == kGivenEmbedding) {
        std::memcpy(add(), given, row_bytes);
        given += row_bytes;
      } else if (embeddings_->numbers() == nullptr) {
        EARNEST_RETURN_IF_ERROR(embeddings_->copy_row(segment.ids[i], add()));
      } else {
        index.push_back(segment.ids[i]);
      }
    }
  }
  while (static_cast<int64_t>(index.size()) < batch->rows) {  // of rows that fill the batch up
    if (embeddings_->numbers() == nullptr) {
      add();
    } else {
      index.push_back(0);
    }
  }
  batch->index = std::move(index);
  return {};
}

Status Decoder::send(DecoderBatch* batch, Arena* arena) const {
  EARNEST_RETURN_IF_ERROR(list_embeddings(batch));
  Parcel parcel;
  batch->pack(&parcel);
  return parcel.send(kOp, arena);
}

Status Decoder::launch(DecoderBatch* batch, Arena* arena, BFloat16* hidden) const {
  const int64_t width = config_.hidden_size;
  const auto* table = static_cast<const BFloat16*>(embeddings_->numbers());
  const RowsOf<BFloat16> of_tokens{table, table == nullptr ? 0 : config_.vocab_size};
  const RowsOf<BFloat16> others{reinterpret_cast<const BFloat16*>(batch->there.sent),
                                static_cast<int64_t>(batch->sent.size() / sizeof(BFloat16)) / width};
  EARNEST_RETURN_IF_ERROR(batch->watch(arena->stream()));
  BFloat16* x = arena->take<BFloat16>(batch->rows * width);
  EARNEST_RETURN_IF_ERROR(gather_rows(place_.device, of_tokens, others, width, batch->there.index,
                                      batch->rows, x, batch->fault, arena->stream()));
  const BFloat16* normed = nullptr;
  EARNEST_RETURN_IF_ERROR((transform<BFloat16, BFloat16>(batch, x, arena, &normed)));
  if (batch->rows == 0) return {};
  return gather_rows<BFloat16>(place_.device, {normed, batch->rows}, {}, width, batch->there.restored,
                               batch->rows, hidden, batch->fault, arena->stream());
}

void Decoder::advance(const std::vector<Segment>& segments) {
  for (const Segment& segment : segments) segment.cache->length_ += segment.count;
}

// From embeddings to hidden states of the rows that are wanted, in the order of their caches.
template <typename T, typename P>
Status Decoder::transform(DecoderBatch* batch, T* x, Arena* arena, const T** normed) const {
  const int64_t width = config_.hidden_size;
  Rows<T, P> rows;
  rows.x = x;
  rows.wanted = arena->take<T>(batch->wanted * width);
  rows.added = arena->take<P>(batch->rows * width);
  for (size_t i = 0; i < layers_.size(); ++i) {
    EARNEST_RETURN_IF_ERROR((attend<T, P>(i, batch, &rows, arena)));
    if (batch->rows == 0) return {};
    EARNEST_RETURN_IF_ERROR((feed_forward<T, P>(layers_[i], batch->rows, rows, arena)));
  }
  T* made = arena->take<T>(batch->rows * width);
  *normed = made;
  return rms_norm(rows.x, rows.added, *norm_, config_.rms_norm_eps, batch->rows, width, made, arena);
}

// x += added, if there is something; added = o_proj(attention(...)). New keys and values go into the caches
// first. The last layer goes on with the rows that are wanted.
template <typename T, typename P>
Status Decoder::attend(size_t index, DecoderBatch* batch, Rows<T, P>* stream, Arena* arena) const {
  const Arena::Scope scope(arena);
  const Layer& layer = layers_[index];
  const int64_t width = config_.hidden_size, dim = config_.head_dim(), rows = batch->rows;
  const int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  const Device device = arena->device();
  T* normed = arena->take<T>(rows * width);
  P* qkv = arena->take<P>(rows * layer.qkv->outputs());
  T* mixed = arena->take<T>(rows * width);
  EARNEST_RETURN_IF_ERROR(rms_norm(stream->x, index == 0 ? nullptr : stream->added, *layer.attention_norm,
                                   config_.rms_norm_eps, rows, width, normed, arena));
  EARNEST_RETURN_IF_ERROR(multiply(*layer.qkv, normed, rows, qkv, arena));

  const KVPool& pool = *batch->segments[0].cache->pool();
  const auto at = static_cast<int64_t>(index);
  const int64_t first = batch->first;
  rowwise::Rotary<P, T> turn;
  turn.rows = rows;
  turn.heads = heads;
  turn.kv_heads = kv_heads;
  turn.dim = dim;
  turn.cosine = batch->there.cosine;
  turn.sine = batch->there.sine;
  turn.qkv = qkv;
  turn.q = arena->take<T>(rows * width);
  turn.k = reinterpret_cast<T*>(pool.keys(at, first));
  turn.v = reinterpret_cast<T*>(pool.values(at, first));
  turn.slots = batch->there.slots;
  turn.places = batch->places();
  turn.fault = batch->fault;
  turn.stream = arena->stream();
  EARNEST_RETURN_IF_ERROR(rowwise::rotary(turn, device));

  const T* q = turn.q;
  if (index + 1 == layers_.size() && batch->wanted < rows) {
    T* kept = arena->take<T>(batch->wanted * width);
    for (const auto& [from, to] : {std::pair<const T*, T*>(q, kept), {stream->x, stream->wanted}}) {
      EARNEST_RETURN_IF_ERROR(gather_rows<T>(device, {from, rows}, {}, width, batch->there.kept,
                                             batch->wanted, to, batch->fault, arena->stream()));
    }
    q = kept;
    stream->x = stream->wanted;
    batch->become_wanted();
    if (batch->rows == 0) return {};
  }
  attention::Params params = attention_over<T>(heads, kv_heads, dim);
  params.sequences = static_cast<int64_t>(batch->used.size());
  params.tokens_q = batch->rows;
  params.tokens_k = batch->places();
  params.cu_seqlens_q = batch->there.cu_seqlens_q;
  params.cu_seqlens_k = batch->there.cu_seqlens_k;
  params.seqused_k = batch->there.used;
  params.causal = true;
  params.q = q;
  params.k = turn.k;
  params.v = turn.v;
  params.fault = batch->fault;
  if (takes_pieces(products_, batch->queries(), batch->used)) params.most_keys = batch->most_keys;
  EARNEST_RETURN_IF_ERROR(engine::attend(params, mixed, arena));
  return multiply(*layer.o_proj, mixed, batch->rows, stream->added, arena);
}

// x += added; added = down_proj(...).
template <typename T, typename P>
Status Decoder::feed_forward(const Layer& layer, int64_t rows, const Rows<T, P>& stream, Arena* arena) const {
  const Arena::Scope scope(arena);
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  T* normed = arena->take<T>(rows * width);
  P* gate_up = arena->take<P>(rows * 2 * inner);
  P* gated = arena->take<P>(rows * inner);
  EARNEST_RETURN_IF_ERROR(
      rms_norm(stream.x, stream.added, *layer.mlp_norm, config_.rms_norm_eps, rows, width, normed, arena));
  EARNEST_RETURN_IF_ERROR(multiply(*layer.gate_up, normed, rows, gate_up, arena));
  rowwise::SwiGlu<P> job;
  job.rows = rows;
  job.width = inner;
  job.gate_up = gate_up;
  job.out = gated;
  job.stream = arena->stream();
  EARNEST_RETURN_IF_ERROR(rowwise::swiglu(job, arena->device()));
  return layer.down_proj->multiply(gated, rows, stream.added, arena);
}

}  // namespace earnest::engine
