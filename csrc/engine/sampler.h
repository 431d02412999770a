// SPDX-License-Identifier: Apache-2.0
// From a row of logits to a token: penalties, temperature, what is cut off, and one draw.
//
//   l_v  the logits, lowered where v was said before:
//        repetition r   l_v > 0 ? l_v / r : l_v r   of tokens in the prompt or the reply   (arXiv 1909.05858)
//        presence, frequency   l_v - presence - frequency * times v stands in the reply    (OpenAI's
//        definition)
//   p_v = exp(l_v / temperature) / sum
//   cut  min_p: p_v < min_p max p;  top_k: all but the k likeliest;  top_p: what comes after the likeliest
//   whose
//        sum reaches top_p (arXiv 1904.09751); each of what the one before left. Ties: the smaller id is
//        likelier.
//   draw the first token, by id, whose cumulative p exceeds uniform * sum: inverse transform sampling
//
// Arithmetic in double (kernels/sampling). The same logits, history and uniform number give the same token on
// every machine, whatever else runs beside.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/status.h"

namespace earnest::engine {

struct Sampling {
  double temperature = 1.0;         // 0: the likeliest, no draw
  int32_t top_k = 0;                // 0: off
  double top_p = 1.0;               // in (0, 1]
  double min_p = 0.0;               // in [0, 1]
  double repetition_penalty = 1.0;  // above 0
  double presence_penalty = 0.0, frequency_penalty = 0.0;
  std::vector<int32_t> suppressed = {};  // never drawn, such as rows of the vocabulary that mean nothing
};

// Whether every number is in its range and every id in the vocabulary.
Status check_sampling(const Sampling& sampling, int64_t vocabulary);

// A number in [0, 1) that depends on (seed, index) alone: SplitMix64 of Steele, Lea and Flood (OOPSLA 2014).
double uniform(uint64_t seed, uint64_t index);

class Sampler {
 public:
  // What a draw needs while it lasts: one for each thread that draws, whatever the number of samplers.
  struct Candidate {
    double weight;  // relative to the likeliest's
    int32_t id;
  };
  struct Scratch {
    std::vector<double> values, sums;  // logits, then weights, of the whole vocabulary
    std::vector<Candidate> candidates;
  };

  struct Run {  // of tokens, one after another
    int32_t first, count;
  };

  Sampler(Sampling sampling, int64_t vocabulary);  // checked before

  void heard(std::span<const int32_t> prompt);  // counts for the repetition penalty
  void said(int32_t token);                     // counts for all penalties

  // uniform in [0, 1). An error where a logit is NaN, all are -inf or one is +inf; the token then stays as it
  // was.
  Status draw(std::span<const float> logits, double uniform, Scratch* scratch, int32_t* token) const;

  // Whether a draw is of the logits as they are, but for what is suppressed: kernels/sampling/draws.h can.
  bool is_plain() const;
  double temperature() const { return sampling_.temperature; }
  std::span<const Run> suppressed() const { return suppressed_; }

 private:
  void read(std::span<const float> logits, std::vector<double>* values) const;
  bool cuts() const { return sampling_.min_p > 0 || sampling_.top_k > 0 || sampling_.top_p < 1; }
  void choose(Scratch* scratch) const;
  void keep_likeliest(std::vector<Candidate>* candidates) const;
  void keep_nucleus(double sum, std::vector<Candidate>* candidates) const;

  Sampling sampling_;
  std::vector<uint8_t> heard_;  // [vocabulary] or empty where nobody asks
  std::vector<uint32_t> said_;  // [vocabulary], times; or empty
  std::vector<int32_t> heard_ids_, said_ids_;
  std::vector<Run> suppressed_;
};

}  // namespace earnest::engine
