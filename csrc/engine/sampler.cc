// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace earnest::engine {
namespace {

Status in_range(const char* name, double value, bool holds, const char* range) {
  return holds ? Status() : invalid_argument("generate", name, range, std::to_string(value));
}

bool likelier(double weight, int32_t id, double other_weight, int32_t other_id) {
  return weight > other_weight || (weight == other_weight && id < other_id);
}

}  // namespace

Status check_sampling(const Sampling& sampling, int64_t vocabulary) {
  const auto finite = [](double x) { return std::isfinite(x); };
  const double t = sampling.temperature, r = sampling.repetition_penalty;
  Status status = in_range("temperature", t, finite(t) && t >= 0, "a finite number, 0 or more");
  if (status.ok()) status = in_range("top_k", sampling.top_k, sampling.top_k >= 0, "0 (off) or more");
  if (status.ok()) {
    status =
        in_range("top_p", sampling.top_p, sampling.top_p > 0 && sampling.top_p <= 1, "a number in (0, 1]");
  }
  if (status.ok()) {
    status =
        in_range("min_p", sampling.min_p, sampling.min_p >= 0 && sampling.min_p <= 1, "a number in [0, 1]");
  }
  if (status.ok()) status = in_range("repetition_penalty", r, finite(r) && r > 0, "a finite number above 0");
  for (const double penalty : {sampling.presence_penalty, sampling.frequency_penalty}) {
    if (status.ok()) status = in_range("penalty", penalty, finite(penalty), "a finite number");
  }
  for (const int32_t id : sampling.suppressed) {
    if (status.ok()) status = in_range("suppressed", id, id >= 0 && id < vocabulary, "ids of the vocabulary");
  }
  return status;
}

double uniform(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

Sampler::Sampler(Sampling sampling, int64_t vocabulary) : sampling_(std::move(sampling)) {
  const auto size = static_cast<size_t>(vocabulary);
  const bool counts = sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0;
  if (sampling_.repetition_penalty != 1) heard_.resize(size);
  if (counts) said_.resize(size);
  if (!sampling_.suppressed.empty()) suppressed_.resize(size);
  for (const int32_t id : sampling_.suppressed) suppressed_[static_cast<size_t>(id)] = 1;
}

void Sampler::heard(std::span<const int32_t> prompt) {
  if (heard_.empty()) return;
  for (const int32_t id : prompt) heard_[static_cast<size_t>(id)] = 1;
}

void Sampler::said(int32_t token) {
  heard({&token, 1});
  if (!said_.empty()) ++said_[static_cast<size_t>(token)];
}

double Sampler::penalised(double logit, int32_t id) const {
  const auto at = static_cast<size_t>(id);
  if (!suppressed_.empty() && suppressed_[at]) return -std::numeric_limits<double>::infinity();
  if (!heard_.empty() && heard_[at]) {
    logit = logit > 0 ? logit / sampling_.repetition_penalty : logit * sampling_.repetition_penalty;
  }
  if (!said_.empty() && said_[at]) {
    logit -= sampling_.presence_penalty + sampling_.frequency_penalty * said_[at];
  }
  return logit;
}

// Fills candidates, in the order of their ids, with what is above -inf.
Status Sampler::weigh(std::span<const float> logits, Scratch* candidates) const {
  candidates->clear();
  double most = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const double logit = penalised(logits[i], id);
    if (std::isnan(logits[i]) || logit == std::numeric_limits<double>::infinity()) {
      return invalid_argument("generate", "logits", "finite numbers",
                              "NaN or infinity of token " + std::to_string(i));
    }
    if (logit == -std::numeric_limits<double>::infinity()) continue;
    candidates->push_back({logit, id});
    most = std::max(most, logit);
  }
  if (candidates->empty()) return invalid_argument("generate", "logits", "a token that may be drawn", "none");
  if (sampling_.temperature == 0) return {};  // the logits themselves will do
  for (Candidate& one : *candidates) one.weight = std::exp((one.weight - most) / sampling_.temperature);
  return {};
}

// Leaves what min_p, top_k and top_p leave, in the order of their ids.
void Sampler::cut(Scratch* scratch) const {
  Scratch& candidates = *scratch;
  if (sampling_.min_p > 0) {  // the likeliest has weight 1
    std::erase_if(candidates, [&](const Candidate& one) { return one.weight < sampling_.min_p; });
  }
  const auto likeliest_first = [](const Candidate& a, const Candidate& b) {
    return likelier(a.weight, a.id, b.weight, b.id);
  };
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };
  const auto k = static_cast<size_t>(sampling_.top_k);
  if (k > 0 && k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<int64_t>(k), candidates.end(),
                     likeliest_first);
    candidates.resize(k);
    std::sort(candidates.begin(), candidates.end(), by_id);
  }
  if (sampling_.top_p < 1) {
    double sum = 0, reached = 0;
    for (const Candidate& one : candidates) sum += one.weight;
    // A heap gives the likeliest one after the other: few are needed, where sorting would order all.
    const auto less = [&](const Candidate& a, const Candidate& b) { return likeliest_first(b, a); };
    std::make_heap(candidates.begin(), candidates.end(), less);
    auto rest = candidates.end();
    while (rest != candidates.begin() && reached < sampling_.top_p * sum) {
      std::pop_heap(candidates.begin(), rest, less);
      reached += (--rest)->weight;
    }
    candidates.erase(candidates.begin(), rest);
    std::sort(candidates.begin(), candidates.end(), by_id);
  }
}

Status Sampler::draw(std::span<const float> logits, double uniform, Scratch* scratch, int32_t* token) const {
  Status status = weigh(logits, scratch);
  if (!status.ok()) return status;
  const Scratch& candidates = *scratch;
  if (sampling_.temperature == 0) {
    const auto best = std::max_element(
        candidates.begin(), candidates.end(),
        [](const Candidate& a, const Candidate& b) { return likelier(b.weight, b.id, a.weight, a.id); });
    *token = best->id;
    return {};
  }
  cut(scratch);
  double sum = 0;
  for (const Candidate& one : candidates) sum += one.weight;
  const double aim = uniform * sum;
  double reached = 0;
  *token = candidates.back().id;  // where rounding leaves the sum below the aim
  for (const Candidate& one : candidates) {
    reached += one.weight;
    if (reached > aim) {
      *token = one.id;
      break;
    }
  }
  return {};
}

}  // namespace earnest::engine
