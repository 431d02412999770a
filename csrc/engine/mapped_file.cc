// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>

#include "csrc/engine/guard.h"

namespace earnest::engine {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

Status not_readable(const std::string& path, const std::string& expected) {
  const int error = errno;
  const auto code =
      error == ENOENT || error == ENOTDIR ? StatusCode::kNotFound : StatusCode::kInvalidArgument;
  return {code,
          "[load] " + path + ": expected " + expected + ", got " + std::generic_category().message(error)};
}

}  // namespace

Status MappedFile::open(const std::string& path, uint64_t most_bytes,
                        std::shared_ptr<const MappedFile>* file) {
  if (path.find('\0') != path.npos) return invalid_argument("load", "path", "a path", "one with a zero byte");
  // Without O_NONBLOCK a pipe in place of a file would wait for somebody to write to it.
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (descriptor.number() < 0) return not_readable(path, "a file that can be read");
  struct stat about;
  if (::fstat(descriptor.number(), &about) != 0) return not_readable(path, "a file that can be read");
  if (!S_ISREG(about.st_mode)) return invalid_argument("load", path, "a regular file", "something else");
  const auto size = static_cast<uint64_t>(about.st_size);
  if (size > most_bytes || size > std::numeric_limits<size_t>::max() / 2) {
    return invalid_argument("load", path, "at most " + std::to_string(most_bytes) + " bytes",
                            std::to_string(size));
  }
  const uint8_t* data = nullptr;  // an empty file cannot be mapped
  if (size > 0) {
    void* mapped = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, descriptor.number(), 0);
    if (mapped == MAP_FAILED) return not_readable(path, "a file that can be mapped");
    data = static_cast<const uint8_t*>(mapped);
  }
  return guarded("load", [&] {
    file->reset(new MappedFile(path, data, static_cast<size_t>(size)));
    return Status();
  });
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::let_go(const void* first, size_t bytes) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(first) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(first) + bytes;
  // Pages of a file that nobody has written to: dropping them loses nothing, nor does a refusal to.
  (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace earnest::engine
