// SPDX-License-Identifier: Apache-2.0
// Constants of the transform and of the mel filters, computed in float64 and rounded once. Plain data: the
// files compiled for one instruction set see no library code that the linker could share with others.
#pragma once

#include <cstdint>

namespace earnest::logmel {

struct Complex {
  float re, im;
};

// The real transform of 400 is a complex one of 200 over pairs of samples, z[n] = (x[2n], x[2n + 1]), done as
// 8 x 5 x 5.
struct Tables {
  float half_window[400];  // 0.5 * hann: the half belongs to the split of the packed transform
  int32_t pair_at[25][8];  // 2 ((25 n1 + 8 n2) mod 200) at [n2][n1]: where the transform reads
  int32_t bin_at[201];     // where it leaves bin k; bin 200 is bin 0
  Complex turn_25[5][5];   // exp(-2 pi i b c / 25)
  Complex turn_400[101];   // exp(-2 pi i k / 400)

  // Filter m is weights[offset .. offset + count) over the bins first .. first + count - 1.
  struct Filter {
    int first, count, offset;
  };
  int n_mels;
  const Filter* filters;
  const float* weights;
};

// Weight of bin k in filter m of Slaney's filters over 0 to 8000 Hz, each of area 1 (as librosa and Whisper
// have them).
double slaney_weight(int n_mels, int m, int k);

// Built at first use and kept; 1 <= n_mels <= kMaxMels. Null when there is no memory for them.
const Tables* tables_for(int n_mels);

}  // namespace earnest::logmel
