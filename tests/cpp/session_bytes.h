// SPDX-License-Identifier: Apache-2.0
// The bytes of a session's file, for tests that change them.
#pragma once

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>

#include "csrc/engine/digest.h"

namespace tiny {

inline std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write(const std::string& path, const std::string& data) {
  std::ofstream(path, std::ios::binary) << data;
}

// The same with the digest that belongs to it, as somebody who lies would write it.
inline std::string signed_again(std::string data) {
  using namespace earnest::engine;
  Sha256 hash;
  hash.add(data.data(), data.size() - sizeof(Digest));
  const Digest digest = hash.finish();
  std::copy(digest.begin(), digest.end(), data.end() - sizeof(Digest));
  return data;
}

}  // namespace tiny
