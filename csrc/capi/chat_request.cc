// SPDX-License-Identifier: Apache-2.0
#include "csrc/capi/chat_request.h"

#include <algorithm>
#include <utility>

#include "csrc/capi/base64.h"
#include "csrc/engine/json.h"
#include "csrc/engine/utf8.h"

namespace earnest::capi {
namespace {

constexpr char kOp[] = "chat";
constexpr size_t kMostStops = 64;
constexpr int64_t kMostValues = 4 << 20;

using engine::json::Kind;
using engine::json::Value;

// null counts as not there.
bool given(const Value& value) { return !value.absent() && value.kind() != Kind::kNull; }

Outcome wrong(const std::string& argument, const std::string& expected, const Value& got) {
  return invalid(kOp, argument, expected,
                 got.absent() ? "none" : engine::shortened(std::string(got.text()), 100));
}

Outcome not_here(const std::string& argument, const std::string& expected, const Value& got) {
  return wrong(argument, expected, got).instead_of(EARNEST_INVALID_ARGUMENT, EARNEST_UNSUPPORTED);
}

// Each of these leaves `out` alone where the field is not given.
Outcome read(const Value& value, const std::string& name, double* out) {
  if (!given(value)) return {};
  const auto number = value.number();
  if (!number) return wrong(name, "a number", value);
  *out = *number;
  return {};
}

Outcome read(const Value& value, const std::string& name, bool* out) {
  if (!given(value)) return {};
  const auto flag = value.boolean();
  if (!flag) return wrong(name, "true or false", value);
  *out = *flag;
  return {};
}

Outcome read(const Value& value, const std::string& name, std::string* out) {
  if (!given(value)) return {};
  auto text = value.string();
  if (!text) return wrong(name, "a text", value);
  *out = std::move(*text);
  return {};
}

Outcome read_whole(const Value& value, const std::string& name, int64_t least, int64_t most, int64_t* out) {
  if (!given(value)) return {};
  const auto number = value.integer();
  if (!number || *number < least || *number > most) {
    return wrong(name, "a whole number from " + std::to_string(least) + " to " + std::to_string(most), value);
  }
  *out = *number;
  return {};
}

// ---- messages ----

std::string role_of(const std::string& said) {
  if (said == "human") return "user";
  return said == "developer" ? "system" : said;
}

Outcome read_sound(const Value& sound, const std::string& where, ChatMessage* message) {
  auto data = sound["data"].string();
  if (!data) return wrong(where + ".data", "base64 of a WAV file", sound["data"]);
  std::string_view encoded = *data;
  if (encoded.starts_with("data:")) {
    const size_t comma = encoded.find(";base64,");
    if (comma == encoded.npos) return invalid(kOp, where + ".data", "base64", "a data: URL of another kind");
    encoded.remove_prefix(comma + 8);
  }
  auto bytes = decode_base64(encoded);
  if (!bytes) return invalid(kOp, where + ".data", "base64", "something else");
  message->parts.emplace_back(std::move(*bytes));
  return {};
}

Outcome read_part(const Value& part, const std::string& where, ChatMessage* message) {
  const auto type = part["type"].string();
  if (type == "text") {
    auto text = part["text"].string();
    if (!text) return wrong(where + ".text", "a text", part["text"]);
    message->parts.emplace_back(std::move(*text));
    return {};
  }
  if (type == "input_audio") return read_sound(part["input_audio"], where + ".input_audio", message);
  // Paths and addresses in a request are never opened.
  return not_here(where + ".type", "text or input_audio", part["type"]);
}

Outcome read_content(const Value& content, const std::string& where, ChatMessage* message) {
  if (!given(content)) {
    if (message->role == "assistant") return {};
    return wrong(where, "a text or a list of parts", content);
  }
  if (auto text = content.string()) {
    message->parts.emplace_back(std::move(*text));
    return {};
  }
  if (content.kind() != Kind::kArray) return wrong(where, "a text or a list of parts", content);
  if (content.size() > kMostParts) {
    return invalid(kOp, where, "at most " + std::to_string(kMostParts) + " parts",
                   std::to_string(content.size()));
  }
  size_t index = 0;
  for (const Value part : content.items()) {
    EARNEST_RETURN_IF_FAILED(read_part(part, where + "[" + std::to_string(index++) + "]", message));
  }
  return {};
}

Outcome read_message(const Value& value, const std::string& where, ChatMessage* message) {
  auto role = value["role"].string();
  if (!role) return wrong(where + ".role", "a word", value["role"]);
  message->role = role_of(*role);
  EARNEST_RETURN_IF_FAILED(read_content(value["content"], where + ".content", message));
  if (given(value["tool_calls"]) && value["tool_calls"].size() > 0) {
    return not_here(where + ".tool_calls", "none", value["tool_calls"]);
  }
  if (message->role != "assistant") return {};
  for (const ChatPart& part : message->parts) {
    if (std::holds_alternative<std::string>(part)) continue;
    return invalid(kOp, where + ".content", "text only in an assistant turn", "sound");
  }
  for (const char* name : {"reasoning", "reasoning_content"}) {
    std::string thought;
    if (!given(value[name])) continue;
    EARNEST_RETURN_IF_FAILED(read(value[name], where + "." + name, &thought));
    message->reasoning = std::move(thought);
  }
  return {};
}

Outcome read_messages(const Value& list, std::vector<ChatMessage>* messages) {
  if (list.kind() != Kind::kArray || list.size() == 0) return wrong("messages", "a list of messages", list);
  if (list.size() > kMostMessages) {
    return invalid(kOp, "messages", "at most " + std::to_string(kMostMessages), std::to_string(list.size()));
  }
  for (const Value value : list.items()) {
    const std::string where = "messages[" + std::to_string(messages->size()) + "]";
    messages->emplace_back();
    EARNEST_RETURN_IF_FAILED(read_message(value, where, &messages->back()));
  }
  // An answer that is still to be given.
  const ChatMessage& last = messages->back();
  if (last.role == "assistant" && last.parts.empty() && !last.reasoning) messages->pop_back();
  return {};
}

// Whether the last message is the beginning of the answer, which then goes on from it.
Outcome read_continuation(const Value& root, ChatRequest* request) {
  bool goes_on = false;
  EARNEST_RETURN_IF_FAILED(read(root["continue_final_message"], "continue_final_message", &goes_on));
  bool prompt = !goes_on;
  EARNEST_RETURN_IF_FAILED(read(root["add_generation_prompt"], "add_generation_prompt", &prompt));
  if (prompt == goes_on) {
    return invalid(kOp, "add_generation_prompt", "one of this and continue_final_message",
                   prompt ? "both" : "neither");
  }
  if (!goes_on) return {};
  if (request->messages.empty() || request->messages.back().role != "assistant" ||
      request->messages.back().reasoning) {
    return invalid(kOp, "continue_final_message", "an assistant turn last, without its reasoning apart",
                   "another");
  }
  request->options.prefill = request->messages.back().text();
  request->messages.pop_back();
  return {};
}

// ---- how to answer ----

Outcome read_stops(const Value& root, engine::AnswerOptions* options) {
  const Value stop = root["stop"], ids = root["stop_token_ids"];
  if (const auto text = stop.string()) {
    options->stop.push_back(*text);
  } else if (given(stop)) {
    if (stop.kind() != Kind::kArray || stop.size() > kMostStops) {
      return wrong("stop", "a text or a list of at most " + std::to_string(kMostStops), stop);
    }
    for (const Value item : stop.items()) {
      if (!item.string()) return wrong("stop", "texts", item);
      options->stop.push_back(*item.string());
    }
  }
  for (const std::string& text : options->stop) {
    if (text.empty()) return invalid(kOp, "stop", "texts", "an empty one");
  }
  if (given(ids) && (ids.kind() != Kind::kArray || ids.size() > kMostStops)) {
    return wrong("stop_token_ids", "a list of at most " + std::to_string(kMostStops) + " ids", ids);
  }
  for (const Value item : ids.items()) {
    int64_t id = -1;
    if (!given(item)) return wrong("stop_token_ids", "ids", item);
    EARNEST_RETURN_IF_FAILED(read_whole(item, "stop_token_ids", 0, INT32_MAX, &id));
    options->stop_ids.push_back(static_cast<int32_t>(id));
  }
  return {};
}

Outcome read_options(const Value& root, engine::AnswerOptions* options) {
  engine::Sampling& sampling = options->sampling;
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    EARNEST_RETURN_IF_FAILED(read_whole(root[name], name, 1, INT32_MAX, &options->max_tokens));
  }
  sampling.temperature = 0.7;
  sampling.top_p = 0.9;
  int64_t top_k = 0, seed = 0;
  EARNEST_RETURN_IF_FAILED(read(root["temperature"], "temperature", &sampling.temperature));
  EARNEST_RETURN_IF_FAILED(read(root["top_p"], "top_p", &sampling.top_p));
  EARNEST_RETURN_IF_FAILED(read_whole(root["top_k"], "top_k", -1, INT32_MAX, &top_k));
  EARNEST_RETURN_IF_FAILED(read(root["min_p"], "min_p", &sampling.min_p));
  EARNEST_RETURN_IF_FAILED(
      read(root["repetition_penalty"], "repetition_penalty", &sampling.repetition_penalty));
  EARNEST_RETURN_IF_FAILED(read(root["presence_penalty"], "presence_penalty", &sampling.presence_penalty));
  EARNEST_RETURN_IF_FAILED(read(root["frequency_penalty"], "frequency_penalty", &sampling.frequency_penalty));
  EARNEST_RETURN_IF_FAILED(read_whole(root["seed"], "seed", INT64_MIN, INT64_MAX, &seed));
  sampling.top_k = static_cast<int32_t>(std::max<int64_t>(top_k, 0));  // -1: another way to say none
  options->seed = static_cast<uint64_t>(seed);
  bool thinks = false;
  const Value thinking = root["chat_template_kwargs"]["enable_thinking"];
  EARNEST_RETURN_IF_FAILED(read(thinking, "enable_thinking", &thinks));
  if (given(thinking)) options->thinking = thinks ? engine::Thinking::kOn : engine::Thinking::kOff;
  return read_stops(root, options);
}

// What is asked for in vain is refused, not passed over.
Outcome check_possible(const Value& root) {
  int64_t choices = 1;
  bool stream = false, logprobs = false;
  EARNEST_RETURN_IF_FAILED(read_whole(root["n"], "n", 1, INT32_MAX, &choices));
  EARNEST_RETURN_IF_FAILED(read(root["stream"], "stream", &stream));
  EARNEST_RETURN_IF_FAILED(read(root["logprobs"], "logprobs", &logprobs));
  if (choices != 1) return not_here("n", "1", root["n"]);
  if (stream) return not_here("stream", "false", root["stream"]);
  if (logprobs) return not_here("logprobs", "false", root["logprobs"]);
  const Value format = root["response_format"];
  if (given(format) && format["type"].string() != "text") {
    return not_here("response_format.type", "text", format["type"]);
  }
  for (const Value modality : root["modalities"].items()) {
    if (modality.string() != "text") return not_here("modalities", "text", modality);
  }
  return {};
}

Outcome read_tools(const Value& root, std::string* tools) {
  if (!given(root["tools"]) || root["tool_choice"].string() == "none") return {};
  if (root["tools"].kind() != Kind::kArray) return wrong("tools", "a list", root["tools"]);
  *tools = std::string(root["tools"].text());
  return {};
}

// Thought and reply apart, but as one text for who continues an answer and wants special tokens shown: that
// is how the published client reads it.
Outcome read_manner(const Value& root, bool goes_on, bool* raw) {
  bool skips = true;
  EARNEST_RETURN_IF_FAILED(read(root["skip_special_tokens"], "skip_special_tokens", &skips));
  bool apart = skips || !goes_on;
  EARNEST_RETURN_IF_FAILED(read(root["separate_reasoning"], "separate_reasoning", &apart));
  *raw = !apart;
  return {};
}

}  // namespace

std::string ChatMessage::text() const {
  std::string joined;
  for (const ChatPart& part : parts) {
    if (!joined.empty()) joined += '\n';
    if (const auto* words = std::get_if<std::string>(&part)) joined += *words;
  }
  return joined;
}

Outcome read_chat_request(std::string_view text, ChatRequest* request) {
  if (text.size() > kLongestRequest) {
    return invalid(kOp, "request", "at most " + std::to_string(kLongestRequest) + " bytes",
                   std::to_string(text.size()));
  }
  // Each value takes more memory than the byte or two that it may be written with.
  const auto values = std::ranges::count_if(text, [](char c) { return c == ',' || c == '[' || c == '{'; });
  if (values > kMostValues) {
    return invalid(kOp, "request", "at most " + std::to_string(kMostValues) + " commas and brackets",
                   std::to_string(values));
  }
  engine::json::Document document;
  EARNEST_RETURN_IF_FAILED(engine::json::Document::parse(std::string(text), "request", &document));
  const Value root = document.root();
  if (root.kind() != Kind::kObject) return wrong("request", "an object", root);
  EARNEST_RETURN_IF_FAILED(check_possible(root));
  EARNEST_RETURN_IF_FAILED(read(root["model"], "model", &request->model));
  EARNEST_RETURN_IF_FAILED(read_messages(root["messages"], &request->messages));
  EARNEST_RETURN_IF_FAILED(read_options(root, &request->options));
  EARNEST_RETURN_IF_FAILED(read_continuation(root, request));
  EARNEST_RETURN_IF_FAILED(read_tools(root, &request->tools));
  return read_manner(root, !request->options.prefill.empty(), &request->raw);
}

}  // namespace earnest::capi
