// SPDX-License-Identifier: Apache-2.0
// One problem of attention over pages, on the host: pools whose pages are dealt out at random and hold NaN
// wherever no key is, the oracle (attention.h's, in float64, over the same keys side by side), and the plain
// same-precision arithmetic that errors are compared with. It runs on every device that a build has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/float8.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/rounded.h"

namespace paged_case {

using namespace earnest;
namespace paged = attention::paged;

struct Shape {
  std::vector<int32_t> lengths;
  std::vector<int32_t> queries;  // of each sequence
  int64_t heads, kv_heads, dim, page_size;
  double scale = 0;  // 0: 1 / sqrt(dim)
};

struct Results {
  std::vector<double> out, lse;
};

// `Number`: type of queries and results; `Stored`: of the cache. A token of a sequence has the same numbers
// wherever the sequence stands, as long as `names` are the same.
template <typename Number, typename Stored = Number>
struct CaseOf {
  static constexpr bool kScaled = sizeof(Stored) == 1;

  paged::Params params;
  std::vector<Number> q;
  std::vector<Stored> k, v;
  std::vector<float> k_scale, v_scale;  // of each key head
  std::vector<int32_t> table, lengths, cu_seqlens;
  std::vector<Number> out;
  std::vector<float> lse;

  CaseOf(const Shape& shape, std::vector<unsigned> names = {}, unsigned deal = 1, int64_t more_columns = 1)
      : lengths(shape.lengths) {
    const size_t sequences = lengths.size();
    if (names.empty()) {
      names.resize(sequences);
      std::iota(names.begin(), names.end(), 1u);
    }
    cu_seqlens.resize(sequences + 1);
    std::partial_sum(shape.queries.begin(), shape.queries.end(), cu_seqlens.begin() + 1);
    paged::Params& p = params;
    p.sequences = static_cast<int64_t>(sequences), p.tokens = cu_seqlens.back();
    p.most_queries = std::max(1, *std::max_element(shape.queries.begin(), shape.queries.end()));
    p.heads = shape.heads, p.kv_heads = shape.kv_heads, p.dim = shape.dim, p.page_size = shape.page_size;
    p.scale = shape.scale > 0 ? shape.scale : 1 / std::sqrt(static_cast<double>(p.dim));
    deal_pages(deal, more_columns);
    q.resize(static_cast<size_t>(p.tokens * p.heads * p.dim));
    k.assign(static_cast<size_t>(p.pages * p.kv_heads * p.page_size * p.dim), rounded<Stored>(NAN));
    v = k;
    p.type = std::is_same_v<Number, Float16> ? attention::Type::kFloat16 : attention::Type::kBFloat16;
    p.cache = kScaled ? paged::Cache::kFloat8 : paged::Cache::kAsQueries;
    for (int64_t head = 0; head < p.kv_heads; ++head) {  // e4m3: many, and nearly all of them subnormal
      k_scale.push_back(!kScaled ? 1.0f : head % 2 == 0 ? 0.013f : 9.0f);
      v_scale.push_back(!kScaled ? 1.0f : head % 2 == 0 ? 15.0f : 0.011f);
    }
    for (int64_t n = 0; n < p.sequences; ++n) fill(n, names[static_cast<size_t>(n)]);
  }

  int64_t place_of_key(int64_t n, int64_t key, int64_t kv_head) const {
    const paged::Params& p = params;
    const int64_t page = table[static_cast<size_t>(n * p.table_pages + key / p.page_size)];
    return ((page * p.kv_heads + kv_head) * p.page_size + key % p.page_size) * p.dim;
  }

  // What was wrong; empty if nothing. The workspace is exactly as large as stated and full of NaN, like the
  // results before.
  std::string run(Device device = Device::kCuda, bool with_bounds = true) {
    paged::Params p = params;
    p.device = device;
    if (device == Device::kCpu) p.piece_keys = paged::kPieceKeys, p.stages = 0;  // it has no others
    out.assign(q.size(), Number{0xffff});
    lse.assign(static_cast<size_t>(p.tokens * p.heads), std::nanf(""));
    Lent lent(device);
    p.cu_seqlens_q = with_bounds ? lent.in(cu_seqlens.data(), cu_seqlens.size()) : nullptr;
    std::vector<unsigned char> workspace(paged::workspace_size(p), 0xff);
    p.q = lent.in(q.data(), q.size()), p.k = lent.in(k.data(), k.size()), p.v = lent.in(v.data(), v.size());
    p.k_scale = lent.in(k_scale.data(), k_scale.size()), p.v_scale = lent.in(v_scale.data(), v_scale.size());
    p.page_table = lent.in(table.data(), table.size()), p.lengths = lent.in(lengths.data(), lengths.size());
    p.fault = lent.fault();
    const paged::Output output{lent.out(out.data(), out.size()), lent.out(lse.data(), lse.size())};
    const Status status = paged::run(p, output, lent.out(workspace.data(), workspace.size()));
    const FaultWord word = lent.finish();
    if (device == Device::kCpu) return status.message();
    CHECK(status.ok());
    if (!status.ok()) std::printf("%s\n", status.message().c_str());
    return paged::fault(p, word).message();
  }

  // The same keys side by side, in float64.
  Results exact() const {
    const paged::Params& p = params;
    std::vector<double> queries, keys, values;
    std::vector<int32_t> cu_keys{0};
    for (Number x : q) queries.push_back(widen(x));
    for (int64_t n = 0; n < p.sequences; ++n) {
      cu_keys.push_back(cu_keys.back() + lengths[static_cast<size_t>(n)]);
      for (int64_t key = 0; key < lengths[static_cast<size_t>(n)]; ++key) {
        for (int64_t i = 0; i < p.kv_heads * p.dim; ++i) {
          const auto at = static_cast<size_t>(place_of_key(n, key, i / p.dim) + i % p.dim);
          keys.push_back(static_cast<double>(widen(k[at])) * k_scale[static_cast<size_t>(i / p.dim)]);
          values.push_back(static_cast<double>(widen(v[at])) * v_scale[static_cast<size_t>(i / p.dim)]);
        }
      }
    }
    attention::Params packed;
    packed.type = attention::Type::kFloat64;
    packed.sequences = p.sequences, packed.tokens_q = p.tokens, packed.tokens_k = cu_keys.back();
    packed.heads = p.heads, packed.kv_heads = p.kv_heads, packed.dim = p.dim;
    packed.cu_seqlens_q = cu_seqlens.data(), packed.cu_seqlens_k = cu_keys.data();
    packed.causal = true, packed.scale = p.scale;
    packed.q = queries.data(), packed.k = keys.data(), packed.v = values.data();
    Results results{std::vector<double>(q.size()),
                    std::vector<double>(static_cast<size_t>(p.tokens * p.heads))};
    CHECK(attention::reference_forward(packed, {results.out.data(), results.lse.data()}).ok());
    return results;
  }

  // One pass each for scores, weights and values, in float32; weights and results rounded to q's type.
  Results plain() const {
    const paged::Params& p = params;
    Results results{std::vector<double>(q.size()),
                    std::vector<double>(static_cast<size_t>(p.tokens * p.heads))};
    for (int64_t n = 0; n < p.sequences; ++n) {
      const int64_t begin = cu_seqlens[static_cast<size_t>(n)], end = cu_seqlens[static_cast<size_t>(n) + 1];
      for (int64_t row = begin * p.heads; row < end * p.heads; ++row) {
        const int64_t seen = lengths[static_cast<size_t>(n)] - (end - 1 - row / p.heads);
        plain_row(n, row, std::max<int64_t>(seen, 0), &results);
      }
    }
    return results;
  }

 private:
  void deal_pages(unsigned deal, int64_t more_columns) {
    paged::Params& p = params;
    const auto pages_of = [&](int32_t length) { return (length + p.page_size - 1) / p.page_size; };
    int64_t used = 0;
    for (int32_t length : lengths) {
      used += pages_of(length);
      p.table_pages = std::max(p.table_pages, pages_of(length));
    }
    p.table_pages += more_columns;
    p.pages = used + 3;  // three that nobody uses
    std::vector<int32_t> pages(static_cast<size_t>(p.pages));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(deal));
    table.assign(static_cast<size_t>(p.sequences * p.table_pages), -1);  // beyond the length: not to be read
    for (int64_t n = 0; n < p.sequences; ++n) {
      for (int64_t i = 0; i < pages_of(lengths[static_cast<size_t>(n)]); ++i) {
        table[static_cast<size_t>(n * p.table_pages + i)] = pages.back();
        pages.pop_back();
      }
    }
  }

  void fill(int64_t n, unsigned name) {
    const paged::Params& p = params;
    std::mt19937 of_queries(2 * name), of_keys(2 * name + 1);
    std::normal_distribution<double> normal;
    // Queries are numbered from the last one backwards, so that the last are the same however many there are.
    const int64_t begin = cu_seqlens[static_cast<size_t>(n)], end = cu_seqlens[static_cast<size_t>(n) + 1];
    for (int64_t token = end - 1; token >= begin; --token) {
      for (int64_t i = 0; i < p.heads * p.dim; ++i)
        q[static_cast<size_t>(token * p.heads * p.dim + i)] = rounded<Number>(normal(of_queries));
    }
    for (int64_t key = 0; key < lengths[static_cast<size_t>(n)]; ++key) {
      for (int64_t i = 0; i < p.kv_heads * p.dim; ++i) {
        const auto at = static_cast<size_t>(place_of_key(n, key, i / p.dim) + i % p.dim);
        k[at] = rounded<Stored>(normal(of_keys) / k_scale[static_cast<size_t>(i / p.dim)]);
        v[at] = rounded<Stored>(normal(of_keys) / v_scale[static_cast<size_t>(i / p.dim)]);
      }
    }
  }

  void plain_row(int64_t n, int64_t row, int64_t seen, Results* results) const {
    const paged::Params& p = params;
    const int64_t kv_head = row % p.heads / (p.heads / p.kv_heads);
    std::vector<float> weights(static_cast<size_t>(seen));
    float highest = -INFINITY, total = 0;
    for (int64_t key = 0; key < seen; ++key) {
      const int64_t at = place_of_key(n, key, kv_head);
      float sum = 0;
      for (int64_t d = 0; d < p.dim; ++d)
        sum += widen(q[static_cast<size_t>(row * p.dim + d)]) * widen(k[static_cast<size_t>(at + d)]);
      weights[static_cast<size_t>(key)] =
          sum * (static_cast<float>(p.scale) * k_scale[static_cast<size_t>(kv_head)]);
      highest = std::max(highest, weights[static_cast<size_t>(key)]);
    }
    for (float& weight : weights) total += weight = std::exp(weight - highest);
    results->lse[static_cast<size_t>(row)] = seen == 0 ? -INFINITY : highest + std::log(total);
    for (int64_t d = 0; d < p.dim; ++d) {
      float sum = 0;
      for (int64_t key = 0; key < seen; ++key) {
        sum += widen(rounded<Number>(weights[static_cast<size_t>(key)])) *
               widen(v[static_cast<size_t>(place_of_key(n, key, kv_head) + d)]);
      }
      results->out[static_cast<size_t>(row * p.dim + d)] =
          seen == 0 ? 0.0 : widen(rounded<Number>(sum / total * v_scale[static_cast<size_t>(kv_head)]));
    }
  }
};

using Case = CaseOf<BFloat16>;

// NaN anywhere but in both is infinitely wrong; equal infinities are right.
template <typename A>
double largest_error(const std::vector<A>& found, const std::vector<double>& right) {
  double largest = 0;
  for (size_t i = 0; i < right.size(); ++i) {
    const double x = widen(found[i]);
    if (x == right[i]) continue;
    const double error = std::abs(x - right[i]);
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
  return largest;
}

// On every device at most twice the error of plain arithmetic, and a few units in the last place of float32.
template <typename Number, typename Stored>
void compare(CaseOf<Number, Stored> c, bool with_bounds = true) {
  const int before = check::failures();
  const Results right = c.exact(), plain = c.plain();
  for (Device device : devices()) {
    CHECK(c.run(device, with_bounds).empty());
    CHECK_NEAR(largest_error(c.out, right.out), 0, 2 * largest_error(plain.out, right.out) + 1e-5);
    CHECK_NEAR(largest_error(c.lse, right.lse), 0, 2 * largest_error(plain.lse, right.lse) + 4e-6);
  }
  if (check::failures() != before) {
    std::printf("  of heads %lld / %lld, dim %lld, pages of %lld, up to %lld queries, pieces of %lld\n",
                static_cast<long long>(c.params.heads), static_cast<long long>(c.params.kv_heads),
                static_cast<long long>(c.params.dim), static_cast<long long>(c.params.page_size),
                static_cast<long long>(c.params.most_queries), static_cast<long long>(c.params.piece_keys));
  }
}

template <typename Number>
bool is_nan(Number x) {
  return std::isnan(widen(x));
}
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Rows of the token: [heads, width].
template <typename T>
std::vector<T> rows_of(const std::vector<T>& all, int64_t token, int64_t count, int64_t width) {
  return {all.begin() + token * width, all.begin() + (token + count) * width};
}

}  // namespace paged_case
