// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "csrc/engine/safetensors.h"
#include "tests/fuzz/driver.h"

namespace {

std::string file_of(const std::string& header, size_t bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return file + header + std::string(bytes, '\x3f');
}

// A file in memory, for a reader that takes paths.
class Scratch {
 public:
  Scratch() {
    char name[] = "/dev/shm/earnest_fuzz_XXXXXX";
    file_ = mkstemp(name);
    if (file_ < 0) std::abort();
    path_ = name;
  }
  ~Scratch() {
    close(file_);
    unlink(path_.c_str());
  }
  const std::string& write(const uint8_t* data, size_t size) {
    if (ftruncate(file_, 0) != 0 || pwrite(file_, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
    return path_;
  }

 private:
  int file_;
  std::string path_;
};

}  // namespace

FuzzMaterial fuzz_material() {
  FuzzMaterial material;
  material.seeds = {
      file_of(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
              R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})",
              32),
      file_of(R"({"__metadata__":{"format":"pt"},"h":{"dtype":"F16","shape":[],"data_offsets":[0,2]}})", 2),
      file_of(R"({"none":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})", 0), file_of("{}", 0)};
  material.words = {"\"dtype\"",
                    "\"shape\"",
                    "\"data_offsets\"",
                    "\"F32\"",
                    "\"BF16\"",
                    "\"F16\"",
                    "\"F64\"",
                    "[]",
                    "[0]",
                    "{}",
                    "null",
                    "-1",
                    "9223372036854775807",
                    "18446744073709551615",
                    "1e9",
                    "\"a\":",
                    ",",
                    "\\u0000",
                    " "};
  material.longest = 4096;
  return material;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Scratch scratch;
  earnest::engine::Tensors tensors;
  const earnest::Status status = earnest::engine::read_safetensors(scratch.write(data, size), &tensors);
  if (!status.ok()) {
    if (!tensors.views.empty() || status.message().find(": expected ") == std::string::npos) std::abort();
    return 0;
  }
  for (const auto& [name, view] : tensors.views) {
    if (view.count() < 0 || static_cast<uint64_t>(view.count()) > size) std::abort();
    std::vector<float> numbers(static_cast<size_t>(view.count()));
    earnest::engine::read(view, 0, view.count(), numbers.data());
  }
  return 0;
}
