// SPDX-License-Identifier: Apache-2.0
// The emulator as a device: everything has happened when a call returns, but on a stream that is captured,
// where work is kept with its arguments by value, as in a CUDA graph. What a GPU would refuse meanwhile, or
// do at once without keeping it, spoils the capture here.
#include "kernels/common/cuda_emulated.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
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

struct Block {
  size_t bytes;
  int device;
};
struct Memory {
  std::mutex mutex;
  std::map<const void*, Block> blocks;
  size_t taken = 0, most = SIZE_MAX;
  int fails_after = -1;
};
std::atomic<int> graph_fails_after = -1, copy_is_spoiled_after = -1;
Memory& memory_of_device() {
  static Memory one;
  return one;
}

using Work = std::function<Status()>;
struct Stream {
  int device;
  std::vector<Work> kept;
  Status spoiled;  // by what, the first of it

  void spoil(Status by) {
    if (spoiled.ok()) spoiled = std::move(by);
  }
};
struct Graph {
  int device;
  std::vector<Work> work;
};

std::atomic<int> devices = 1;
std::array<std::atomic<int64_t>, 8> work_of = {};  // by device
thread_local int current = 0;

Status check_current(const char* op, const char* what, int device) {
  if (device == current) return {};
  return {StatusCode::kInternal, "[" + std::string(op) + "] " + what + ": expected one of device " +
                                     std::to_string(current) + ", which is current, got one of device " +
                                     std::to_string(device)};
}
bool is_on_device(const void* address, int* device) {
  Memory& memory = memory_of_device();
  const std::lock_guard<std::mutex> lock(memory.mutex);
  const auto next = memory.blocks.upper_bound(address);
  if (next == memory.blocks.begin()) return false;
  const auto& [start, block] = *std::prev(next);
  *device = block.device;
  return static_cast<const char*>(address) < static_cast<const char*>(start) + block.bytes;
}
Status check_memory(const char* op, const void* address) {
  int device = 0;
  return is_on_device(address, &device) ? check_current(op, "memory", device) : Status();
}

bool can_capture = true;
thread_local Stream* captured = nullptr;  // by the calling thread

Status spoil(const char* op, const char* by) {
  captured->spoil({StatusCode::kInternal,
                   "[" + std::string(op) + "] capture: expected work on the captured stream, got " + by});
  return captured->spoiled;
}

Status put(const char* op, void* stream, Work work) {
  if (stream != nullptr) {
    if (Status status = check_current(op, "stream", static_cast<Stream*>(stream)->device); !status.ok())
      return status;
  }
  ++work_of[static_cast<size_t>(current)];
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
void fail_graph_after(int count) { graph_fails_after = count; }
void spoil_copy_after(int count) { copy_is_spoiled_after = count; }
void set_captures(bool can) { can_capture = can; }
void set_devices(int count) { devices = count; }
Status put(const char* op, void* stream, std::function<void()> work) {
  return cuda::put(op, stream, [work = std::move(work)]() -> Status {
    work();
    return {};
  });
}
Given given(int device) {
  Given found = {work_of[static_cast<size_t>(device)], 0};
  const std::lock_guard<std::mutex> lock(memory_of_device().mutex);
  for (const auto& [start, block] : memory_of_device().blocks)
    found.bytes += block.device == device ? block.bytes : 0;
  return found;
}

}  // namespace emulated

Status properties(const char*, Properties* found) {
  *found = {8, 0, 3, 227 * 1024, current, true};
  return {};
}

Status device_count(const char*, int* count) {
  *count = devices;
  return {};
}
Status current_device(const char*, int* index) {
  *index = current;
  return {};
}
Status set_device(const char* op, int index) {
  if (index < 0 || index >= devices)
    return {StatusCode::kInternal,
            "[" + std::string(op) + "] device: expected success, got invalid device ordinal"};
  current = index;
  return {};
}

Status free_memory(const char*, size_t* bytes) {
  ++work_of[static_cast<size_t>(current)];
  Memory& memory = memory_of_device();
  const std::lock_guard<std::mutex> lock(memory.mutex);
  *bytes = memory.most > memory.taken ? memory.most - memory.taken : 0;
  return {};
}

Status fill(const char* op, void* memory, int byte, size_t bytes, void* stream) {
  if (Status status = check_memory(op, memory); !status.ok()) return status;
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
  device.blocks[*memory] = {bytes, current};
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
    device.taken -= block->second.bytes;
    device.blocks.erase(block);
  }
  ::operator delete(memory, std::align_val_t(256));
}

Status copy(const char* op, void* to, const void* from, size_t bytes, void*) {
  if (captured != nullptr) return spoil(op, "a copy that waits");
  for (const void* address : {static_cast<const void*>(to), from}) {
    if (Status status = check_memory(op, address); !status.ok()) return status;
  }
  ++work_of[static_cast<size_t>(current)];
  if (bytes > 0) std::memcpy(to, from, bytes);
  int device = 0;
  const bool comes_back = bytes > 0 && is_on_device(from, &device) && !is_on_device(to, &device);
  if (comes_back && copy_is_spoiled_after >= 0 && copy_is_spoiled_after-- == 0) std::memset(to, 0, bytes);
  return {};
}

Status synchronize(const char* op, void*) { return captured == nullptr ? Status() : spoil(op, "a wait"); }

Status create_stream(const char*, void** stream) {
  *stream = new Stream{current, {}, {}};
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
  *graph = new Graph{own->device, std::move(own->kept)};
  own->kept.clear();
  return {};
}

Status launch_graph(const char* op, void* graph, void*) {
  if (captured != nullptr) return spoil(op, "a graph");
  const auto& [device, kept] = *static_cast<Graph*>(graph);
  if (Status status = check_current(op, "graph", device); !status.ok()) return status;
  if (graph_fails_after >= 0 && graph_fails_after-- == 0)
    return {StatusCode::kInternal, "[" + std::string(op) + "] device: expected success, got a refused graph"};
  ++work_of[static_cast<size_t>(current)];
  for (const Work& work : kept) {
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
