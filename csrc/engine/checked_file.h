// SPDX-License-Identifier: Apache-2.0
// A file written and read from its beginning to its end, with the SHA-256 of everything at the end. Numbers
// are 8 bytes, little endian.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "csrc/engine/digest.h"
#include "kernels/common/status.h"

namespace earnest::engine {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using OpenFile = std::unique_ptr<std::FILE, CloseFile>;

// Written under another name beside its place, where finish() puts it; else it goes again. The first error
// stays, and nothing more is written.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void number(uint64_t value);
  void bytes(const void* data, size_t count);
  void text(const std::string& value);  // behind its length
  Status finish();

 private:
  void fail();

  std::string path_, beside_;
  OpenFile file_;
  Sha256 hash_;
  Status status_;
};

// The first error stays, and everything reads as zeros from then on.
class FileReader {
 public:
  explicit FileReader(const std::string& path);

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  void refuse(const std::string& expected, const std::string& got);  // kCorrupt

  uint64_t number();
  // At most `most`, and no more than there can be: `bytes` each in what is left of the file.
  uint64_t count(const char* what, uint64_t bytes, uint64_t most);
  void bytes(void* data, size_t count);
  std::string text(uint64_t most);
  // The end, and whether everything was as it was written.
  Status finish();

 private:
  Status open();

  std::string path_;
  OpenFile file_;
  uint64_t left_ = 0;  // before the digest
  Sha256 hash_;
  Status status_;
};

}  // namespace earnest::engine
