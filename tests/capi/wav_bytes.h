// SPDX-License-Identifier: Apache-2.0
// A WAV file as bytes.
#pragma once

#include <cstdint>
#include <string>

// format: 1 integers, 3 floats. data: the samples as they stand in the file.
inline std::string wav_bytes(const std::string& data, uint32_t rate, int channels, int bits, int format = 1) {
  std::string bytes = "RIFF";
  const auto number = [&](uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  };
  const auto frame = static_cast<uint64_t>(channels * bits / 8);
  number(36 + data.size(), 4);
  bytes += "WAVEfmt ";
  number(16, 4);
  number(static_cast<uint64_t>(format), 2);
  number(static_cast<uint64_t>(channels), 2);
  number(rate, 4);
  number(rate * frame, 4);
  number(frame, 2);
  number(static_cast<uint64_t>(bits), 2);
  bytes += "data";
  number(data.size(), 4);
  return bytes + data;
}
