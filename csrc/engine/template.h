// SPDX-License-Identifier: Apache-2.0
// Messages to token ids, with the places of audio.
//
// Every turn is <|BOT|>role\n + content + <|EOT|>; "user" is written "human", other roles as they stand.
// Parts are joined by a newline, except after a clip. A clip is, for each chunk, <audio_start>, as many
// <audio_patch> as the adaptor gives frames, <audio_end>. An assistant turn with reasoning is <think>\n
// reasoning \n</think>\n reply.
//
// - canonical closes every turn, so that each turn's prompt is a prefix of the next one's.
// - stepfun-compat gives what the published chat template gives: assistant turns are never closed,
//   "function_output" turns vanish, the generation prompt opens a thought.
//
// Text between special tokens is encoded as one run, but never across the places where a prompt can end
// (after "assistant\n" and after "<think>\n"): a prompt's ids are a prefix of the ids of the dialogue that it
// becomes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/engine/message.h"
#include "csrc/engine/tokenizer.h"
#include "kernels/common/status.h"

namespace earnest::engine {

enum class TemplateName : uint8_t { kCanonical, kStepfunCompat };
std::optional<TemplateName> template_named(std::string_view name);

// The special tokens of the family, as this vocabulary numbers them.
struct SpecialIds {
  int32_t bot, eot, audio_start, audio_end, audio_patch;
  std::optional<int32_t> think_open, think_close;  // else the tags are spelled
  std::vector<int32_t> stop;  // those of <|endoftext|>, <|im_end|> and <|EOT|> that there are

  static Status read(const Tokenizer& tokenizer, SpecialIds* ids);
};

// The <audio_patch> tokens of one chunk: positions start .. start + length.
struct AudioSpan {
  int64_t clip, chunk, start, length;
};

struct Rendered {
  std::vector<int32_t> ids;
  std::vector<AudioSpan> audio;  // in the order in which the clips are heard
  bool inside_thought = false;   // the ids end within an opened thought: for ReasoningStream
};

enum class Prompt : uint8_t { kNone, kPlain, kThink, kHabit };  // kHabit: plain, but of stepfun-compat think

struct RenderOptions {
  TemplateName name = TemplateName::kCanonical;
  Prompt prompt = Prompt::kHabit;  // opens the turn that is to be generated
  bool continue_final =
      false;                   // leaves the last assistant turn open, its text verbatim; then prompt is kNone
  bool strip_history = false;  // takes the thoughts of all assistant turns before the last message away
  std::string tools;           // JSON schemas, a list, shown before the dialogue; "" for none
};

Status render(const std::vector<Message>& messages, const Tokenizer& tokenizer, const RenderOptions& options,
              Rendered* rendered);

}  // namespace earnest::engine
