// SPDX-License-Identifier: Apache-2.0
// Chat completions in one call: what the request may say, what it is refused for, and what comes back.
#include "tests/capi/talk.h"

using namespace talk;

namespace {

std::string request(const std::string& messages, const std::string& more = "") {
  return "{\"messages\":" + messages + ",\"max_tokens\":12,\"seed\":3" + more + "}";
}

constexpr char kTurn[] = R"([{"role":"system","content":"hear"},{"role":"user","content":"so tired"}])";

earnest_status chat(const Engine& engine, const std::string& request, std::string* response = nullptr) {
  char* made = reinterpret_cast<char*>(1);
  const earnest_status status = earnest_chat(engine.get(), request.c_str(), &made);
  CHECK((status == EARNEST_OK) == (made != nullptr));
  if (made && response) *response = made;
  earnest_free(made);
  return status;
}

// What stands behind "key": in the response, up to the next comma or brace.
std::string field(const std::string& json, const std::string& key) {
  const size_t at = json.find("\"" + key + "\":");
  if (at == json.npos) return "none";
  const size_t begin = at + key.size() + 3;
  if (json[begin] != '"') return json.substr(begin, json.find_first_of(",}", begin) - begin);
  size_t end = begin + 1;
  while (json[end] != '"') end += json[end] == '\\' ? 2 : 1;
  return json.substr(begin + 1, end - begin - 1);
}

std::string base64(const std::string& bytes) {
  constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j) {
      bits = bits << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0U);
    }
    for (size_t j = 0; j < 4; ++j) text += i + j > bytes.size() ? '=' : kAlphabet[bits >> (18 - 6 * j) & 63];
  }
  return text;
}

}  // namespace

TEST(a_request_is_answered) {
  const Engine engine = talk::engine();
  std::string response;
  CHECK_OK(chat(engine, request(kTurn), &response));
  CHECK(response.find('\n') == response.npos);
  CHECK(field(response, "object") == "chat.completion" && field(response, "role") == "assistant");
  CHECK(field(response, "model") == "tiny" && !field(response, "content").empty());
  const std::string reason = field(response, "finish_reason");
  CHECK(reason == "stop" || reason == "length");
  const auto number = [&](const char* key) { return std::stoi(field(response, key)); };
  CHECK(number("total_tokens") == number("prompt_tokens") + number("completion_tokens"));
  CHECK(number("completion_tokens") <= 12 && number("prompt_tokens") > 5);
  CHECK(number("cached_tokens") == 0 && number("audio_tokens") == 0);
  std::string again, other;
  CHECK_OK(chat(engine, request(kTurn), &again));
  CHECK(field(again, "content") == field(response, "content") && field(again, "id") != field(response, "id"));
  CHECK_OK(chat(engine, request(kTurn, ",\"user\":\"me\",\"unknown\":{\"a\":[1]},\"top_k\":-1,\"stop\":null"),
                &other));
  CHECK(field(other, "content") == field(response, "content"));
}

TEST(it_says_what_a_session_says) {
  const Engine engine = talk::engine();
  const Session session = talk::session(engine);
  CHECK_OK(add_text(session, "hear", "system"));
  CHECK_OK(add_text(session, "so tired"));
  CHECK_OK(earnest_session_add_answer(session.get(), "it", "and so"));
  CHECK_OK(add_text(session, "I am"));
  CHECK_OK(add_text(session, "glad"));
  earnest_generation_params params = talk::params(12, 3);
  const Said said = answer(session, params);
  std::string response;
  CHECK_OK(chat(engine,
                request(R"([{"role":"developer","content":"hear"},{"role":"human","content":"so tired"},
      {"role":"assistant","content":"and so","reasoning_content":"it"},
      {"role":"user","content":[{"type":"text","text":"I am"},{"type":"text","text":"glad"}]}])"),
                &response));
  CHECK(field(response, "content") == said.reply);
  CHECK(field(response, "reasoning") == (said.reasoning.empty() ? "none" : said.reasoning));
}

TEST(sound_comes_as_base64) {
  const Engine engine = talk::engine();
  const std::string sound = base64(wav(tone(0.5)));
  const auto with = [&](const std::string& data) {
    return request(R"([{"role":"user","content":[{"type":"input_audio","input_audio":{"data":")" + data +
                   R"(","format":"wav"}},{"type":"text","text":"hear"}]}])");
  };
  std::string response, prefixed, empty;
  CHECK_OK(chat(engine, with(sound), &response));
  CHECK(field(response, "audio_tokens") == "6");
  CHECK_OK(chat(engine, with("data:audio/wav;base64," + sound), &prefixed));
  CHECK(field(prefixed, "content") == field(response, "content"));
  CHECK_OK(chat(engine, with(base64(wav({}))), &empty));  // clients send such parts
  CHECK(field(empty, "audio_tokens") == "0");
  CHECK(chat(engine, with("*" + sound)) == EARNEST_INVALID_ARGUMENT);
  CHECK(chat(engine, with(sound.substr(0, sound.size() / 4 * 4 - 3))) != EARNEST_OK);
  CHECK(chat(engine, with("")) == EARNEST_AUDIO_FORMAT);
  CHECK(chat(engine, with(base64("ID3 something"))) == EARNEST_AUDIO_FORMAT);
  const std::string path = request(R"([{"role":"user","content":[{"type":"audio","audio":"/etc/passwd"}]}])");
  CHECK(chat(engine, path) == EARNEST_UNSUPPORTED);
  CHECK(chat(engine, request(R"([{"role":"user","content":[{"type":"audio_url",
                                 "audio_url":{"url":"file:///etc/passwd"}}]}])")) == EARNEST_UNSUPPORTED);
}

TEST(an_answer_that_is_begun_goes_on) {
  const Engine engine = talk::engine();
  const std::string begun = R"([{"role":"user","content":"so tired"},
                                {"role":"assistant","content":"<think>\n","eot":false}])";
  const std::string on = ",\"continue_final_message\":true,\"add_generation_prompt\":false";
  std::string apart, raw;
  CHECK_OK(chat(engine, request(begun, on), &apart));
  CHECK(field(apart, "content") == "" && field(apart, "reasoning_content") != "none");
  // The published client wants the thought as text, and gets it.
  CHECK_OK(chat(engine, request(begun, on + ",\"skip_special_tokens\":false"), &raw));
  CHECK(field(raw, "reasoning_content") == "none" && !field(raw, "content").empty());
  CHECK(field(raw, "content").find(field(apart, "reasoning_content")) != std::string::npos);
  CHECK(chat(engine, request(begun, ",\"continue_final_message\":true,\"add_generation_prompt\":true")) ==
        EARNEST_INVALID_ARGUMENT);
  CHECK(chat(engine, request(kTurn, on)) == EARNEST_INVALID_ARGUMENT);
  CHECK_OK(chat(engine, request(R"([{"role":"user","content":"a"},{"role":"assistant","content":null}])")));
}

TEST(what_cannot_be_given_is_refused_by_name) {
  const Engine engine = talk::engine();
  for (const char* more :
       {",\"n\":2", ",\"stream\":true", ",\"logprobs\":true", ",\"modalities\":[\"text\",\"audio\"]",
        ",\"response_format\":{\"type\":\"json_object\"}"}) {
    CHECK(chat(engine, request(kTurn, more)) == EARNEST_UNSUPPORTED);
    const std::string name(more + 2, std::strchr(more + 2, '"'));
    CHECK(std::strstr(earnest_last_error(), name.c_str()) != nullptr);
  }
  for (const char* more :
       {",\"temperature\":\"hot\"", ",\"temperature\":-1", ",\"temperature\":1e999", ",\"top_p\":0",
        ",\"top_k\":1.5", ",\"stop\":5", ",\"stop\":[1]", ",\"stop\":\"\"", ",\"stop_token_ids\":[-1]",
        ",\"stop_token_ids\":[null]", ",\"stop_token_ids\":7", ",\"min_p\":\"a\"", ",\"tools\":{}",
        ",\"stream\":1", ",\"max_completion_tokens\":0", ",\"max_completion_tokens\":-1"}) {
    const bool refused = chat(engine, request(kTurn, more)) == EARNEST_INVALID_ARGUMENT;
    if (!refused) std::printf("accepted: %s\n", more);
    CHECK(refused);
  }
}

TEST(requests_that_are_none) {
  const Engine engine = talk::engine();
  for (const char* text :
       {"", "{", "[]", "null", "{}", "{\"messages\":[]}", "{\"messages\":{}}", "{\"messages\":[1]}",
        "{\"messages\":[{}]}", "{\"messages\":[{\"role\":5}]}", "{\"messages\":[{\"role\":\"user\"}]}",
        "{\"messages\":[{\"role\":\"us er\\n\",\"content\":\"a\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":5}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":[5]}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}",
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"reasoning\":7}]}"}) {
    const earnest_status status = chat(engine, text);
    CHECK(status == EARNEST_INVALID_ARGUMENT || status == EARNEST_UNSUPPORTED ||
          status == EARNEST_CORRUPT_MODEL);
    if (status == EARNEST_OK) std::printf("accepted: %s\n", text);
  }
  CHECK(chat(engine, std::string(100, '[')) == EARNEST_INVALID_ARGUMENT);
  std::string many = "[";
  for (int i = 0; i < 5000; ++i) many += R"({"role":"user","content":"a"},)";
  many.back() = ']';
  CHECK(chat(engine, request(many)) == EARNEST_INVALID_ARGUMENT);
  CHECK(chat(engine, "{\"a\":[" + std::string(9 << 20, ',') + "]}") == EARNEST_INVALID_ARGUMENT);
  CHECK(chat(engine, std::string((64 << 20) + 1, ' ')) == EARNEST_INVALID_ARGUMENT);
}
