// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/template.h"

#include <algorithm>

#include "csrc/engine/json.h"
#include "csrc/engine/reasoning.h"
#include "csrc/engine/tools.h"

namespace earnest::engine {
namespace {

constexpr int64_t kMostFrames = 1 << 16;  // of one chunk; 30 s of sound have 375

// Collects tokens; text is gathered and encoded when a special token, a seam or the end comes. After an error
// it takes nothing more.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, const SpecialIds& special) : tokenizer_(tokenizer), special_(special) {}

  Status finish(Rendered* rendered) {
    seam();
    if (status_.ok()) *rendered = std::move(out_);
    return status_;
  }

  void text(std::string_view text) { run_ += text; }
  void seam() {
    if (status_.ok() && !run_.empty()) status_ = tokenizer_.encode(run_, &out_.ids);
    run_.clear();
  }
  void open(std::string_view role) {
    token(special_.bot);
    text(role);
    text("\n");
  }
  void close() { token(special_.eot); }

  void content(const Message& message) {
    for (size_t i = 0; i < message.parts.size(); ++i) {
      if (i > 0 && !std::holds_alternative<Clip>(message.parts[i - 1])) text("\n");
      if (const auto* clip = std::get_if<Clip>(&message.parts[i])) {
        audio(*clip);
      } else {
        text(std::get<Text>(message.parts[i]).text);
      }
    }
  }

  // "<think>\n", where a prompt can end.
  void open_thought() {
    tag(kThinkOpen);
    text("\n");
    seam();
  }
  void thought(std::string_view reasoning, bool closed = true) {
    open_thought();
    text(reasoning);
    if (!closed) return;
    text("\n");
    tag(kThinkClose);
    text("\n");
  }

  // A think tag: its token, or its text where the vocabulary has no token for it.
  void tag(std::string_view name) {
    const auto& id = name == kThinkOpen ? special_.think_open : special_.think_close;
    id ? token(*id) : text(name);
  }
  void inside_thought(bool inside) { out_.inside_thought = inside; }

 private:
  void token(int32_t id) {
    seam();
    out_.ids.push_back(id);
  }

  void audio(const Clip& clip) {
    if (!std::any_of(clip.frames.begin(), clip.frames.end(), [](int64_t n) { return n > 0; })) {
      return wrong("at least one adaptor frame (more than 20 ms of sound)", "none");
    }
    for (size_t chunk = 0; chunk < clip.frames.size(); ++chunk) {
      const int64_t frames = clip.frames[chunk];
      if (frames < 0 || frames > kMostFrames) {
        return wrong("from 0 to " + std::to_string(kMostFrames) + " in a chunk", std::to_string(frames));
      }
      if (frames == 0) continue;  // a last chunk of under 20 ms gives the adaptor nothing to say
      token(special_.audio_start);
      const auto start = static_cast<int64_t>(out_.ids.size());
      out_.audio.push_back({clip_, static_cast<int64_t>(chunk), start, frames});
      out_.ids.insert(out_.ids.end(), static_cast<size_t>(frames), special_.audio_patch);
      token(special_.audio_end);
    }
    ++clip_;
  }

  void wrong(const std::string& expected, const std::string& got) {
    if (status_.ok()) {
      status_ = invalid_argument("render", "frames of clip " + std::to_string(clip_), expected, got);
    }
  }

  const Tokenizer& tokenizer_;
  const SpecialIds& special_;
  Rendered out_;
  Status status_;
  std::string run_;
  int64_t clip_ = 0;
};

// The text parts of a turn, joined as a template joins them.
std::string text_of(const Message& message) {
  std::string result;
  bool first = true;
  for (const Part& part : message.parts) {
    const auto* text = std::get_if<Text>(&part);
    if (!text) continue;
    if (!first) result += '\n';
    result += text->text;
    first = false;
  }
  return result;
}

void render_tools(const std::string& tools, const std::vector<Message>& messages, Writer* writer) {
  writer->open("system");
  if (!messages.empty() && messages[0].role == "system") {
    writer->content(messages[0]);
    writer->close();
  }
  writer->open("tool_json_schemas");
  writer->text(tools);
  writer->close();
}

void render_turn(const Message& message, Writer* writer) {
  writer->open(message.role == "user" ? "human" : message.role);
  writer->content(message);
  writer->close();
}

void render_assistant(const Message& message, bool with_thought, bool close, Writer* writer) {
  writer->open("assistant");
  writer->seam();
  if (with_thought && message.reasoning) writer->thought(*message.reasoning);
  writer->content(message);
  if (close) writer->close();
  writer->seam();
}

// An assistant turn left open, to be continued: verbatim, but the author's think tags become tokens.
void render_prefill(const Message& message, Writer* writer) {
  writer->open("assistant");
  writer->seam();
  const std::string text = text_of(message);
  if (message.reasoning) {
    writer->thought(*message.reasoning, !text.empty());
    writer->inside_thought(text.empty());
    writer->text(text);
    return;
  }
  std::string_view rest = text;
  while (true) {
    const size_t open = rest.find(kThinkOpen), close = rest.find(kThinkClose), at = std::min(open, close);
    writer->text(rest.substr(0, at));
    if (at == rest.npos) break;
    const std::string_view tag = open < close ? kThinkOpen : kThinkClose;
    writer->tag(tag);
    writer->inside_thought(tag == kThinkOpen);
    rest.remove_prefix(at + tag.size());
  }
}

void render_prompt(bool think, Writer* writer) {
  writer->open("assistant");
  writer->seam();
  if (think) writer->open_thought();
  writer->inside_thought(think);
}

Status check(const std::vector<Message>& messages, const RenderOptions& options) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    const std::string where = "messages[" + std::to_string(i) + "].";
    if (message.role.empty() || message.role.find('\n') != message.role.npos) {
      return invalid_argument("render", where + "role", "a word", json::quoted(message.role));
    }
    if (message.role == "assistant") {
      const auto is_clip = [](const Part& part) { return std::holds_alternative<Clip>(part); };
      if (std::any_of(message.parts.begin(), message.parts.end(), is_clip)) {
        return invalid_argument("render", where + "parts", "text only in an assistant turn", "a clip");
      }
    } else if (message.reasoning) {
      return invalid_argument("render", where + "reasoning", "none unless the role is assistant",
                              "role " + json::quoted(message.role));
    }
  }
  if (!options.continue_final) return {};
  if (options.prompt != Prompt::kNone) {
    return invalid_argument("render", "continue_final", "not both this and a prompt", "both");
  }
  if (messages.empty() || messages.back().role != "assistant") {
    return invalid_argument("render", "continue_final", "an assistant turn last",
                            messages.empty() ? "no message" : messages.back().role);
  }
  return {};
}

}  // namespace

std::optional<TemplateName> template_named(std::string_view name) {
  if (name == "canonical") return TemplateName::kCanonical;
  if (name == "stepfun-compat") return TemplateName::kStepfunCompat;
  return std::nullopt;
}

Status SpecialIds::read(const Tokenizer& tokenizer, SpecialIds* ids) {
  const std::pair<std::string_view, int32_t*> required[] = {{"<|BOT|>", &ids->bot},
                                                            {"<|EOT|>", &ids->eot},
                                                            {"<audio_start>", &ids->audio_start},
                                                            {"<audio_end>", &ids->audio_end},
                                                            {"<audio_patch>", &ids->audio_patch}};
  for (const auto& [name, place] : required) {
    const auto id = tokenizer.special(name);
    if (!id) {
      return invalid_argument("tokenizer", "added_tokens", "the special token " + std::string(name),
                              "none of that name");
    }
    *place = *id;
  }
  ids->think_open = tokenizer.special(kThinkOpen);
  ids->think_close = tokenizer.special(kThinkClose);
  ids->stop.clear();
  for (const std::string_view name : {"<|endoftext|>", "<|im_end|>", "<|EOT|>"}) {
    if (const auto id = tokenizer.special(name)) ids->stop.push_back(*id);
  }
  return {};
}

Status render(const std::vector<Message>& messages, const Tokenizer& tokenizer, const RenderOptions& options,
              Rendered* rendered) {
  SpecialIds special;
  std::string tools;
  Status status = check(messages, options);
  if (status.ok()) status = SpecialIds::read(tokenizer, &special);
  if (status.ok() && !options.tools.empty()) status = tools_text(options.tools, &tools);
  if (!status.ok()) return status;

  const bool compat = options.name == TemplateName::kStepfunCompat;
  Writer writer(tokenizer, special);
  if (!tools.empty()) render_tools(tools, messages, &writer);
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    const bool final = i + 1 == messages.size();
    if (message.role != "assistant") {
      const bool shown = i == 0 && !tools.empty() && message.role == "system";
      const bool dropped = compat && message.role == "function_output";
      if (!shown && !dropped) render_turn(message, &writer);
    } else if (options.continue_final && final) {
      render_prefill(message, &writer);
    } else {
      render_assistant(message, final || !options.strip_history, !compat, &writer);
    }
  }
  if (options.prompt != Prompt::kNone) {
    render_prompt(options.prompt == Prompt::kThink || (options.prompt == Prompt::kHabit && compat), &writer);
  }
  return writer.finish(rendered);
}

}  // namespace earnest::engine
