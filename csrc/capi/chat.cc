// SPDX-License-Identifier: Apache-2.0
// A chat completion in one call: a session for one request and one answer.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "csrc/capi/call.h"
#include "csrc/capi/chat_request.h"
#include "csrc/capi/handles.h"
#include "csrc/capi/json_writer.h"
#include "csrc/engine/reasoning.h"
#include "csrc/engine/text_stream.h"

namespace earnest::capi {
namespace {

constexpr char kOp[] = "chat";

using engine::Answer;
using engine::Session;

Outcome add(const ChatMessage& message, Session* session) {
  if (message.role == "assistant") return session->add_answer(message.reasoning, message.text());
  if (message.parts.empty()) EARNEST_RETURN_IF_FAILED(session->add_text(message.role, ""));
  for (const ChatPart& part : message.parts) {
    if (const auto* text = std::get_if<std::string>(&part)) {
      EARNEST_RETURN_IF_FAILED(session->add_text(message.role, *text));
    } else {
      EARNEST_RETURN_IF_FAILED(session->add_wav(message.role, std::get<std::vector<std::byte>>(part)));
    }
  }
  return session->end_message();
}

Outcome wait_for(Answer* answer, engine::Finish* finish) {
  engine::Event event;
  do {
    EARNEST_RETURN_IF_FAILED(answer->next(-1, &event));
  } while (event.kind != engine::EventKind::kDone);
  *finish = event.finish;
  return event.status;
}

// The completion as it was drawn, thought and tags and all, but for the token and the text that ended it.
Outcome raw_text(const earnest_engine& engine, const Answer& answer, const engine::AnswerOptions& options,
                 std::string* text) {
  const engine::LoadedModel& model = engine.engine->model();
  std::vector<int32_t> ids;
  EARNEST_RETURN_IF_FAILED(answer.tokens(&ids, nullptr));
  const auto ends = [&](int32_t id) {
    return std::ranges::count(model.stop_ids(), id) > 0 || std::ranges::count(options.stop_ids, id) > 0;
  };
  if (!ids.empty() && ends(ids.back())) ids.pop_back();
  const std::string_view tags[] = {engine::kThinkOpen, engine::kThinkClose};
  engine::TextStream stream(model.tokenizer(), tags);
  *text = stream.push(ids);
  text->append(stream.finish());
  const size_t closed = text->find(engine::kThinkClose);
  for (const std::string& stop : options.stop) {
    const size_t from = closed == text->npos ? 0 : closed;
    if (const size_t at = text->find(stop, from); at != text->npos) text->resize(at);
  }
  return {};
}

std::string new_id(int64_t now) {
  static std::atomic<uint64_t> count{0};
  constexpr char kDigits[] = "0123456789abcdef";
  const uint64_t parts[] = {static_cast<uint64_t>(now), count.fetch_add(1)};
  std::string id = "chatcmpl-";
  for (const uint64_t part : parts) {
    for (int shift = 60; shift >= 0; shift -= 4) id += kDigits[part >> shift & 15];
  }
  return id;
}

void write_usage(const engine::Usage& usage, JsonWriter* json) {
  json->object([&] {
    json->member("prompt_tokens", usage.prompt_tokens);
    json->member("completion_tokens", usage.completion_tokens);
    json->member("total_tokens", usage.prompt_tokens + usage.completion_tokens);
    json->key("prompt_tokens_details").object([&] {
      json->member("cached_tokens", usage.cached_tokens);
      json->member("audio_tokens", usage.audio_tokens);
    });
    json->key("completion_tokens_details").object([&] {
      json->member("reasoning_tokens", usage.reasoning_tokens);
    });
  });
}

Outcome write_response(const earnest_engine& engine, const ChatRequest& request, const Answer& answer,
                       engine::Finish finish, std::string* response) {
  std::string content = answer.reply(), thought = answer.reasoning();
  if (request.raw) {
    EARNEST_RETURN_IF_FAILED(raw_text(engine, answer, request.options, &content));
    thought.clear();
  }
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  JsonWriter json;
  json.object([&] {
    json.member("id", new_id(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count()));
    json.member("object", "chat.completion");
    json.member("created", std::chrono::duration_cast<std::chrono::seconds>(now).count());
    json.member("model", engine.model_name);
    json.key("choices").array([&] {
      json.object([&] {
        json.member("index", 0);
        json.key("message").object([&] {
          json.member("role", "assistant");
          json.member("content", content);
          if (!thought.empty()) {  // clients know it by one of two names
            json.member("reasoning_content", thought);
            json.member("reasoning", thought);
          }
        });
        json.member("finish_reason", finish == engine::Finish::kLength ? "length" : "stop");
      });
    });
    write_usage(answer.usage(), &json.key("usage"));
  });
  *response = std::move(json.text());
  return {};
}

Outcome answer_request(const earnest_engine& engine, const char* text, std::string* response) {
  ChatRequest request;
  EARNEST_RETURN_IF_FAILED(read_chat_request(text, &request));
  engine::SessionOptions options;
  options.tools = request.tools;
  std::unique_ptr<Session> session;
  EARNEST_RETURN_IF_FAILED(Session::create(engine.engine, options, &session));
  for (ChatMessage& message : request.messages) {
    EARNEST_RETURN_IF_FAILED(add(message, session.get()));
    message = {};  // sound is large
  }
  std::unique_ptr<Answer> answer;
  EARNEST_RETURN_IF_FAILED(Answer::start(session.get(), request.options, &answer));
  engine::Finish finish = engine::Finish::kNone;
  EARNEST_RETURN_IF_FAILED(wait_for(answer.get(), &finish));
  return write_response(engine, request, *answer, finish, response);
}

}  // namespace
}  // namespace earnest::capi

using namespace earnest::capi;

earnest_status earnest_chat(earnest_engine* engine, const char* request, char** response) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "response", response));
    *response = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "engine", engine));
    EARNEST_RETURN_IF_FAILED(required(kOp, "request", request));
    std::string made;
    EARNEST_RETURN_IF_FAILED(answer_request(*engine, request, &made));
    auto* memory = static_cast<char*>(std::malloc(made.size() + 1));
    if (!memory) throw std::bad_alloc();
    std::memcpy(memory, made.c_str(), made.size() + 1);
    *response = memory;
    return {};
  });
}
