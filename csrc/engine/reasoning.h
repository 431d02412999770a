// SPDX-License-Identifier: Apache-2.0
// Taking a completion apart into thought and reply while it streams.
//
// A completion reads "<think>\nthought\n</think>\nreply". Whether it begins inside the thought is known from
// the prompt (Rendered::inside_thought), never by searching the history. The first "</think>" ends the
// thought; later tags are literal text of the reply. A thought that is never closed is all thought.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace earnest::engine {

inline constexpr std::string_view kThinkOpen = "<think>", kThinkClose = "</think>";

enum class Channel : uint8_t { kReasoning, kReply };

struct Delta {
  Channel channel = Channel::kReply;
  std::string text;
};

// At most the bytes that may belong to a tag (and one newline) are held back, and blanks before the first
// word.
class ReasoningStream {
 public:
  explicit ReasoningStream(bool inside_thought = false);

  // Takes more of the completion, whole characters as TextStream gives them; the deltas that are now certain.
  std::vector<Delta> push(std::string_view piece);
  // The completion is over: gives out what was held back.
  std::vector<Delta> finish();

  bool thought_seen() const { return thought_seen_; }
  bool closed() const { return closed_; }

 private:
  enum class State : uint8_t { kStart, kThought, kReply };
  std::vector<Delta> drain(bool final);
  void read_start(bool final);
  void read_thought(bool final, std::vector<Delta>* deltas);
  void read_reply(std::vector<Delta>* deltas);

  State state_;
  std::string pending_;
  size_t blank_ = 0;  // in kStart: how much of what is pending is white space
  bool trim_thought_, trim_reply_ = false;
  bool thought_seen_, closed_ = false;
};

}  // namespace earnest::engine
