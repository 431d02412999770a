// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdlib>
#include <span>

#include "csrc/engine/wav.h"
#include "tests/capi/wav_bytes.h"
#include "tests/fuzz/driver.h"

FuzzMaterial fuzz_material() {
  FuzzMaterial material;
  for (const int bits : {8, 16, 24, 32}) {
    for (const int channels : {1, 2, 5})
      material.seeds.push_back(wav_bytes(std::string(240, '\x11'), 16000, channels, bits));
  }
  material.seeds.push_back(wav_bytes(std::string(96, '\x3f'), 48000, 1, 32, 3));
  material.seeds.push_back(wav_bytes(std::string(96, '\x3f'), 8000, 2, 64, 3));
  material.words = {"RIFF",
                    "WAVE",
                    "fmt ",
                    "data",
                    "LIST",
                    "RF64",
                    std::string("\xFE\xFF", 2),
                    std::string("\xFF\xFF\xFF\xFF", 4),
                    std::string("\x10\0\0\0", 4),
                    std::string("\x28\0\0\0", 4)};
  return material;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  earnest::engine::Wav wav;
  const auto bytes = std::as_bytes(std::span(data, size));
  const earnest::Status status = earnest::engine::read_wav(bytes, 60.0, &wav);
  if (!status.ok()) {
    if (status.message().find(": expected ") == std::string::npos) std::abort();
    return 0;
  }
  // What is handed out lies within the file, and is sound.
  if (wav.samples.size() > size || wav.rate <= 0) std::abort();
  for (const float sample : wav.samples) {
    if (!std::isfinite(sample)) std::abort();
  }
  return 0;
}
