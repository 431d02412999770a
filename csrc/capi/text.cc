// SPDX-License-Identifier: Apache-2.0
// Text to ids and back, through memory that the caller has.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/capi/handles.h"
#include "csrc/capi/results.h"

using namespace earnest::capi;

earnest_status earnest_tokenize(const earnest_model* model, const char* text, size_t text_bytes,
                                int parse_special, int32_t* ids, size_t capacity, size_t* count) {
  constexpr char kOp[] = "tokenize";
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "model", model));
    EARNEST_RETURN_IF_FAILED(required(kOp, "count", count));
    if (text_bytes > 0) EARNEST_RETURN_IF_FAILED(required(kOp, "text", text));
    std::vector<int32_t> made;
    EARNEST_RETURN_IF_FAILED(model->loaded->tokenizer().encode(
        std::string_view(text_bytes > 0 ? text : "", text_bytes), &made, parse_special != 0));
    return copy_out(kOp, made.data(), made.size(), ids, capacity, count);
  });
}

earnest_status earnest_detokenize(const earnest_model* model, const int32_t* ids, size_t count, char* text,
                                  size_t capacity, size_t* bytes) {
  constexpr char kOp[] = "detokenize";
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "model", model));
    EARNEST_RETURN_IF_FAILED(required(kOp, "bytes", bytes));
    if (count > 0) EARNEST_RETURN_IF_FAILED(required(kOp, "ids", ids));
    const earnest::engine::Tokenizer& tokenizer = model->loaded->tokenizer();
    EARNEST_RETURN_IF_FAILED(check_count(kOp, "count", count, sizeof(int32_t)));
    for (size_t i = 0; i < count; ++i) {
      if (!tokenizer.has(ids[i])) {
        return invalid(kOp, "ids", "tokens of the vocabulary",
                       std::to_string(ids[i]) + " at place " + std::to_string(i));
      }
    }
    const std::string made = tokenizer.decode(std::vector<int32_t>(ids, ids + count), false);
    return copy_out(kOp, made.data(), made.size(), text, capacity, bytes);
  });
}
