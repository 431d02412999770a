// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "csrc/bindings/bindings.h"
#include "csrc/engine/reasoning.h"
#include "csrc/engine/template.h"
#include "csrc/engine/text_stream.h"
#include "csrc/engine/tokenizer.h"

namespace earnest::bindings {
namespace {

using engine::TextStream;
using engine::Tokenizer;
using Ids = nb::ndarray<nb::numpy, int32_t, nb::ndim<1>>;

Ids as_array(std::vector<int32_t> ids) {
  auto* owned = new std::vector<int32_t>(std::move(ids));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<int32_t>*>(p); });
  return Ids(owned->data(), {owned->size()}, owner);
}

void read_definition(Tokenizer* place, std::string definition, const std::string& source) {
  Tokenizer tokenizer;
  Status status;
  {
    nb::gil_scoped_release release;
    status = Tokenizer::parse(std::move(definition), source, &tokenizer);
  }
  raise_if_error(status);
  new (place) Tokenizer(std::move(tokenizer));
}

Tokenizer load(const std::string& path) {
  Tokenizer tokenizer;
  Status status;
  {
    nb::gil_scoped_release release;
    status = Tokenizer::load(path, &tokenizer);
  }
  raise_if_error(status);
  return tokenizer;
}

Ids encode(const Tokenizer& tokenizer, std::string_view text, bool allow_special) {
  std::vector<int32_t> ids;
  Status status;
  {
    nb::gil_scoped_release release;
    status = tokenizer.encode(text, &ids, allow_special);
  }
  raise_if_error(status);
  return as_array(std::move(ids));
}

nb::bytes token_bytes(const Tokenizer& tokenizer, int32_t id, bool skip_special) {
  const std::string_view bytes = tokenizer.bytes(id, skip_special);
  return nb::bytes(bytes.data(), bytes.size());
}

void bind_tokenizer(nb::module_& module) {
  nb::class_<Tokenizer>(module, "Tokenizer", "A tokenizer.json, read by the engine.")
      .def("__init__", &read_definition, nb::arg("definition"), nb::arg("source") = "tokenizer.json")
      .def_static("load", &load, nb::arg("path"))
      .def("encode", &encode, nb::arg("text"), nb::kw_only(), nb::arg("allow_special") = false)
      .def("decode", &Tokenizer::decode, nb::arg("ids"), nb::arg("skip_special") = true)
      .def("token_bytes", &token_bytes, nb::arg("token"), nb::kw_only(), nb::arg("skip_special") = true)
      .def("normalized", &Tokenizer::normalized, nb::arg("text"))
      .def("pieces", &Tokenizer::pieces, nb::arg("text"))
      .def("special", &Tokenizer::special, nb::arg("name"))
      .def("has", &Tokenizer::has, nb::arg("token"))
      .def_prop_ro("vocab_size", &Tokenizer::end)
      .def_prop_ro("specials", [](const Tokenizer& tokenizer) {
        nb::dict names;
        for (const auto& token : tokenizer.added()) names[nb::cast(token.name)] = token.id;
        return names;
      });
}

void bind_text_stream(nb::module_& module) {
  nb::class_<TextStream>(module, "TextStream", "Ids in, text out; whole characters only.")
      .def(
          "__init__",
          [](TextStream* place, const Tokenizer& tokenizer, const std::vector<std::string_view>& keep) {
            new (place) TextStream(tokenizer, keep);
          },
          nb::arg("tokenizer"), nb::kw_only(), nb::arg("keep") = std::vector<std::string_view>(),
          nb::keep_alive<1, 2>())
      .def(
          "push", [](TextStream& stream, const std::vector<int32_t>& ids) { return stream.push(ids); },
          nb::arg("ids"))
      .def("finish", &TextStream::finish);
}

using Deltas = std::vector<std::pair<std::string_view, std::string>>;

Deltas as_pairs(std::vector<engine::Delta> deltas) {
  Deltas pairs;
  for (auto& delta : deltas) {
    pairs.emplace_back(delta.channel == engine::Channel::kReasoning ? "reasoning" : "reply",
                       std::move(delta.text));
  }
  return pairs;
}

void bind_reasoning(nb::module_& module) {
  using engine::ReasoningStream;
  nb::class_<ReasoningStream>(module, "ReasoningStream", "Text in, (\"reasoning\" or \"reply\", text) out.")
      .def(nb::init<bool>(), nb::kw_only(), nb::arg("inside") = false)
      .def(
          "push",
          [](ReasoningStream& stream, std::string_view piece) { return as_pairs(stream.push(piece)); },
          nb::arg("piece"))
      .def("finish", [](ReasoningStream& stream) { return as_pairs(stream.finish()); })
      .def_prop_ro("thought_seen", &ReasoningStream::thought_seen)
      .def_prop_ro("closed", &ReasoningStream::closed);
}

// A message: role, parts (text, or the adaptor frames of a clip's chunks), reasoning.
using Frames = std::vector<int64_t>;
using MessageParts = std::vector<std::variant<std::string, Frames>>;
using MessageTuple = std::tuple<std::string, MessageParts, std::optional<std::string>>;

engine::Message as_message(const MessageTuple& given) {
  const auto& [role, parts, reasoning] = given;
  engine::Message message{role, {}, reasoning};
  for (const auto& part : parts) {
    if (const auto* text = std::get_if<std::string>(&part)) {
      message.parts.emplace_back(engine::Text{*text});
    } else {
      message.parts.emplace_back(engine::Clip{std::get<Frames>(part)});
    }
  }
  return message;
}

engine::Prompt prompt_named(const std::string& name) {
  if (name == "none") return engine::Prompt::kNone;
  if (name == "plain") return engine::Prompt::kPlain;
  if (name == "think") return engine::Prompt::kThink;
  if (name == "habit") return engine::Prompt::kHabit;
  throw nb::value_error("[render] prompt: expected 'none', 'plain', 'think' or 'habit', got another word");
}

nb::tuple render(const std::vector<MessageTuple>& given, const Tokenizer& tokenizer, const std::string& name,
                 const std::string& prompt, bool continue_final, bool strip_history,
                 const std::string& tools) {
  const auto known = engine::template_named(name);
  if (!known)
    throw nb::value_error("[render] template: expected 'canonical' or 'stepfun-compat', got another word");
  const engine::RenderOptions options{*known, prompt_named(prompt), continue_final, strip_history, tools};
  std::vector<engine::Message> messages;
  for (const auto& message : given) messages.push_back(as_message(message));
  engine::Rendered rendered;
  raise_if_error(engine::render(messages, tokenizer, options, &rendered));
  nb::list audio;
  for (const auto& span : rendered.audio) {
    audio.append(nb::make_tuple(span.clip, span.chunk, span.start, span.length));
  }
  return nb::make_tuple(as_array(std::move(rendered.ids)), audio, rendered.inside_thought);
}

}  // namespace

void bind_text(nb::module_& module) {
  bind_tokenizer(module);
  bind_text_stream(module);
  bind_reasoning(module);
  module.def("render", &render, nb::arg("messages"), nb::arg("tokenizer"), nb::kw_only(),
             nb::arg("template") = "canonical", nb::arg("prompt") = "habit",
             nb::arg("continue_final") = false, nb::arg("strip_history") = false, nb::arg("tools") = "");
}

}  // namespace earnest::bindings
