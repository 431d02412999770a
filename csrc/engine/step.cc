// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/step.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "csrc/engine/guard.h"
#include "kernels/common/thread_pool.h"

namespace earnest::engine {
namespace {

constexpr size_t kRowsAtOnce = 32;  // of logits: 20 MB where the vocabulary has 158,720 tokens

size_t row_bytes_of(const Model& model) {
  return static_cast<size_t>(model.config().text.hidden_size) * size_of(model.precision());
}

void hear(const Model& model, Arena* arena, Step* step) {
  const HeardChunk& chunk = *step->chunk;
  step->heard = guarded("audio", [&] {
    arena->reset();
    step->embeddings.resize(static_cast<size_t>(chunk.rows) * row_bytes_of(model));
    return model.hear(chunk.sound(), step->embeddings.data(), arena);
  });
}

Segment segment_of(StepRow* row, size_t row_bytes) {
  Segment segment;
  segment.cache = &row->prefix->cache;
  segment.count = static_cast<int64_t>(row->ids.size());
  segment.ids = row->ids.data();
  segment.embeddings = row->embeddings.empty() ? nullptr : row->embeddings.data();
  segment.embedding_rows = static_cast<int64_t>(row->embeddings.size() / row_bytes);
  return segment;
}

// A token that hears all before it is no number where one of them is none.
bool finite(const StepRow& row, Precision precision) {
  const auto all = [&](auto type, const auto& is_finite) {
    const auto* numbers = reinterpret_cast<const decltype(type)*>(row.hidden.data());
    return std::all_of(numbers, numbers + row.hidden.size() / sizeof type, is_finite);
  };
  if (precision == Precision::kBFloat16) {
    return all(BFloat16(), [](BFloat16 x) { return std::isfinite(widen(x)); });
  }
  return all(0.0F, [](float x) { return std::isfinite(x); });
}

void take_hidden(const char* hidden, size_t row_bytes, Precision precision,
                 const std::vector<StepRow*>& rows) {
  for (StepRow* row : rows) {
    row->hidden.assign(hidden, hidden + row_bytes);
    hidden += row_bytes;
    row->read = finite(*row, precision);
    if (row->read) continue;
    row->status = {StatusCode::kInternal,
                   "[decoder] hidden states: expected finite numbers, got NaN or infinity"};
  }
}

Status forward(const Model& model, Arena* arena, const std::vector<StepRow*>& rows) {
  const size_t row_bytes = row_bytes_of(model);
  return guarded("decoder", [&]() -> Status {
    arena->reset();
    std::vector<Segment> segments;
    for (StepRow* row : rows) {
      segments.push_back(segment_of(row, row_bytes));
    }
    char* hidden = arena->take<char>(static_cast<int64_t>(rows.size() * row_bytes));
    EARNEST_RETURN_IF_ERROR(model.forward(segments, hidden, arena));
    take_hidden(hidden, row_bytes, model.precision(), rows);
    return {};
  });
}

// A token of each row that has numbers, from its logits.
Status sample(const float* logits, int64_t vocabulary, std::span<StepRow* const> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t lanes = std::min<int64_t>(count, num_threads());
  std::vector<Sampler::Scratch> scratch(static_cast<size_t>(lanes));
  std::atomic<int64_t> next{0};
  parallel_for(lanes, [&](int64_t lane) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      StepRow* row = rows[static_cast<size_t>(i)];
      if (!row->status.ok() || row->drawn) continue;
      row->status = guarded("generate", [&] {
        return row->answer->sampler.draw({logits + i * vocabulary, static_cast<size_t>(vocabulary)},
                                         uniform(row->answer->options.seed, row->index),
                                         &scratch[static_cast<size_t>(lane)], &row->token);
      });
    }
  });
  return {};
}

std::vector<Drawing> drawings_of(std::span<StepRow* const> rows) {
  std::vector<Drawing> drawings;
  for (const StepRow* row : rows)
    drawings.push_back({&row->answer->sampler, uniform(row->answer->options.seed, row->index)});
  return drawings;
}

void take_drawn(const std::vector<Drawing>& drawings, std::span<StepRow* const> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i]->drawn = drawings[i].drawn;
    rows[i]->token = drawings[i].token;
    if (rows[i]->status.ok()) rows[i]->status = drawings[i].status;
  }
}

// A token of each row, from its hidden state.
Status draw(const Model& model, Arena* arena, std::span<StepRow*> rows) {
  const size_t row_bytes = row_bytes_of(model);
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t vocabulary = model.config().text.vocab_size;
  arena->reset();
  float* logits = arena->take<float>(count * vocabulary);
  char* hidden = arena->take<char>(count * static_cast<int64_t>(row_bytes));
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy(rows[i]->hidden.begin(), rows[i]->hidden.end(), hidden + i * row_bytes);
  }
  std::vector<Drawing> drawings = drawings_of(rows);
  EARNEST_RETURN_IF_ERROR(model.logits(hidden, count, logits, arena, drawings));
  take_drawn(drawings, rows);
  return sample(logits, vocabulary, rows);
}

// Both at once, where every row is a token of an answer: a step that a GPU can record.
Status decode(const Model& model, Arena* arena, DecodeGraphs* graphs, const std::vector<StepRow*>& rows) {
  const size_t row_bytes = row_bytes_of(model);
  const int64_t vocabulary = model.config().text.vocab_size;
  const auto count = static_cast<int64_t>(rows.size());
  return guarded("decoder", [&]() -> Status {
    arena->reset();
    std::vector<Segment> segments;
    for (StepRow* row : rows) segments.push_back(segment_of(row, row_bytes));
    std::vector<Drawing> drawings = drawings_of(rows);
    float* logits = arena->take<float>(count * vocabulary);
    char* hidden = arena->take<char>(count * static_cast<int64_t>(row_bytes));
    for (StepRow* row : rows)
      row->hidden.resize(row_bytes);  // as nothing may fail once tokens have been read
    EARNEST_RETURN_IF_ERROR(model.decode(segments, drawings, hidden, logits, arena, graphs));
    take_hidden(hidden, row_bytes, model.precision(), rows);
    take_drawn(drawings, rows);
    const Status sampled = guarded("generate", [&] { return sample(logits, vocabulary, rows); });
    for (StepRow* row : rows)
      if (!sampled.ok() && !row->drawn && row->status.ok()) row->status = sampled;
    return {};
  });
}

bool is_decoded(const Model& model, const std::vector<StepRow*>& rows) {
  return model.device() == Device::kCuda && !rows.empty() &&
         static_cast<int64_t>(rows.size()) <= DecodeGraphs::kMostRows &&
         std::all_of(rows.begin(), rows.end(), [](const StepRow* row) {
           return row->draws && row->ids.size() == 1 && row->embeddings.empty();
         });
}

// Where all together fail, each tries alone.
void read_and_draw(const Model& model, Arena* arena, const std::vector<StepRow*>& rows) {
  std::vector<StepRow*> drawing;
  Status status = rows.empty() ? Status() : forward(model, arena, rows);
  for (StepRow* row : rows) {
    if (!status.ok() && rows.size() == 1) row->status = status;
    if (!status.ok() && rows.size() > 1) {
      const Status own = forward(model, arena, {row});
      if (!own.ok()) row->status = own;
    }
    if (row->status.ok() && row->draws) drawing.push_back(row);
  }
  for (size_t first = 0; first < drawing.size(); first += kRowsAtOnce) {
    const std::span<StepRow*> part =
        std::span(drawing).subspan(first, std::min(kRowsAtOnce, drawing.size() - first));
    status = guarded("generate", [&] { return draw(model, arena, part); });
    if (status.ok()) continue;
    for (StepRow* row : part) row->status = status;
  }
}

}  // namespace

void gather(const Transcript& tokens, int64_t first, int64_t count, size_t row_bytes, StepRow* row) {
  const auto begin = tokens.ids().begin() + first;
  row->ids.assign(begin, begin + count);
  for (auto place = tokens.audio_from(first); place != tokens.audio().end(); ++place) {
    const int64_t from = std::max(place->start, first);
    const int64_t to = std::min(place->start + place->chunk->rows, first + count);
    if (from >= to) break;
    std::fill(row->ids.begin() + (from - first), row->ids.begin() + (to - first), kGivenEmbedding);
    const char* rows = place->chunk->embeddings.data();
    row->embeddings.insert(row->embeddings.end(), rows + static_cast<size_t>(from - place->start) * row_bytes,
                           rows + static_cast<size_t>(to - place->start) * row_bytes);
  }
}

void compute(const Model& model, Arena* arena, DecodeGraphs* graphs, Step* step) {
  if (step->chunk != nullptr) hear(model, arena, step);
  std::vector<StepRow*> rows;
  for (StepRow& row : step->rows) rows.push_back(&row);
  if (!is_decoded(model, rows) || !decode(model, arena, graphs, rows).ok()) read_and_draw(model, arena, rows);
  for (StepRating& one : step->ratings) {
    const double temperature = one.answer->options.sampling.temperature;
    if (!rate(model, one.hidden, one.tokens, temperature, arena, &one.logp).ok()) one.logp.clear();
  }
}

Status rate(const Model& model, const std::vector<char>& hidden, const std::vector<int64_t>& tokens,
            double temperature, Arena* arena, std::vector<float>* logp) {
  return guarded("logprob", [&]() -> Status {
    arena->reset();
    logp->resize(tokens.size());
    if (tokens.empty()) return {};
    std::vector<float> entropy(tokens.size());
    return model.logprob(hidden.data(), static_cast<int64_t>(tokens.size()), tokens.data(),
                         temperature == 0 ? 1 : temperature, logp->data(), entropy.data(), arena);
  });
}

}  // namespace earnest::engine
