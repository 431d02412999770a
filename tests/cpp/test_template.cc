// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "csrc/engine/template.h"
#include "tests/cpp/check.h"
#include "tests/cpp/small_vocabulary.h"

using earnest::Status;
using namespace earnest::engine;

namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer* const read = [] {
    auto* place = new Tokenizer;
    CHECK(Tokenizer::parse(small::definition({}), "small", place).ok());
    return place;
  }();
  return *read;
}

const std::vector<Message> kDialogue = {
    {"system", {Text{"Be kind."}}, {}},
    {"user", {Text{"Listen:"}, Clip{{2, 1}}}, {}},
    {"assistant", {Text{"Seven."}}, "low"},
    {"function_output", {Text{"x"}}, {}},
    {"user", {Clip{{1, 0}}, Text{"And <|EOT|>?"}, Text{"!"}}, {}},
};

Message user(std::string text) { return {"user", {Text{std::move(text)}}, std::nullopt}; }
Message heard(std::vector<int64_t> frames) { return {"user", {Clip{std::move(frames)}}, std::nullopt}; }

std::string rendered(const std::vector<Message>& messages, const RenderOptions& options) {
  Rendered result;
  const Status status = render(messages, tokenizer(), options, &result);
  return status.ok() ? tokenizer().decode(result.ids, false) : status.message();
}

const std::string kAudio =
    "<audio_start><audio_patch><audio_patch><audio_end><audio_start><audio_patch><audio_end>";

}  // namespace

TEST(canonical_closes_every_turn) {
  CHECK(rendered(kDialogue, {}) ==
        "<|BOT|>system\nBe kind.<|EOT|><|BOT|>human\nListen:\n" + kAudio +
            "<|EOT|><|BOT|>assistant\n<think>\nlow\n</think>\nSeven.<|EOT|><|BOT|>function_output\nx<|EOT|>"
            "<|BOT|>human\n<audio_start><audio_patch><audio_end>And <|EOT|>?\n!<|EOT|><|BOT|>assistant\n");
}

TEST(stepfun_compat_never_closes_an_assistant) {
  RenderOptions options;
  options.name = *template_named("stepfun-compat");
  options.strip_history = true;
  CHECK(rendered(kDialogue, options) == "<|BOT|>system\nBe kind.<|EOT|><|BOT|>human\nListen:\n" + kAudio +
                                            "<|EOT|><|BOT|>assistant\nSeven.<|BOT|>human\n<audio_start><"
                                            "audio_patch><audio_end>And <|EOT|>?\n!<|EOT|>"
                                            "<|BOT|>assistant\n<think>\n");
}

TEST(spans_point_at_the_patches) {
  Rendered result;
  CHECK(render(kDialogue, tokenizer(), {}, &result).ok());
  CHECK(result.audio.size() == 3 && result.audio[1].clip == 0 && result.audio[1].chunk == 1);
  CHECK(result.audio[2].clip == 1 && result.audio[2].chunk == 0);
  SpecialIds special;
  CHECK(SpecialIds::read(tokenizer(), &special).ok());
  CHECK(special.stop.size() == 3 && special.think_open.has_value());
  int64_t patches = 0;
  for (const auto& span : result.audio) {
    for (int64_t i = 0; i < span.length; ++i) CHECK(result.ids[span.start + i] == special.audio_patch);
    CHECK(result.ids[span.start - 1] == special.audio_start &&
          result.ids[span.start + span.length] == special.audio_end);
    patches += span.length;
  }
  CHECK(patches == std::count(result.ids.begin(), result.ids.end(), special.audio_patch));
}

TEST(a_prefilled_turn_stays_open) {
  RenderOptions options;
  options.prompt = Prompt::kNone;
  options.continue_final = true;
  Rendered result;
  CHECK(render({{"assistant", {Text{"<think>\nlow"}}, {}}}, tokenizer(), options, &result).ok());
  CHECK(result.inside_thought && result.ids[11] == *tokenizer().special("<think>"));
  CHECK(tokenizer().decode(result.ids, false) == "<|BOT|>assistant\n<think>\nlow");
  CHECK(render({{"assistant", {Text{"<think>a</think>b"}}, {}}}, tokenizer(), options, &result).ok());
  CHECK(!result.inside_thought);
  CHECK(rendered({{"assistant", {}, "low"}}, options) == "<|BOT|>assistant\n<think>\nlow");
}

TEST(an_error_leaves_the_result_alone) {
  Rendered result;
  result.ids = {1};
  CHECK(!render({heard({})}, tokenizer(), {}, &result).ok() && result.ids.size() == 1);
  CHECK(!render({user("\xFF")}, tokenizer(), {}, &result).ok() && result.ids.size() == 1);
  CHECK(rendered({heard({int64_t{1} << 40})}, {}).starts_with("[render] frames of clip 0: expected"));
}

TEST(tools_come_first) {
  RenderOptions options;
  options.prompt = Prompt::kNone;
  options.tools = "[ {\"n\":\"\\u00e9\\n\",\"x\":[1,2.50,1e20,-0,true,null]} ]";
  const std::string json = "[{\"n\": \"\u00e9\\n\", \"x\": [1, 2.5, 1e+20, 0, true, null]}]";
  CHECK(rendered({{"system", {Text{"S"}}, {}}}, options) ==
        "<|BOT|>system\nS<|EOT|><|BOT|>tool_json_schemas\n" + json + "<|EOT|>");
  CHECK(rendered({}, options) == "<|BOT|>system\n<|BOT|>tool_json_schemas\n" + json + "<|EOT|>");
  options.tools = "[]";
  CHECK(rendered({}, options).empty());
}
