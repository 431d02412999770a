// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "kernels/sampling/sampling.h"

namespace earnest::engine {
namespace {

Status in_range(const char* name, double value, bool holds, const char* range) {
  return holds ? Status() : invalid_argument("generate", name, range, std::to_string(value));
}

using Candidate = Sampler::Candidate;

bool likelier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

bool by_id(const Candidate& a, const Candidate& b) { return a.id < b.id; }

std::vector<Sampler::Run> runs_of(std::vector<int32_t> ids) {
  if (!std::is_sorted(ids.begin(), ids.end())) std::sort(ids.begin(), ids.end());
  std::vector<Sampler::Run> runs;
  for (const int32_t id : ids) {
    const int32_t end = runs.empty() ? -1 : runs.back().first + runs.back().count;
    if (id > end || runs.empty()) {
      runs.push_back({id, 1});
    } else if (id == end) {
      ++runs.back().count;
    }
  }
  return runs;
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
  if (sampling_.repetition_penalty != 1) heard_.resize(size);
  if (sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0) said_.resize(size);
  suppressed_ = runs_of(sampling_.suppressed);
}

void Sampler::heard(std::span<const int32_t> prompt) {
  if (heard_.empty()) return;
  for (const int32_t id : prompt) {
    if (!std::exchange(heard_[static_cast<size_t>(id)], 1)) heard_ids_.push_back(id);
  }
}

void Sampler::said(int32_t token) {
  heard({&token, 1});
  if (!said_.empty() && said_[static_cast<size_t>(token)]++ == 0) said_ids_.push_back(token);
}

bool Sampler::is_plain() const {
  constexpr size_t kMostRuns = 256;  // which go to the GPU with each step
  return heard_.empty() && said_.empty() && !cuts() && suppressed_.size() <= kMostRuns;
}

// The logits, lowered where they are to be.
void Sampler::read(std::span<const float> logits, std::vector<double>* values) const {
  values->assign(logits.begin(), logits.end());
  for (const int32_t id : heard_ids_) {
    double& logit = (*values)[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / sampling_.repetition_penalty : logit * sampling_.repetition_penalty;
  }
  for (const int32_t id : said_ids_) {
    const auto at = static_cast<size_t>(id);
    (*values)[at] -= sampling_.presence_penalty + sampling_.frequency_penalty * said_[at];
  }
  for (const int32_t id : sampling_.suppressed) {
    double& logit = (*values)[static_cast<size_t>(id)];
    if (!std::isnan(logit)) logit = -std::numeric_limits<double>::infinity();
  }
}

// Leaves what min_p, top_k and top_p leave, in the order of their ids; the likeliest has weight 1.
void Sampler::choose(Scratch* scratch) const {
  const std::vector<double>& weights = scratch->values;
  std::vector<Candidate>& candidates = scratch->candidates;
  double sum = 0, least = sampling_.min_p;
  if (sampling_.top_p < 1 && sampling_.min_p == 0 && sampling_.top_k == 0) {
    for (const double one : scratch->sums) sum += one;
    // All that weigh less than this share do not weigh 1 - top_p together, so none of them can be among the
    // likeliest that reach top_p. (Half of it, for rounding.)
    least = 0.5 * (1 - sampling_.top_p) * sum / static_cast<double>(weights.size());
  }
  candidates.clear();
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] >= least && weights[i] > 0) candidates.push_back({weights[i], static_cast<int32_t>(i)});
  }
  const auto k = static_cast<size_t>(sampling_.top_k);
  if (k > 0 && k < candidates.size()) keep_likeliest(&candidates);
  if (sampling_.top_p < 1) {
    if (sum == 0) {
      for (const Candidate& one : candidates) sum += one.weight;
    }
    keep_nucleus(sum, &candidates);
  }
}

void Sampler::keep_likeliest(std::vector<Candidate>* candidates) const {
  const auto kth = candidates->begin() + sampling_.top_k;
  std::nth_element(candidates->begin(), kth, candidates->end(), likelier);
  candidates->erase(kth, candidates->end());
  std::sort(candidates->begin(), candidates->end(), by_id);
}

// The likeliest that reach top_p of the sum. A heap gives them one after the other: few are needed, where
// sorting would order all.
void Sampler::keep_nucleus(double sum, std::vector<Candidate>* candidates) const {
  const auto less = [](const Candidate& a, const Candidate& b) { return likelier(b, a); };
  std::make_heap(candidates->begin(), candidates->end(), less);
  auto rest = candidates->end();
  double reached = 0;
  while (rest != candidates->begin() && reached < sampling_.top_p * sum) {
    std::pop_heap(candidates->begin(), rest, less);
    reached += (--rest)->weight;
  }
  candidates->erase(candidates->begin(), rest);
  std::sort(candidates->begin(), candidates->end(), by_id);
}

Status Sampler::draw(std::span<const float> logits, double uniform, Scratch* scratch, int32_t* token) const {
  read(logits, &scratch->values);
  std::vector<double>& values = scratch->values;
  sampling::Weigh job;
  job.count = static_cast<int64_t>(values.size());
  if (sampling_.temperature == 0) {
    int64_t likeliest = 0;
    if (Status status = sampling::likeliest(values.data(), job.count, &likeliest); !status.ok())
      return status;
    *token = static_cast<int32_t>(likeliest);
    return {};
  }
  scratch->sums.resize(static_cast<size_t>(sampling::blocks_of(job.count)));
  job.temperature = sampling_.temperature;
  job.values = values.data();
  job.sums = scratch->sums.data();
  if (Status status = sampling::run(job); !status.ok()) return status;
  if (!cuts()) {
    *token = static_cast<int32_t>(sampling::draw(job, uniform));
    return {};
  }
  choose(scratch);
  const std::vector<Candidate>& candidates = scratch->candidates;
  double sum = 0, reached = 0;
  for (const Candidate& one : candidates) sum += one.weight;
  const double aim = uniform * sum;
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
