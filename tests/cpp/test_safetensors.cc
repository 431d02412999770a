// SPDX-License-Identifier: Apache-2.0
// Files that lie, under the sanitizers: whatever is handed out lies within the file.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "csrc/engine/mapped_file.h"
#include "csrc/engine/safetensors.h"
#include "tests/cpp/check.h"

using earnest::BFloat16;
using earnest::Status;
using earnest::StatusCode;
namespace engine = earnest::engine;

namespace {

// A folder of its own for each run.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/earnest_safetensors_XXXXXX";
    path_ = mkdtemp(name);
  }
  ~Folder() {
    for (const std::string& file : files_) std::remove(file.c_str());
    std::remove(path_.c_str());
  }
  std::string write(const std::string& name, const std::string& data) {
    const std::string path = path_ + "/" + name;
    std::ofstream(path, std::ios::binary) << data;
    files_.push_back(path);
    return path;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

std::string file_of(const std::string& header, const std::string& numbers) {
  std::string data;
  for (int i = 0; i < 8; ++i) data += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return data + header + numbers;
}

std::string entry(const std::string& type, const std::string& shape, int begin, int end) {
  return "{\"dtype\":\"" + type + "\",\"shape\":" + shape + ",\"data_offsets\":[" + std::to_string(begin) +
         "," + std::to_string(end) + "]}";
}

float sum_of(const engine::Tensors& tensors) {
  float sum = 0;
  for (const auto& [name, view] : tensors.views) {
    std::vector<float> numbers(static_cast<size_t>(view.count()));
    engine::read(view, 0, view.count(), numbers.data());
    for (const float number : numbers) sum += number;
  }
  return sum;
}

}  // namespace

TEST(numbers_of_every_type_are_read_exactly_from_any_byte) {
  Folder folder;
  // 1.5 and -2 in float32, 1.5 in bfloat16, and in float16: 1.5, the smallest subnormal, -inf.
  const std::string numbers("\x00\x00\xC0\x3F\x00\x00\x00\xC0\xC0\x3F\x00\x3E\x01\x00\x00\xFC", 16);
  for (const std::string pad : {"", " ", "  ", "   "}) {
    const std::string path = folder.write(
        "a.safetensors",
        file_of("{\"f\":" + entry("F32", "[2,1]", 0, 8) + ",\"b\":" + entry("BF16", "[]", 8, 10) +
                    ",\"__metadata__\":{\"format\":\"pt\"},\"h\":" + entry("F16", "[3]", 10, 16) + "}" + pad,
                numbers));
    engine::Tensors tensors;
    CHECK(engine::read_safetensors(path, &tensors).ok());
    CHECK(tensors.views.size() == 3 && tensors.owners.size() == 1);
    float f[2], b, h[3];
    engine::read(tensors.views["f"], 0, 2, f);
    engine::read(tensors.views["b"], 0, 1, &b);
    engine::read(tensors.views["h"], 0, 3, h);
    CHECK(f[0] == 1.5f && f[1] == -2.0f && b == 1.5f);
    CHECK(h[0] == 1.5f && h[1] == 0x1p-24f && h[2] == -INFINITY);
    BFloat16 rounded[2];
    engine::read(tensors.views["f"], 0, 2, rounded);
    CHECK(rounded[0].bits == 0x3FC0 && rounded[1].bits == 0xC000);
  }
}

TEST(any_bytes_changed_or_cut_off_do_no_harm) {
  Folder folder;
  const std::string whole =
      file_of("{\"a\":" + entry("F32", "[2,3]", 0, 24) + ",\"b\":" + entry("BF16", "[4]", 24, 32) + "}",
              std::string(32, 'x'));
  std::mt19937 random(3);
  int read = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string changed = whole;
    for (uint32_t n = random() % 4; n > 0; --n)
      changed[random() % changed.size()] = static_cast<char>(random());
    if (random() % 3 == 0) changed.resize(random() % (whole.size() + 1));
    if (random() % 5 == 0) {
      // A digit changed keeps the JSON whole: numbers are what lies most easily.
      const size_t at = 8 + random() % (whole.size() - 40);
      if (at < changed.size() && changed[at] >= '0' && changed[at] <= '9') {
        changed[at] = static_cast<char>('0' + random() % 10);
      }
    }
    engine::Tensors tensors;
    const Status status = engine::read_safetensors(folder.write("b.safetensors", changed), &tensors);
    if (status.ok()) {
      ++read;
      (void)sum_of(tensors);
    } else {
      CHECK(status.code() == StatusCode::kCorrupt &&
            status.message().find("b.safetensors") != std::string::npos);
    }
  }
  CHECK(read > 100);
}

TEST(what_is_no_file_is_refused) {
  Folder folder;
  engine::Tensors tensors;
  CHECK(engine::read_safetensors(folder.path() + "/none.safetensors", &tensors).code() ==
        StatusCode::kNotFound);
  CHECK(engine::read_safetensors(folder.path(), &tensors).code() == StatusCode::kInvalidArgument);
  CHECK(engine::read_safetensors("/dev/zero", &tensors).code() == StatusCode::kInvalidArgument);
  CHECK(engine::read_safetensors(std::string("/tmp\0/x", 7), &tensors).code() ==
        StatusCode::kInvalidArgument);
  CHECK(engine::read_safetensors(folder.write("empty.safetensors", ""), &tensors).code() ==
        StatusCode::kCorrupt);
  std::shared_ptr<const engine::MappedFile> file;
  CHECK(!engine::MappedFile::open(folder.write("long", "12345"), 4, &file).ok());
  CHECK(engine::MappedFile::open(folder.write("long", "12345"), 5, &file).ok() && file->text() == "12345");
}
