// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/generation.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "csrc/engine/guard.h"
#include "kernels/common/thread_pool.h"

namespace earnest::engine {
namespace {

// A sequence that is still alive.
struct Live {
  size_t index;  // among all
  bool stopped = false;
  int64_t left;  // tokens that may still follow a stop token
};

class Loop {
 public:
  Loop(const Model& model, const GenerationSettings& settings, const double* uniforms, Arena* arena,
       std::vector<Generated>* generated)
      : model_(model),
        settings_(settings),
        uniforms_(uniforms),
        arena_(arena),
        generated_(*generated),
        row_bytes_(static_cast<size_t>(model.config().text.hidden_size) * size_of(model.precision())),
        rates_as_it_draws_(model.has_scores() &&
                           (settings.sampling.temperature == 0 || settings.sampling.temperature == 1)) {}

  Status run(std::vector<KVCache>* caches, const void* hidden, void* drawn_from) {
    const size_t count = caches->size();
    generated_.assign(count, {});
    samplers_.assign(count, Sampler(settings_.sampling, model_.config().text.vocab_size));
    for (size_t i = 0; i < count; ++i) live_.push_back({i, false, settings_.after_stop});
    hidden_.assign(static_cast<const char*>(hidden), static_cast<const char*>(hidden) + count * row_bytes_);
    while (!live_.empty()) {
      if (drawings_.empty()) EARNEST_RETURN_IF_ERROR(read_logits());
      EARNEST_RETURN_IF_ERROR(draw());
      take(*caches, static_cast<char*>(drawn_from));
      if (live_.empty()) break;
      EARNEST_RETURN_IF_ERROR(advance(caches));
    }
    return rates_as_it_draws_ ? Status() : rate();
  }

 private:
  // Of every live sequence, from hidden_.
  Status read_logits() {
    const auto rows = static_cast<int64_t>(live_.size());
    arena_->reset();
    logits_ = arena_->take<float>(rows * model_.config().text.vocab_size);
    if (!rates_as_it_draws_) {
      for (const Live& one : live_) drawings_.push_back({&samplers_[one.index], uniform_of(one)});
      return model_.logits(hidden_.data(), rows, logits_, arena_, drawings_);
    }
    norms_.resize(live_.size());
    return model_.scores(hidden_.data(), rows, logits_, norms_.data(), arena_);
  }

  double uniform_of(const Live& one) const {
    return uniforms_[one.index * static_cast<size_t>(settings_.most_tokens) +
                     generated_[one.index].ids.size()];
  }

  // A token for every live sequence, from its logits where it has not been drawn before they came.
  Status draw() {
    const auto rows = static_cast<int64_t>(live_.size());
    const int64_t vocabulary = model_.config().text.vocab_size;
    tokens_.assign(live_.size(), 0);
    const int64_t lanes = std::min<int64_t>(rows, num_threads());
    std::vector<Sampler::Scratch> scratch(static_cast<size_t>(lanes));
    std::vector<Status> said(live_.size());
    std::atomic<int64_t> next{0};
    parallel_for(lanes, [&](int64_t lane) {
      for (int64_t row = next.fetch_add(1); row < rows; row = next.fetch_add(1)) {
        const auto at = static_cast<size_t>(row);
        if (!drawings_.empty() && drawings_[at].drawn) {
          said[at] = drawings_[at].status;
          tokens_[at] = drawings_[at].token;
          continue;
        }
        const std::span<const float> mine(logits_ + row * vocabulary, static_cast<size_t>(vocabulary));
        try {
          said[at] = samplers_[live_[at].index].draw(mine, uniform_of(live_[at]),
                                                     &scratch[static_cast<size_t>(lane)], &tokens_[at]);
        } catch (const std::bad_alloc&) {  // a task must not throw
          said[at] = out_of_memory("generate");
        }
      }
    });
    for (const Status& status : said) EARNEST_RETURN_IF_ERROR(status);
    for (size_t row = 0; rates_as_it_draws_ && row < live_.size(); ++row) {
      const float logit = logits_[static_cast<int64_t>(row) * vocabulary + tokens_[row]];
      generated_[live_[row].index].logp.push_back(logprob::logp_of(logit, norms_[row]));
    }
    return {};
  }

  // Notes the tokens, and lets those go that have ended.
  void take(const std::vector<KVCache>& caches, char* drawn_from) {
    std::vector<Live> alive;
    next_ids_.clear();
    for (size_t row = 0; row < live_.size(); ++row) {
      Live one = live_[row];
      Generated& to = generated_[one.index];
      const char* from = hidden_.data() + row * row_bytes_;
      to.ids.push_back(tokens_[row]);
      samplers_[one.index].said(tokens_[row]);
      if (!rates_as_it_draws_) {
        drawn_.insert(drawn_.end(), from, from + row_bytes_);
        drawn_by_.push_back(one.index);
      }
      std::memcpy(drawn_from + one.index * row_bytes_, from, row_bytes_);
      if (one.stopped) --one.left;
      one.stopped = one.stopped || std::find(settings_.stop.begin(), settings_.stop.end(), tokens_[row]) !=
                                       settings_.stop.end();
      to.stopped = one.stopped && one.left == 0;
      const KVCache& cache = caches[one.index];
      const bool full =
          static_cast<int64_t>(to.ids.size()) == settings_.most_tokens ||
          cache.length() == std::min(cache.capacity(), model_.config().text.max_position_embeddings);
      if (to.stopped || full) continue;
      alive.push_back(one);
      next_ids_.push_back(tokens_[row]);
    }
    live_ = std::move(alive);
  }

  Status advance(std::vector<KVCache>* caches) {
    std::vector<Segment> segments(live_.size());
    for (size_t row = 0; row < live_.size(); ++row) {
      segments[row].cache = &(*caches)[live_[row].index];
      segments[row].count = 1;
      segments[row].ids = &next_ids_[row];
    }
    hidden_.resize(live_.size() * row_bytes_);
    arena_->reset();
    drawings_.clear();
    if (model_.device() != Device::kCuda || !DecodeGraphs::can_take(segments))
      return model_.forward(segments, hidden_.data(), arena_);
    for (const Live& one : live_) drawings_.push_back({&samplers_[one.index], uniform_of(one)});
    logits_ = arena_->take<float>(static_cast<int64_t>(live_.size()) * model_.config().text.vocab_size);
    return model_.decode(segments, drawings_, hidden_.data(), logits_, arena_, &graphs_);
  }

  // The log-probabilities of all tokens at once, where the logits they are drawn from are not those they are
  // taken from: a row's do not depend on when they are computed.
  Status rate() {
    constexpr size_t kRows = 4096;
    std::vector<size_t> said(generated_.size(), 0);
    const double temperature = settings_.sampling.temperature == 0 ? 1 : settings_.sampling.temperature;
    for (size_t first = 0; first < drawn_by_.size(); first += kRows) {
      const size_t rows = std::min(kRows, drawn_by_.size() - first);
      std::vector<int64_t> targets(rows);
      std::vector<float> logp(rows), entropy(rows);
      for (size_t i = 0; i < rows; ++i) {
        const size_t index = drawn_by_[first + i];
        targets[i] = generated_[index].ids[said[index]++];
      }
      arena_->reset();
      EARNEST_RETURN_IF_ERROR(model_.logprob(drawn_.data() + first * row_bytes_, static_cast<int64_t>(rows),
                                             targets.data(), temperature, logp.data(), entropy.data(),
                                             arena_));
      for (size_t i = 0; i < rows; ++i) generated_[drawn_by_[first + i]].logp.push_back(logp[i]);
    }
    return {};
  }

  const Model& model_;
  const GenerationSettings& settings_;
  const double* uniforms_;
  Arena* arena_;
  std::vector<Generated>& generated_;
  const size_t row_bytes_;
  const bool rates_as_it_draws_;  // else all tokens at the end
  std::vector<Sampler> samplers_;
  std::vector<Live> live_;
  std::vector<char> hidden_;             // [live, hidden_size]: what the next tokens are drawn from
  float* logits_ = nullptr;              // [live, vocab_size] of the same, in the arena
  std::vector<Drawing> drawings_;        // of the same, where the model read its logits; else none
  DecodeGraphs graphs_;                  // of a GPU
  std::vector<int32_t> tokens_;          // of the last draw, one for each row of it
  std::vector<logprob::RowNorm> norms_;  // of the same rows
  std::vector<int64_t> next_ids_;        // of those still alive
  std::vector<char> drawn_;              // [all tokens, hidden_size], in the order in which they were drawn
  std::vector<size_t> drawn_by_;         // whose they were
};

}  // namespace

Status generate(const Model& model, const GenerationSettings& settings, std::vector<KVCache>* caches,
                const void* hidden, const double* uniforms, Arena* arena, std::vector<Generated>* generated,
                void* drawn_from) {
  EARNEST_RETURN_IF_ERROR(check_sampling(settings.sampling, model.config().text.vocab_size));
  if (settings.most_tokens < 1) {
    return invalid_argument("generate", "most_tokens", "1 or more", std::to_string(settings.most_tokens));
  }
  if (settings.after_stop < 0) {
    return invalid_argument("generate", "after_stop", "0 or more", std::to_string(settings.after_stop));
  }
  return Loop(model, settings, uniforms, arena, generated).run(caches, hidden, drawn_from);
}

}  // namespace earnest::engine
