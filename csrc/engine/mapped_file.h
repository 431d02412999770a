// SPDX-License-Identifier: Apache-2.0
// A file mapped into memory for reading. Who maps a file must keep others from cutting it short meanwhile: a
// page that is no longer there when it is read ends the process, as with every mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/common/status.h"

namespace earnest::engine {

class MappedFile {
 public:
  // Refuses what is no regular file, or is larger than most_bytes.
  static Status open(const std::string& path, uint64_t most_bytes, std::shared_ptr<const MappedFile>* file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Gives the memory of these bytes back to the system; whoever reads them again finds them in the file.
  void let_go(const void* first, size_t bytes) const;
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  MappedFile(std::string path, const uint8_t* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const uint8_t* data_;
  size_t size_;
};

}  // namespace earnest::engine
