// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "kernels/common/fibre.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace earnest::simt {
namespace {

thread_local Fibre* entering = nullptr;

size_t guard_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

FibreStack::FibreStack() {
  void* memory = mmap(nullptr, kBytes + guard_bytes(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, guard_bytes(), PROT_NONE);
  bottom_ = static_cast<char*>(memory) + guard_bytes();
}

FibreStack::~FibreStack() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom_, kBytes);
#endif
  munmap(bottom_ - guard_bytes(), kBytes + guard_bytes());
}

// ---- the switch itself: registers that a function must keep go onto the stack, and the stack is exchanged
// ----

#if defined(__x86_64__)

// void earnest_switch_stacks(void** from, void* to)
asm(R"(
.text
.globl earnest_switch_stacks
.hidden earnest_switch_stacks
.type earnest_switch_stacks, @function
earnest_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size earnest_switch_stacks, .-earnest_switch_stacks
)");
extern "C" void earnest_switch_stacks(void** from, void* to);

namespace {

void* first_frame(FibreStack* stack, void (*enter)()) {
  auto* top = reinterpret_cast<uint64_t*>(stack->top());
  *--top = 0;  // keeps the alignment that a called function expects, and ends backtraces
  *--top = reinterpret_cast<uint64_t>(enter);
  for (int i = 0; i < 6; ++i) *--top = 0;
  return top;
}
void exchange(void** from, void* to) { earnest_switch_stacks(from, to); }

}  // namespace

#else

namespace {

// A context lies at the bottom of the stack that it belongs to, the caller's in its own frame.
void* first_frame(FibreStack* stack, void (*enter)()) {
  auto* context = new (stack->bottom()) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack->bottom() + sizeof(ucontext_t);
  context->uc_stack.ss_size = FibreStack::kBytes - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, enter, 0);
  return context;
}
void exchange(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

}  // namespace

#endif

void Fibre::start(FibreStack* stack, Body body, void* argument) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack->bottom(),
                                FibreStack::kBytes);  // a fibre that was left poisons its frames
#endif
  stack_ = stack;
  body_ = body;
  argument_ = argument;
  fake_stack_ = nullptr;
  inside_ = first_frame(stack, &Fibre::enter);
}

void Fibre::enter() {
  Fibre* self = entering;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_bottom_, &self->caller_bytes_);
#endif
  self->body_(self->argument_);
  self->suspend(true);
}

void Fibre::resume() {
  entering = this;
#if defined(__SANITIZE_ADDRESS__)
  void* own = nullptr;
  __sanitizer_start_switch_fiber(&own, stack_->bottom(), FibreStack::kBytes);
#endif
  exchange(&outside_, inside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
}

void Fibre::suspend(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, caller_bottom_, caller_bytes_);
#else
  (void)last;
#endif
  exchange(&inside_, outside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_bottom_, &caller_bytes_);
#endif
}

}  // namespace earnest::simt
