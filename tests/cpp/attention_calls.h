// SPDX-License-Identifier: Apache-2.0
// Calls of attention on the device of Device::kCuda, for tests: whole ones against the oracle, and parts of
// them as calls of their own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/attention/attention.h"
#include "tests/cpp/check.h"
#include "tests/cpp/plain_attention.h"

namespace attention_calls {

using namespace earnest;
using namespace earnest::attention;
using plain_attention::Case;
using plain_attention::number_of;
using plain_attention::run_on_device;
using plain_attention::run_plain;

inline CudaPath path_of_all = CudaPath::kSm80;  // of cases that name none

template <typename T>
void run(Case<T>* c) {
  if (c->p.path == CudaPath::kBest) c->p.path = path_of_all;
  const Status status = run_on_device(c);
  CHECK(status.ok());
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
}

// ---- against the oracle ----

inline double distance(double a, double b) { return a == b ? 0 : std::abs(a - b); }  // of equal infinities 0

template <typename T>
double largest_error(const std::vector<T>& got, const std::vector<T>& right) {
  double largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    double error;
    if constexpr (sizeof(T) == 2) {
      error = distance(widen(got[i]), widen(right[i]));
    } else {
      error = distance(got[i], right[i]);
    }
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
  return largest;
}

// At most twice the error of plain arithmetic, for each result.
template <typename T>
void compare(Case<T> c) {
  Case<T> right = c, plain = c;
  CHECK(reference_forward(right.on_host(), {right.out.data(), right.lse.data()}).ok());
  run_plain(&plain);
  run(&c);
  const int before = check::failures();
  CHECK_NEAR(largest_error(c.out, right.out), 0, 2 * largest_error(plain.out, right.out));
  CHECK_NEAR(largest_error(c.lse, right.lse), 0, 2 * largest_error(plain.lse, right.lse));
  if (check::failures() != before) {
    std::printf("  of %lld heads, %lld key heads, dim %lld, %lld sequences, %lld queries, %lld keys, %s\n",
                static_cast<long long>(c.p.heads), static_cast<long long>(c.p.kv_heads),
                static_cast<long long>(c.p.dim), static_cast<long long>(c.p.sequences),
                static_cast<long long>(c.p.tokens_q), static_cast<long long>(c.p.tokens_k),
                c.p.causal ? "causal" : "full");
  }
}

// ---- bit by bit ----

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <typename T>
bool same_results(const Case<T>& a, const Case<T>& b) {
  return same_bits(a.out, b.out) && same_bits(a.lse, b.lse);
}

// Rows [begin, begin + count).
template <typename T>
std::vector<T> rows_of(const std::vector<T>& x, int64_t begin, int64_t count, int64_t width) {
  return {x.begin() + begin * width, x.begin() + (begin + count) * width};
}

// The case's tokens [begin, end) of sequence 0 as a call of its own: the last queries that the cache knows
// of.
template <typename T>
Case<T> chunk_of(const Case<T>& whole, int begin, int end) {
  const int ahead = static_cast<int>(whole.p.tokens_k - whole.p.tokens_q);
  Case<T> chunk({end - begin}, {static_cast<int>(whole.p.tokens_k)}, whole.p.heads, whole.p.kv_heads,
                whole.p.dim, whole.p.causal);
  chunk.q = rows_of(whole.q, begin, end - begin, whole.p.heads * whole.p.dim);
  chunk.k = whole.k, chunk.v = whole.v;
  if (whole.p.causal) chunk.used = {end + ahead};
  return chunk;
}

// Sequence n of a batch as a call of its own.
template <typename T>
Case<T> sequence_of(const Case<T>& batch, size_t n) {
  const int queries = batch.cu_q[n + 1] - batch.cu_q[n], keys = batch.cu_k[n + 1] - batch.cu_k[n];
  Case<T> alone({queries}, {keys}, batch.p.heads, batch.p.kv_heads, batch.p.dim, batch.p.causal);
  const int64_t width = batch.p.kv_heads * batch.p.dim;
  alone.q = rows_of(batch.q, batch.cu_q[n], queries, batch.p.heads * batch.p.dim);
  alone.k = rows_of(batch.k, batch.cu_k[n], keys, width);
  alone.v = rows_of(batch.v, batch.cu_k[n], keys, width);
  return alone;
}

// Whether a call of its own has the bits of the whole's queries from `begin` on.
template <typename T>
bool equals_part(const Case<T>& alone, const Case<T>& whole, int64_t begin) {
  const int64_t count = alone.p.tokens_q, width = whole.p.heads * whole.p.dim;
  return same_bits(alone.out, rows_of(whole.out, begin, count, width)) &&
         same_bits(alone.lse, rows_of(whole.lse, begin, count, whole.p.heads));
}

template <typename T>
void check_every_sequence_alone(Case<T> batch) {
  run(&batch);
  for (size_t n = 0; n + 1 < batch.cu_q.size(); ++n) {
    Case<T> alone = sequence_of(batch, n);
    if (batch.p.most_keys > 0) alone.p.most_keys = std::max<int64_t>(alone.p.tokens_k, 1);
    run(&alone);
    CHECK(equals_part(alone, batch, batch.cu_q[n]));
  }
}

// ---- by the other path ----

inline bool can_run_sm90a() {
  Case<BFloat16> any({1}, {1}, 1, 1, 64, true);
  any.p.path = CudaPath::kSm90a;
  const Status status = run_on_device(&any);
  const bool lacks_it =
      status.message().find("path: expected sm90a on compute capability 9.0, got ") != std::string::npos;
  CHECK(status.ok() || lacks_it);
  return !lacks_it;
}

// All tests but the one that asks for it.
inline void pass_again_by_sm90a(const std::string& asker) {
  path_of_all = CudaPath::kSm90a;
  for (const check::Test& test : check::tests()) {
    if (test.name == asker) continue;
    const int before = check::failures();
    test.body();
    if (check::failures() != before) std::printf("  of %s by path sm90a\n", test.name);
  }
  path_of_all = CudaPath::kSm80;
}

}  // namespace attention_calls
