// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/states.h"

#include <algorithm>

namespace earnest::engine {
namespace {

Sampling with_suppressed(const LoadedModel& loaded, Sampling sampling) {
  const std::vector<int32_t>& more = loaded.suppressed();
  sampling.suppressed.insert(sampling.suppressed.end(), more.begin(), more.end());
  return sampling;
}

}  // namespace

AnswerState::AnswerState(const LoadedModel& loaded, const AnswerOptions& asked, bool inside_thought)
    : options(asked),
      sampler(with_suppressed(loaded, asked.sampling), loaded.config().text.vocab_size),
      text(loaded.tokenizer(), inside_thought, asked.stop) {}

void EventQueue::push(Event event) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Event* last = events_.empty() ? nullptr : &events_.back();
    if (last == nullptr || last->kind != event.kind) {
      events_.push_back(std::move(event));
    } else if (event.kind == EventKind::kPrefill) {
      *last = std::move(event);
    } else {
      last->text += event.text;
    }
  }
  came_.notify_all();
}

bool EventQueue::take(Event* event) {
  if (events_.empty()) return false;
  *event = std::move(events_.front());
  events_.pop_front();
  return true;
}

bool EventQueue::pop(Event* event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return take(event);
}

bool EventQueue::wait(int64_t timeout_ms, Event* event) {
  constexpr int64_t kLongest = int64_t{1} << 40;  // 34 years, which no clock overflows with
  std::unique_lock<std::mutex> lock(mutex_);
  const auto there = [&] { return !events_.empty(); };
  if (timeout_ms < 0) {
    came_.wait(lock, there);
  } else {
    came_.wait_for(lock, std::chrono::milliseconds(std::min(timeout_ms, kLongest)), there);
  }
  return take(event);
}

}  // namespace earnest::engine
