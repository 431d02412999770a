// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/pitch/checks.h"
#include "kernels/pitch/path.h"
#include "kernels/pitch/tables.h"

namespace earnest::pitch {
namespace {

using Samples = std::vector<double>;

const double kPi = std::acos(-1.0);

// y[m]: the half-band filter around x[2 m]; the outermost samples go on.
Samples halve(const Tables& tables, const float* x, int64_t samples) {
  Samples y(static_cast<size_t>((samples + 1) / 2));
  const auto at = [&](int64_t i) { return static_cast<double>(x[std::clamp<int64_t>(i, 0, samples - 1)]); };
  for (int64_t m = 0; m < static_cast<int64_t>(y.size()); ++m) {
    double sum = 0.5 * at(2 * m);
    for (int i = 0; i < kTaps; ++i) {
      sum += tables.taps[i] * (at(2 * m - 2 * i - 1) + at(2 * m + 2 * i + 1));
    }
    y[static_cast<size_t>(m)] = sum;
  }
  return y;
}

// Transform of `in` at frequencies or lags 0 .. count - 1 of `size`, magnitude squared, by its definition.
double power_at(const Samples& in, int k, int size) {
  double re = 0.0, im = 0.0;
  for (size_t j = 0; j < in.size(); ++j) {
    const double angle = 2 * kPi * static_cast<double>(static_cast<int64_t>(j) * k % size) / size;
    re += in[j] * std::cos(angle);
    im -= in[j] * std::sin(angle);
  }
  return re * re + im * im;
}

Samples shaped_spectrum(const Samples& windowed, int size, double floor, bool weighted) {
  Samples shaped(static_cast<size_t>(size / 2 + 1));
  for (int k = 0; k <= size / 2; ++k) {
    const double hz = static_cast<double>(k) * kRate / size;
    const double weight = weighted ? 1.0 / (1.0 + std::pow(hz / kCorner, 4)) : 1.0;
    shaped[static_cast<size_t>(k)] = std::pow(std::max(power_at(windowed, k, size), floor), 0.75) * weight;
  }
  return shaped;
}

Samples correlation(const Samples& shaped, int lags) {
  const int bins = static_cast<int>(shaped.size()) - 1;
  Samples r(static_cast<size_t>(lags));
  for (int lag = 0; lag < lags; ++lag) {
    double sum = shaped[0] + shaped[static_cast<size_t>(bins)] * (lag % 2 == 0 ? 1 : -1);
    for (int k = 1; k < bins; ++k) sum += 2 * shaped[static_cast<size_t>(k)] * std::cos(kPi * k * lag / bins);
    r[static_cast<size_t>(lag)] = sum;
  }
  for (int lag = lags - 1; lag >= 0; --lag) r[static_cast<size_t>(lag)] /= r[0];
  return r;
}

struct Peak {
  double value, height, hz;
};

Candidates best_of(const Samples& r, const Tables& tables) {
  std::vector<Peak> peaks;
  Candidates out = {};
  for (int lag = tables.first_lag; lag < tables.first_lag + tables.lags; ++lag) {
    const double *at = &r[static_cast<size_t>(lag)], a = at[-1], b = at[0], c = at[1];
    if (!(b > a && b >= c && b > 0)) continue;
    const double bend = a - 2 * b + c, shift = bend < -1e-12 ? 0.5 * (a - c) / bend : 0.0;
    const double height = std::min(b - 0.25 * (a - c) * shift, 1.0);
    const double cost = kOctaveCost * std::log2(tables.f0_min * static_cast<double>(lag) / kRate);
    peaks.push_back({height - cost, height, kRate / (lag + shift)});
    out.voicing = std::max(out.voicing, static_cast<float>(height));
  }
  std::stable_sort(peaks.begin(), peaks.end(),
                   [](const Peak& a, const Peak& b) { return a.value > b.value; });
  for (size_t k = 0; k < std::min<size_t>(kKept, peaks.size()); ++k) {
    out.strength[k] = static_cast<float>(peaks[k].height);
    out.f0[k] = static_cast<float>(peaks[k].hz);
  }
  return out;
}

// The clip's samples around frame t less their mean, windowed; the rest 0.
Samples windowed_frame(const Samples& y, const Samples& window, int64_t t, double* mean, double* squares) {
  const auto width = static_cast<int64_t>(window.size()), start = kHalvedHop * t - width / 2;
  const int64_t low = std::max<int64_t>(start, 0);
  const int64_t high = std::min(start + width, static_cast<int64_t>(y.size()));
  *mean = *squares = 0.0;
  for (int64_t i = low; i < high; ++i) {
    *mean += y[static_cast<size_t>(i)] / static_cast<double>(high - low);
    *squares += y[static_cast<size_t>(i)] * y[static_cast<size_t>(i)];
  }
  Samples out(window.size());
  for (int64_t i = low; i < high; ++i) {
    out[static_cast<size_t>(i - start)] =
        (y[static_cast<size_t>(i)] - *mean) * window[static_cast<size_t>(i - start)];
  }
  return out;
}

}  // namespace

Status reference(const Params& params) {
  if (Status status = check(params); !status.ok()) return status;
  const std::shared_ptr<const Tables> shared = tables_for(params.settings);
  const Tables& tables = *shared;
  const Samples y = halve(tables, params.pcm, params.samples);
  Samples window(static_cast<size_t>(tables.width));
  for (int j = 0; j < tables.width; ++j) {
    window[static_cast<size_t>(j)] = 0.5 - 0.5 * std::cos(2 * kPi * (j + 0.5) / tables.width);
  }
  const int lags = tables.first_lag + tables.lags + 1;
  const Samples own = correlation(shaped_spectrum(window, tables.size, 0.0, false), lags);
  PathSearch path(params.settings);
  float* f0 = params.f0;
  for (int64_t t = 0; t < frame_count(params.samples); ++t) {
    double mean = 0.0, squares = 0.0;
    const Samples cut = windowed_frame(y, window, t, &mean, &squares);
    const double floor = std::max<double>(kRounding * squares, kLeastPower / 4);
    Samples r = correlation(shaped_spectrum(cut, tables.size, floor, true), lags);
    for (int lag = 0; lag < lags; ++lag) r[static_cast<size_t>(lag)] /= own[static_cast<size_t>(lag)];
    Candidates candidates = best_of(r, tables);
    const int64_t begin = std::max<int64_t>(kHop * (t - 1), 0),
                  end = std::min(kHop * (t + 1), params.samples);
    double energy = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const double x = params.pcm[i] - mean;
      energy += x * x / static_cast<double>(end - begin);
    }
    candidates.energy = static_cast<float>(energy);
    params.voicing[t] = candidates.voicing;
    params.energy[t] = candidates.energy;
    f0 += path.push(candidates, f0) ? 1 : 0;
  }
  path.finish(f0);
  return {};
}

}  // namespace earnest::pitch
