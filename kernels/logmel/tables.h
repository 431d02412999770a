// SPDX-License-Identifier: Apache-2.0
// Constants of the transform and of the mel filters, computed in float64. Plain data: the files compiled for
// one instruction set see no library code that the linker could share with others.
#pragma once

#include <cstdint>

namespace earnest::logmel {

constexpr int kRows = 13;

// The transform is one of 25 x 16 (transform.h). The sample at [r][l], and the bin in column d of a row: of 0
// .. 200, the other half being its mirror image; of row 0 only columns 0 .. 8 differ.
constexpr int sample_of(int r, int l) { return (176 * r + 225 * l) % 400; }
constexpr int bin_of(int row, int d) {
  constexpr int kHeld[kRows] = {0, 5, 10, 1, 6, 11, 16, 21, 2, 7, 12, 17, 22};  // in transform_25's order
  const int bin = (16 * kHeld[row] + 25 * d) % 400;
  return bin <= 200 ? bin : 400 - bin;
}

// exp(-2 pi i b k / 25) and, with s = sin(72 degrees), s times its imaginary and -s times its real part.
struct Turn {
  double re, im, sin1_im, minus_sin1_re;
};

struct Tables {
  double window[25][16];      // hann, of sample_of(r, l)
  int32_t bin_at[kRows][16];  // bin_of
  Turn turn_25[5][3];         // [b][k]; k = 1, 2

  // Filters are triangles, each from the peak of the one before to that of the one after, so a bin belongs to
  // two at most. Bins before end[m] and not before end[m - 1] lie on the falling side of filter m - 1 and the
  // rising side of filter m.
  struct Weights {
    float falling, rising;
  };
  int n_mels;
  int32_t end[257];  // n_mels + 1 of them
  Weights weights[201];
};

// Weight of bin k in filter m of Slaney's filters over 0 to 8000 Hz, each of area 1 (as librosa and Whisper
// have them).
double slaney_weight(int n_mels, int m, int k);

// Built at first use and kept; 1 <= n_mels <= kMaxMels. Null when there is no memory for them.
const Tables* tables_for(int n_mels);

}  // namespace earnest::logmel
