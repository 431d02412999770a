// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/answer_text.h"

#include <algorithm>
#include <string_view>

#include "csrc/engine/guard.h"

namespace earnest::engine {
namespace {

// Special tokens that are words of an answer.
constexpr std::string_view kShown[] = {kThinkOpen, kThinkClose, "<tool_call>", "</tool_call>"};

}  // namespace

AnswerText::AnswerText(const Tokenizer& tokenizer, bool inside_thought, std::vector<std::string> stop)
    : tokenizer_(&tokenizer),
      text_(tokenizer, kShown),
      stream_(inside_thought),
      stop_(std::move(stop)),
      began_inside_thought_(inside_thought) {}

std::vector<Delta> AnswerText::push(int32_t token) {
  const std::string piece = text_.push({&token, 1});
  if (piece.empty()) return {};
  all_ += piece;
  return sorted(stream_.push(piece), false);
}

std::vector<Delta> AnswerText::finish() {
  if (stopped_) return {};
  const std::string rest = text_.finish();
  all_ += rest;
  std::vector<Delta> deltas = stream_.push(rest);
  for (Delta& delta : stream_.finish()) deltas.push_back(std::move(delta));
  return sorted(std::move(deltas), true);
}

// The thought as it is; of the reply what is sure to stay.
std::vector<Delta> AnswerText::sorted(std::vector<Delta> deltas, bool final) {
  std::vector<Delta> sure;
  for (Delta& delta : deltas) {
    if (delta.channel == Channel::kReasoning) {
      reasoning_ += delta.text;
      sure.push_back(std::move(delta));
    } else {
      held_ += delta.text;
    }
  }
  std::string text = cut(final);
  if (text.empty()) return sure;
  reply_ += text;
  sure.push_back({Channel::kReply, std::move(text)});
  return sure;
}

// Takes from what is held back what no text that stops can begin in.
std::string AnswerText::cut(bool final) {
  size_t stop = held_.npos;
  for (const std::string& text : stop_) stop = std::min(stop, held_.find(text));
  if (stop != held_.npos) {
    stopped_ = true;
    left_ = all_.size() - (held_.size() - stop);  // a reply ends as all that was said ends
    held_.resize(stop);
    final = true;
  }
  size_t waiting = 0;
  for (const std::string& text : stop_) {
    for (size_t size = std::min(held_.size(), text.size() - 1); size > waiting && !final; --size) {
      if (std::string_view(held_).ends_with(std::string_view(text).substr(0, size))) waiting = size;
    }
  }
  std::string sure = held_.substr(0, held_.size() - waiting);
  held_.erase(0, sure.size());
  return sure;
}

Status AnswerText::ids_before_stop(const std::vector<int32_t>& drawn, std::vector<int32_t>* ids) const {
  TextStream stream(*tokenizer_, kShown);
  size_t said = 0, kept = 0, kept_text = 0;
  for (size_t i = 0; i < drawn.size() && said <= left_; ++i) {
    said += stream.push({&drawn[i], 1}).size();
    TextStream copy = stream;
    if (said > left_ || !copy.finish().empty()) continue;  // beyond, or within a character
    kept = i + 1;
    kept_text = said;
  }
  ids->assign(drawn.begin(), drawn.begin() + static_cast<int64_t>(kept));
  return tokenizer_->encode(std::string_view(all_).substr(kept_text, left_ - kept_text), ids);
}

}  // namespace earnest::engine
