// SPDX-License-Identifier: Apache-2.0
// The emulator as a device: everything has happened when a call returns, but on a stream that is captured,
// where work is kept with its arguments by value, as in a CUDA graph. What a GPU would refuse meanwhile, or
// do at once without keeping it, spoils the capture here.
#include "kernels/common/cuda_emulated.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/cuda.h"
#include "kernels/common/simt_emulator.h"

namespace earnest::cuda {
namespace {

struct Memory {
  std::mutex mutex;
  std::map<void*, size_t> blocks;
  size_t taken = 0, most = SIZE_MAX;
  int fails_after = -1;
};
Memory& memory_of_device() {
  static Memory one;
  return one;
}

using Work = std::function<Status()>;
struct Stream {
  std::vector<Work> kept;
  Status spoiled;  // by what, the first of it

  void spoil(Status by) {
    if (spoiled.ok()) spoiled = std::move(by);
  }
};
struct Graph {
  std::vector<Work> work;
};

bool can_capture = true;
thread_local Stream* captured = nullptr;  // by the calling thread

Status spoil(const char* op, const char* by) {
  captured->spoil({StatusCode::kInternal,
                   "[" + std::string(op) + "] capture: expected work on the captured stream, got " + by});
  return captured->spoiled;
}

Status put(const char* op, void* stream, Work work) {
  if (captured == nullptr) return work();
  if (stream != captured) return spoil(op, "work on another");
  captured->kept.push_back(std::move(work));
  return {};
}

}  // namespace

namespace emulated {

void set_memory(size_t bytes) {
  const std::lock_guard<std::mutex> lock(memory_of_device().mutex);
  memory_of_device().most = bytes;
}
size_t memory_taken() {
  const std::lock_guard<std::mutex> lock(memory_of_device().mutex);
  return memory_of_device().taken;
}
void fail_allocation_after(int count) {
  const std::lock_guard<std::mutex> lock(memory_of_device().mutex);
  memory_of_device().fails_after = count;
}
void set_captures(bool can) { can_capture = can; }

}  // namespace emulated

Status properties(const char*, Properties* found) {
  *found = {8, 0, 3, 227 * 1024, 0, true};
  return {};
}

Status free_memory(const char*, size_t* bytes) {
  Memory& memory = memory_of_device();
  const std::lock_guard<std::mutex> lock(memory.mutex);
  *bytes = memory.most > memory.taken ? memory.most - memory.taken : 0;
  return {};
}

Status fill(const char* op, void* memory, int byte, size_t bytes, void* stream) {
  return put(op, stream, [=]() -> Status {
    if (bytes > 0) std::memset(memory, byte, bytes);
    return {};
  });
}

Status allocate(const char* op, size_t bytes, void** memory) {
  if (captured != nullptr) return spoil(op, "an allocation");
  Memory& device = memory_of_device();
  const std::lock_guard<std::mutex> lock(device.mutex);
  if (bytes > device.most || device.taken > device.most - bytes || device.fails_after-- == 0)
    return {StatusCode::kOutOfMemory,
            "[" + std::string(op) + "] device: expected enough memory, got out of memory"};
  *memory = ::operator new(bytes, std::align_val_t(256));
  device.blocks[*memory] = bytes;
  device.taken += bytes;
  return {};
}

void release(void* memory) {
  if (memory == nullptr) return;
  if (captured != nullptr)
    captured->spoil({StatusCode::kInternal, "[release] capture: expected memory to stay, got some back"});
  Memory& device = memory_of_device();
  {
    const std::lock_guard<std::mutex> lock(device.mutex);
    const auto block = device.blocks.find(memory);
    device.taken -= block->second;
    device.blocks.erase(block);
  }
  ::operator delete(memory, std::align_val_t(256));
}

Status copy(const char* op, void* to, const void* from, size_t bytes, void*) {
  if (captured != nullptr) return spoil(op, "a copy that waits");
  if (bytes > 0) std::memcpy(to, from, bytes);
  return {};
}

Status synchronize(const char* op, void*) { return captured == nullptr ? Status() : spoil(op, "a wait"); }

Status create_stream(const char*, void** stream) {
  *stream = new Stream;
  return {};
}

void destroy_stream(void* stream) { delete static_cast<Stream*>(stream); }

Status begin_capture(const char* op, void* stream) {
  if (!can_capture) return unsupported(op, "capture", "a device that can", "one that cannot");
  if (captured != nullptr) return spoil(op, "another capture");
  captured = static_cast<Stream*>(stream);
  captured->kept.clear();
  captured->spoiled = Status();
  return {};
}

Status end_capture(const char*, void* stream, void** graph) {
  auto* const own = static_cast<Stream*>(stream);
  captured = nullptr;
  *graph = nullptr;
  if (!own->spoiled.ok()) return own->spoiled;
  *graph = new Graph{std::move(own->kept)};
  own->kept.clear();
  return {};
}

Status launch_graph(const char* op, void* graph, void*) {
  if (captured != nullptr) return spoil(op, "a graph");
  for (const Work& work : static_cast<Graph*>(graph)->work) {
    if (Status status = work(); !status.ok()) return status;
  }
  return {};
}

void destroy_graph(void* graph) { delete static_cast<Graph*>(graph); }

}  // namespace earnest::cuda

namespace earnest::simt::emulator {

Status put(void* stream, const Grid& grid, std::shared_ptr<const void> arguments) {
  return cuda::put(grid.label.op, stream, [grid, arguments = std::move(arguments)] {
    Grid own = grid;
    own.arguments = arguments.get();
    return run(own);
  });
}

}  // namespace earnest::simt::emulator
