// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "csrc/capi/chat_request.h"
#include "tests/fuzz/driver.h"

FuzzMaterial fuzz_material() {
  FuzzMaterial material;
  material.seeds = {
      R"({"messages":[{"role":"user","content":"a"}],"max_tokens":5,"temperature":0.5,"seed":1})",
      R"({"messages":[{"role":"system","content":"a"},{"role":"human","content":[{"type":"text","text":"b"},)"
      R"({"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}}]}],"stop":["x","y"],"n":1})",
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"<think>\n","eot":false}],)"
      R"("continue_final_message":true,"add_generation_prompt":false,"skip_special_tokens":false,)"
      R"("stop_token_ids":[151665],"top_p":0.9,"tools":[{"type":"function"}],"stream":false})"};
  material.words = {"\"messages\":",
                    "\"role\":",
                    "\"content\":",
                    "null",
                    "[]",
                    "{}",
                    "\"assistant\"",
                    "true",
                    "\"reasoning\":\"r\",",
                    "\"tool_calls\":[],",
                    "\"chat_template_kwargs\":{\"enable_thinking\":true},",
                    "data:audio/wav;base64,",
                    "=",
                    "==",
                    "-0",
                    "1e308",
                    "\\ud83d\\ude00",
                    "\"stop\":"};
  return material;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  earnest::capi::ChatRequest request;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const earnest::capi::Outcome outcome = earnest::capi::read_chat_request(text, &request);
  if (!outcome.ok() && outcome.message().find("expected ") == std::string::npos) std::abort();
  return 0;
}
