// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "csrc/engine/tokenizer.h"
#include "tests/cpp/small_vocabulary.h"
#include "tests/fuzz/driver.h"

FuzzMaterial fuzz_material() {
  FuzzMaterial material;
  const std::vector<small::Merge> merges = {{"a", "b"}, {"ab", "c"}, {" ", "a"}};
  material.seeds = {small::definition(merges), small::definition(merges, R"({"type":"NFC"})"),
                    small::definition({})};
  material.words = {"\"vocab\"",
                    "\"merges\"",
                    "\"added_tokens\"",
                    "\"id\":",
                    "\"content\":\"",
                    "\"special\":true",
                    "\"normalized\":true",
                    "\"a b\"",
                    "[\"a\",\"b\"]",
                    "\"NFC\"",
                    "\"ByteLevel\"",
                    "\"unk_token\":\"a\"",
                    "\"ignore_merges\":true",
                    "null",
                    "{}",
                    "[]",
                    "1048576",
                    "-1",
                    "\\u0120",
                    "\xC4\xA0"};
  return material;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  earnest::engine::Tokenizer tokenizer;
  const std::string definition(reinterpret_cast<const char*>(data), size);
  const earnest::Status status = earnest::engine::Tokenizer::parse(definition, "fuzz", &tokenizer);
  if (!status.ok()) {
    if (status.message().find(": expected ") == std::string::npos) std::abort();
    return 0;
  }
  for (const char* text :
       {"", "abcab a<|EOT|>", "\xC3\xA9\xE2\x82\xAC \xF0\x9F\x98\x80\n\n  1234", "don't"}) {
    for (const bool special : {false, true}) {
      std::vector<int32_t> ids;
      if (!tokenizer.encode(text, &ids, special).ok()) continue;
      for (const int32_t id : ids) {
        if (id < 0 || id >= tokenizer.end() || !tokenizer.has(id)) std::abort();
      }
      (void)tokenizer.decode(ids, !special);
    }
  }
  return 0;
}
