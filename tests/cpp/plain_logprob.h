// SPDX-License-Identifier: Apache-2.0
// One problem of log-probabilities with its arrays, the oracle's results, and those of plain arithmetic in
// the precision of the rows: what a kernel's error is measured by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/logprob/logprob.h"
#include "tests/cpp/check.h"

template <typename S>
struct PlainCase {
  using Row = std::conditional_t<sizeof(S) == 8, double, float>;

  earnest::logprob::Problem problem;  // its sizes; arrays are the vectors'
  std::vector<S> hidden, weight, grad_hidden, grad_weight;
  std::vector<int64_t> targets;
  std::vector<Row> logp, entropy, lse, grad_logp, grad_entropy, grad_lse;

  PlainCase(int64_t rows, int64_t depth, int64_t vocabulary, double temperature) {
    using earnest::logprob::Type;
    problem.type = sizeof(S) == 8 ? Type::kFloat64 : sizeof(S) == 4 ? Type::kFloat32 : Type::kBFloat16;
    problem.rows = rows;
    problem.depth = depth;
    problem.vocabulary = vocabulary;
    problem.temperature = temperature;
    std::mt19937 random(static_cast<unsigned>(rows * 7919 + depth * 31 + vocabulary));
    std::normal_distribution<float> normal;
    const auto fill = [&](auto* values, int64_t count, Row scale = 1) {
      values->resize(static_cast<size_t>(count));
      for (auto& value : *values) earnest::narrow(static_cast<Row>(normal(random)) * scale, &value);
    };
    fill(&hidden, rows * depth);
    fill(&weight, vocabulary * depth, 2 / std::sqrt(static_cast<Row>(depth)));  // logits of a few units
    for (auto* values : {&logp, &entropy, &lse, &grad_logp, &grad_entropy, &grad_lse}) fill(values, rows);
    grad_hidden.resize(hidden.size());
    grad_weight.resize(weight.size());
    for (int64_t n = 0; n < rows; ++n)
      targets.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(vocabulary)));
  }
};

// The same problem in float64, by the oracle.
template <typename S>
PlainCase<double> exact_of(const PlainCase<S>& given) {
  PlainCase<double> c(0, given.problem.depth, given.problem.vocabulary, given.problem.temperature);
  c.problem.rows = given.problem.rows;
  const auto widen_all = [](const auto& from, std::vector<double>* to) {
    to->clear();
    for (const auto& value : from) to->push_back(earnest::widen(value));
  };
  widen_all(given.hidden, &c.hidden);
  widen_all(given.weight, &c.weight);
  widen_all(given.grad_logp, &c.grad_logp);
  widen_all(given.grad_entropy, &c.grad_entropy);
  widen_all(given.grad_lse, &c.grad_lse);
  c.targets = given.targets;
  for (auto* rows : {&c.logp, &c.entropy, &c.lse}) rows->resize(given.logp.size());
  c.grad_hidden.resize(c.hidden.size());
  c.grad_weight.resize(c.weight.size());

  earnest::logprob::Forward f;
  f.problem = c.problem;
  f.problem.hidden = c.hidden.data();
  f.problem.weight = c.weight.data();
  f.problem.targets = c.targets.data();
  f.logp = c.logp.data();
  f.entropy = c.entropy.data();
  f.lse = c.lse.data();
  earnest::logprob::Backward b;
  b.problem = f.problem;
  b.entropy = f.entropy;
  b.lse = f.lse;
  b.grad_logp = c.grad_logp.data();
  b.grad_entropy = c.grad_entropy.data();
  b.grad_lse = c.grad_lse.data();
  b.grad_hidden = c.grad_hidden.data();
  b.grad_weight = c.grad_weight.data();
  CHECK(run_reference(f).ok() && run_reference(b).ok());
  return c;
}

// The same formulas step by step with every number rounded to Row; gradients are rounded to S at the end.
template <typename S>
void run_plain(PlainCase<S>* c) {
  using Row = typename PlainCase<S>::Row;
  using earnest::widen;
  const auto rows = static_cast<size_t>(c->problem.rows), depth = static_cast<size_t>(c->problem.depth),
             vocabulary = static_cast<size_t>(c->problem.vocabulary);
  const auto temperature = static_cast<Row>(c->problem.temperature);
  std::vector<Row> z(vocabulary), grad_hidden(depth), grad_weight(vocabulary * depth);
  for (size_t n = 0; n < rows; ++n) {
    for (size_t v = 0; v < vocabulary; ++v) {
      Row dot = 0;
      for (size_t k = 0; k < depth; ++k)
        dot += widen(c->hidden[n * depth + k]) * widen(c->weight[v * depth + k]);
      z[v] = dot / temperature;
    }
    const Row max = *std::max_element(z.begin(), z.end());
    Row sum = 0, entropy = 0;
    for (Row value : z) sum += std::exp(value - max);
    const Row log_sum = std::log(sum), lse = max + log_sum;
    for (Row value : z) entropy -= std::exp(value - max - log_sum) * (value - max - log_sum);
    const auto target = static_cast<size_t>(c->targets[n]);
    c->logp[n] = z[target] - max - log_sum;
    c->entropy[n] = entropy;
    c->lse[n] = lse;
    std::fill(grad_hidden.begin(), grad_hidden.end(), Row{0});
    for (size_t v = 0; v < vocabulary; ++v) {
      const Row log_p = z[v] - lse, p = std::exp(log_p);
      Row dz = -p * (c->grad_logp[n] - c->grad_lse[n] + c->grad_entropy[n] * (log_p + entropy));
      if (v == target) dz += c->grad_logp[n];
      dz /= temperature;
      for (size_t k = 0; k < depth; ++k) {
        grad_hidden[k] += dz * widen(c->weight[v * depth + k]);
        grad_weight[v * depth + k] += dz * widen(c->hidden[n * depth + k]);
      }
    }
    for (size_t k = 0; k < depth; ++k) earnest::narrow(grad_hidden[k], &c->grad_hidden[n * depth + k]);
  }
  for (size_t i = 0; i < grad_weight.size(); ++i) earnest::narrow(grad_weight[i], &c->grad_weight[i]);
}

// The largest difference, relative to the largest number (of size 1 at least).
template <typename T>
double largest_error(const std::vector<T>& a, const std::vector<double>& b) {
  using earnest::widen;
  double error = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(widen(a[i])) - b[i]);
    error = difference <= error ? error : difference;  // NaN stays
    scale = std::max(scale, std::abs(b[i]));
  }
  return error / std::max(scale, 1.0);
}
