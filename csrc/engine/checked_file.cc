// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/checked_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "csrc/engine/guard.h"

namespace earnest::engine {
namespace {

Status failed(const char* op, const std::string& path, const std::string& expected) {
  const int error = errno;
  const auto code =
      error == ENOENT || error == ENOTDIR ? StatusCode::kNotFound : StatusCode::kInvalidArgument;
  return {code, std::string("[") + op + "] " + path + ": expected " + expected + ", got " +
                    std::generic_category().message(error)};
}

// A name beside `path` that nobody else writes to.
std::string name_beside(const std::string& path) {
  static std::atomic<uint64_t> next{0};
  return path + ".part-" + std::to_string(::getpid()) + "-" + std::to_string(next.fetch_add(1));
}

}  // namespace

FileWriter::FileWriter(const std::string& path) : path_(path), beside_(name_beside(path)) {
  if (path.find('\0') != path.npos) {
    status_ = invalid_argument("save", "path", "a path", "one with a zero byte");
    return;
  }
  const int number = ::open(beside_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (number >= 0) file_.reset(::fdopen(number, "wb"));
  if (file_ == nullptr) fail();
}

FileWriter::~FileWriter() {
  if (file_ == nullptr) return;
  file_.reset();
  ::unlink(beside_.c_str());
}

void FileWriter::fail() {
  if (status_.ok()) status_ = failed("save", path_, "a place that can be written to");
}

void FileWriter::bytes(const void* data, size_t count) {
  if (!status_.ok() || count == 0) return;
  hash_.add(data, count);
  if (std::fwrite(data, 1, count, file_.get()) != count) fail();
}

void FileWriter::number(uint64_t value) {
  uint8_t data[8];
  for (int i = 0; i < 8; ++i) data[i] = static_cast<uint8_t>(value >> 8 * i);
  bytes(data, sizeof data);
}

void FileWriter::text(const std::string& value) {
  number(value.size());
  bytes(value.data(), value.size());
}

Status FileWriter::finish() {
  const Digest digest = hash_.finish();
  if (status_.ok() && std::fwrite(digest.data(), 1, digest.size(), file_.get()) != digest.size()) fail();
  if (status_.ok() && (std::fflush(file_.get()) != 0 || ::fsync(::fileno(file_.get())) != 0)) fail();
  if (status_.ok() && ::rename(beside_.c_str(), path_.c_str()) != 0) fail();
  if (status_.ok()) file_.reset();
  return status_;
}

FileReader::FileReader(const std::string& path) : path_(path), status_(open()) {}

Status FileReader::open() {
  if (path_.find('\0') != path_.npos) {
    return invalid_argument("load", "path", "a path", "one with a zero byte");
  }
  // Without O_NONBLOCK a pipe in place of a file would wait for somebody to write to it.
  const int number = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (number < 0) return failed("load", path_, "a file that can be read");
  file_.reset(::fdopen(number, "rb"));
  struct stat about = {};
  if (file_ == nullptr || ::fstat(number, &about) != 0)
    return failed("load", path_, "a file that can be read");
  if (!S_ISREG(about.st_mode)) return invalid_argument("load", path_, "a regular file", "something else");
  if (about.st_size < static_cast<off_t>(sizeof(Digest))) {
    return corrupt(path_, "session", "a session's file", std::to_string(about.st_size) + " bytes");
  }
  left_ = static_cast<uint64_t>(about.st_size) - sizeof(Digest);
  return {};
}

void FileReader::refuse(const std::string& expected, const std::string& got) {
  if (status_.ok()) status_ = corrupt(path_, "session", expected, got);
}

void FileReader::bytes(void* data, size_t count) {
  std::memset(data, 0, count);
  if (!status_.ok() || count == 0) return;
  if (count > left_ || std::fread(data, 1, count, file_.get()) != count) {
    refuse(std::to_string(count) + " bytes more", "the end of the file");
    return;
  }
  left_ -= count;
  hash_.add(data, count);
}

uint64_t FileReader::number() {
  uint8_t data[8];
  bytes(data, sizeof data);
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | data[i];
  return value;
}

uint64_t FileReader::count(const char* what, uint64_t bytes, uint64_t most) {
  const uint64_t value = number();
  if (value <= most && value <= left_ / bytes) return value;
  refuse(std::string("a number of ") + what + " that the file can hold", std::to_string(value));
  return 0;
}

std::string FileReader::text(uint64_t most) {
  std::string value(count("bytes", 1, most), '\0');
  bytes(value.data(), value.size());
  return value;
}

Status FileReader::finish() {
  if (left_ != 0) refuse("the end of the file", std::to_string(left_) + " bytes more");
  if (!status_.ok()) return status_;
  Digest written;
  const bool read = std::fread(written.data(), 1, written.size(), file_.get()) == written.size();
  if (!read || written != hash_.finish()) refuse("what was written", "something else");
  return status_;
}

}  // namespace earnest::engine
