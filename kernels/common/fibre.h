// SPDX-License-Identifier: Apache-2.0
// A function with a stack of its own that can stop anywhere and go on later: a thread of the SIMT emulator. A
// fibre runs on the operating system's thread that resumes it, always the same one.
#pragma once

#include <cstddef>

namespace earnest::simt {

// Memory for one fibre's frames, below which no page can be touched.
class FibreStack {
 public:
  static constexpr size_t kBytes =
      256 * 1024;  // the sanitizers' frames are large; only what is used is paid for

  FibreStack();
  ~FibreStack();
  FibreStack(const FibreStack&) = delete;
  FibreStack& operator=(const FibreStack&) = delete;

  char* bottom() const { return bottom_; }
  char* top() const { return bottom_ + kBytes; }

 private:
  char* bottom_;
};

class Fibre {
 public:
  using Body = void (*)(void* argument);

  // To be resumed for the first time. The stack must outlive the fibre and serve no other meanwhile.
  void start(FibreStack* stack, Body body, void* argument);

  // Runs the fibre until it suspends itself or ends. One that is never resumed again is simply left.
  void resume();

  // Called inside the fibre: back to where it was resumed. `last`: it will never go on.
  void suspend(bool last = false);

 private:
  static void enter();

  FibreStack* stack_ = nullptr;
  Body body_ = nullptr;
  void* argument_ = nullptr;
  void* inside_ = nullptr;   // where the fibre goes on
  void* outside_ = nullptr;  // where its caller goes on
  // What AddressSanitizer must be told at each switch.
  void* fake_stack_ = nullptr;
  const void* caller_bottom_ = nullptr;
  size_t caller_bytes_ = 0;
};

}  // namespace earnest::simt
