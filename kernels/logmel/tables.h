// SPDX-License-Identifier: Apache-2.0
// Constants of the transform and of the mel filters, computed in float64. Plain data: the files compiled for
// one instruction set see no library code that the linker could share with others.
#pragma once

#include <cstdint>

namespace earnest::logmel {

constexpr int kRows = 13;

// exp(-2 pi i b k / 25) and, with s = sin(72 degrees), s times its imaginary and -s times its real part.
struct Turn {
  double re, im, sin1_im, minus_sin1_re;
};

// The transform is one of 25 x 16 (transform.h): sample (176 r + 225 l) mod 400 at [r][l], and bin
// (16 c + 25 d) mod 400, or 400 less that, in column d of the row that holds c.
struct Tables {
  double window[25][16];      // hann
  int32_t bin_at[kRows][16];  // 0 .. 200; of row 0 only columns 0 .. 8 differ
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
