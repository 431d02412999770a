// SPDX-License-Identifier: Apache-2.0
#include "kernels/pitch/tables.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

namespace earnest::pitch {
namespace {

const double kPi = std::acos(-1.0);

// Kaiser's window (beta 6) on the ideal half-band filter, scaled to a sum of 1: 60 dB at 5.4 kHz and above.
void fill_taps(Tables* tables) {
  const auto bessel = [](double x) {  // I0 by its series
    double sum = 1.0, term = 1.0;
    for (int k = 1; k < 40; ++k) sum += term *= (x / (2 * k)) * (x / (2 * k));
    return sum;
  };
  double taps[kTaps], total = 0.0;
  for (int i = 0; i < kTaps; ++i) {
    const double n = 2 * i + 1, part = n / (kReach + 1);
    taps[i] = std::sin(kPi * n / 2) / (kPi * n) * bessel(6.0 * std::sqrt(1 - part * part));
    total += taps[i];
  }
  for (int i = 0; i < kTaps; ++i) tables->taps[i] = static_cast<float>(0.25 * taps[i] / total);
}

void fill_transform(Tables* tables) {
  for (int c = 0; c < 16; ++c) {
    for (int b = 0; b < 16; ++b) {
      const double angle = -2 * kPi * (b * c % 256) / 256;
      tables->turn_256_re[16 * c + b] = static_cast<float>(std::cos(angle));
      tables->turn_256_im[16 * c + b] = static_cast<float>(std::sin(angle));
    }
  }
  for (int half = 1; half < kMaxSize; half *= 2) {
    for (int k = 0; k < half; ++k) {
      tables->turn_re[half + k] = static_cast<float>(std::cos(-kPi * k / half));
      tables->turn_im[half + k] = static_cast<float>(std::sin(-kPi * k / half));
    }
  }
}

// The correlation that the window's own |spectrum|^1.5 has, plain sums.
void fill_unwindow(Tables* tables, const std::vector<double>& window) {
  const int size = tables->size, bins = size / 2;
  std::vector<double> cosine(static_cast<size_t>(size)), own(static_cast<size_t>(bins + 1));
  for (int i = 0; i < size; ++i) cosine[static_cast<size_t>(i)] = std::cos(2 * kPi * i / size);
  for (int k = 0; k <= bins; ++k) {
    double re = 0.0, im = 0.0;
    for (int j = 0; j < tables->width; ++j) {
      const int turn = j * k % size;
      re += window[static_cast<size_t>(j)] * cosine[static_cast<size_t>(turn)];
      im += window[static_cast<size_t>(j)] * cosine[static_cast<size_t>((turn + size / 4) % size)];
    }
    own[static_cast<size_t>(k)] = std::pow(re * re + im * im, 0.75);
  }
  const auto at = [&](int lag) {
    double sum = own[0] + own[static_cast<size_t>(bins)] * (lag % 2 == 0 ? 1 : -1);
    for (int k = 1; k < bins; ++k)
      sum += 2 * own[static_cast<size_t>(k)] * cosine[static_cast<size_t>(k * lag % size)];
    return sum;
  };
  const int last = tables->first_lag + tables->lags;
  const double first = at(0);
  for (int lag = 0; lag < kMaxLags; ++lag) {
    tables->unwindow[lag] = lag > last ? 0.0f : static_cast<float>(first / at(lag));
    const double octaves = lag == 0 ? 0.0 : std::log2(static_cast<double>(tables->f0_min) * lag / kRate);
    tables->long_period_cost[lag] = static_cast<float>(kOctaveCost * octaves);
  }
}

void fill(const Settings& settings, Tables* tables) {
  *tables = {};
  tables->f0_min = settings.f0_min;
  const double low = settings.f0_min, high = settings.f0_max;
  tables->width = 16 * static_cast<int>(std::ceil(3 * kRate / low / 16));
  const int longest = static_cast<int>(std::ceil(kRate / low));
  tables->first_lag = static_cast<int>(kRate / high);
  tables->lags = longest - tables->first_lag + 1;
  tables->size = 512;
  while (tables->width + longest + 2 > tables->size) tables->size *= 2;
  std::vector<double> window(static_cast<size_t>(tables->width));
  for (int j = 0; j < tables->width; ++j) {
    window[static_cast<size_t>(j)] = 0.5 - 0.5 * std::cos(2 * kPi * (j + 0.5) / tables->width);
    tables->window[j] = static_cast<float>(window[static_cast<size_t>(j)]);
  }
  for (int k = 0; k <= tables->size / 2; ++k) {
    const double hz = static_cast<double>(k) * kRate / tables->size;
    tables->weight[k] = static_cast<float>(1.0 / (1.0 + std::pow(hz / kCorner, 4)));
  }
  fill_taps(tables);
  fill_transform(tables);
  fill_unwindow(tables, window);
}

}  // namespace

std::shared_ptr<const Tables> tables_for(const Settings& settings) {
  constexpr size_t kKeptTables = 8;
  struct Entry {
    float f0_min, f0_max;
    std::shared_ptr<const Tables> tables;
  };
  static std::vector<Entry> entries;  // the last used comes last
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = std::find_if(entries.begin(), entries.end(), [&](const Entry& entry) {
    return entry.f0_min == settings.f0_min && entry.f0_max == settings.f0_max;
  });
  if (found != entries.end()) {
    std::rotate(found, found + 1, entries.end());
    return entries.back().tables;
  }
  const auto tables = std::make_shared<Tables>();
  fill(settings, tables.get());
  if (entries.size() == kKeptTables) entries.erase(entries.begin());
  entries.push_back({settings.f0_min, settings.f0_max, tables});
  return tables;
}

}  // namespace earnest::pitch
