// SPDX-License-Identifier: Apache-2.0
#include "kernels/logmel/tables.h"

#include <array>
#include <cmath>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "kernels/logmel/logmel.h"

namespace earnest::logmel {
namespace {

const double kTau = 2.0 * std::acos(-1.0);

// Slaney's scale: linear below 1000 Hz, logarithmic above.
double mel_to_hz(double mel) {
  constexpr double kLinear = 200.0 / 3.0, kBreak = 15.0;
  return mel < kBreak ? kLinear * mel : 1000.0 * std::exp((mel - kBreak) * std::log(6.4) / 27.0);
}

double highest_mel() { return 15.0 + std::log(8.0) * 27.0 / std::log(6.4); }  // of 8000 Hz

void fill_transform(Tables* tables) {
  for (int r = 0; r < 25; ++r) {
    for (int l = 0; l < 16; ++l) {
      tables->window[r][l] = 0.5 - 0.5 * std::cos(kTau * sample_of(r, l) / kWindow);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int d = 0; d < 16; ++d) tables->bin_at[row][d] = bin_of(row, d);
  }
  const double sin1 = std::sin(kTau / 5);
  for (int b = 0; b < 5; ++b) {
    for (int k = 0; k < 3; ++k) {
      const double re = std::cos(kTau * b * k / 25), im = -std::sin(kTau * b * k / 25);
      tables->turn_25[b][k] = {re, im, sin1 * im, -sin1 * re};
    }
  }
}

void fill_filters(Tables* tables) {
  const double step = highest_mel() / (tables->n_mels + 1);
  int k = 0;  // the last bin, of 8000 Hz, is where the last filter ends
  for (int m = 0; m <= tables->n_mels; ++m) {
    for (; k < kBins - 1 && 40.0 * k < mel_to_hz(step * (m + 1)); ++k) {
      const double falling = m > 0 ? slaney_weight(tables->n_mels, m - 1, k) : 0.0;
      const double rising = m < tables->n_mels ? slaney_weight(tables->n_mels, m, k) : 0.0;
      tables->weights[k] = {static_cast<float>(falling), static_cast<float>(rising)};
    }
    tables->end[m] = k;
  }
}

}  // namespace

double slaney_weight(int n_mels, int m, int k) {
  const double step = highest_mel() / (n_mels + 1);
  const double low = mel_to_hz(step * m), peak = mel_to_hz(step * (m + 1)), high = mel_to_hz(step * (m + 2));
  const double hz = 40.0 * k;
  const double height = std::fmin((hz - low) / (peak - low), (high - hz) / (high - peak));
  return height > 0.0 ? height * 2.0 / (high - low) : 0.0;
}

const Tables* tables_for(int n_mels) {
  static std::array<std::unique_ptr<const Tables>, kMaxMels + 1> built;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& slot = built[static_cast<size_t>(n_mels)];
  if (slot != nullptr) return slot.get();
  try {
    auto tables = std::make_unique<Tables>();
    tables->n_mels = n_mels;
    fill_transform(tables.get());
    fill_filters(tables.get());
    slot = std::move(tables);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  return slot.get();
}

}  // namespace earnest::logmel
