// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/reasoning.h"

#include <algorithm>

#include "csrc/engine/unicode.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

// White space as Python's str.isspace has it: the separators U+001C to U+001F are some.
bool is_blank(char32_t c) {
  return unicode::class_of(unicode::class_table(), c) == unicode::Class::kSpace || (c >= 0x1C && c <= 0x1F);
}

// How many bytes at the end of a text may be the beginning of `ending`.
size_t held_back(std::string_view text, std::string_view ending) {
  for (size_t size = std::min(text.size(), ending.size() - 1); size > 0; --size) {
    if (text.ends_with(ending.substr(0, size))) return size;
  }
  return 0;
}

}  // namespace

ReasoningStream::ReasoningStream(bool inside_thought)
    : state_(inside_thought ? State::kThought : State::kStart),
      trim_thought_(!inside_thought),  // the newline after <think> was part of the prompt
      thought_seen_(inside_thought) {}

std::vector<Delta> ReasoningStream::push(std::string_view piece) {
  pending_.append(piece);
  return drain(false);
}

std::vector<Delta> ReasoningStream::finish() { return drain(true); }

std::vector<Delta> ReasoningStream::drain(bool final) {
  std::vector<Delta> deltas;
  if (state_ == State::kStart) read_start(final);
  if (state_ == State::kThought) read_thought(final, &deltas);
  if (state_ == State::kReply) read_reply(&deltas);
  return deltas;
}

// Blanks before a thought are dropped; before a reply they are part of it.
void ReasoningStream::read_start(bool final) {
  const std::string_view pending = pending_;
  while (blank_ < pending.size()) {
    const CodePoint c = decode(pending.substr(blank_));
    if (!is_blank(c.value)) break;
    blank_ += c.bytes;
  }
  const std::string_view body = pending.substr(blank_);
  if (body.starts_with(kThinkOpen)) {
    state_ = State::kThought;
    thought_seen_ = true;
    pending_.erase(0, blank_ + kThinkOpen.size());
  } else if (final || !kThinkOpen.starts_with(body)) {
    state_ = State::kReply;
  }
}

void ReasoningStream::read_thought(bool final, std::vector<Delta>* deltas) {
  if (trim_thought_ && !pending_.empty()) {
    if (pending_[0] == '\n') pending_.erase(0, 1);
    trim_thought_ = false;
  }
  const size_t close = pending_.find(kThinkClose);
  size_t end = close, next = close + kThinkClose.size();
  if (close != pending_.npos) {
    if (end > 0 && pending_[end - 1] == '\n') --end;
    state_ = State::kReply;
    closed_ = trim_reply_ = true;
  } else {
    // A newline before the closing tag belongs to the frame, so the newline waits as the tag does.
    const size_t waiting =
        final ? 0 : std::max(held_back(pending_, kThinkClose), held_back(pending_, "\n</think>"));
    end = next = pending_.size() - waiting;
  }
  if (end > 0) deltas->push_back({Channel::kReasoning, pending_.substr(0, end)});
  pending_.erase(0, next);
}

void ReasoningStream::read_reply(std::vector<Delta>* deltas) {
  if (trim_reply_) {
    pending_.erase(0, std::min(pending_.find_first_not_of('\n'), pending_.size()));
    trim_reply_ = pending_.empty();
  }
  if (!pending_.empty()) deltas->push_back({Channel::kReply, std::move(pending_)});
  pending_.clear();
}

}  // namespace earnest::engine
