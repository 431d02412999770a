// SPDX-License-Identifier: Apache-2.0
// The tokens of an answer as text while it is drawn: thought and reply apart, and the reply ended before the
// first text that stops it. What may become such a text is held back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/engine/reasoning.h"
#include "csrc/engine/text_stream.h"
#include "csrc/engine/tokenizer.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class AnswerText {
 public:
  // The tokenizer outlives this.
  AnswerText(const Tokenizer& tokenizer, bool inside_thought, std::vector<std::string> stop);

  std::vector<Delta> push(int32_t token);
  std::vector<Delta> finish();  // gives out what was held back

  bool stopped() const { return stopped_; }  // by a text; nothing may be pushed any more
  bool thinking() const { return stream_.thought_seen() && !stream_.closed(); }
  bool began_inside_thought() const { return began_inside_thought_; }
  std::string said() const { return stopped_ ? all_.substr(0, left_) : all_; }  // tags and all
  const std::string& reasoning() const { return reasoning_; }
  const std::string& reply() const { return reply_; }

  // Once a text stopped it: the ids of what is left before that text. Tokens stay as they were drawn but for
  // one that reaches into it, of which the rest is encoded anew.
  Status ids_before_stop(const std::vector<int32_t>& drawn, std::vector<int32_t>* ids) const;

 private:
  std::vector<Delta> sorted(std::vector<Delta> deltas, bool final);
  std::string cut(bool final);

  const Tokenizer* tokenizer_;
  TextStream text_;
  ReasoningStream stream_;
  std::vector<std::string> stop_;
  bool began_inside_thought_;
  std::string all_;                // everything said
  std::string reasoning_, reply_;  // given out
  std::string held_;               // of the reply, not given out yet
  bool stopped_ = false;
  size_t left_ = 0;  // of all_, before the text that stopped it
};

}  // namespace earnest::engine
