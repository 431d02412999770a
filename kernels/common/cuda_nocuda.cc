// SPDX-License-Identifier: Apache-2.0
// What a build without CUDA answers.
#include "kernels/common/cuda.h"

namespace earnest::cuda {
namespace {

Status none(const char* op) {
  return unsupported(op, "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace

Status properties(const char* op, Properties*) { return none(op); }
Status device_count(const char* op, int*) { return none(op); }
Status current_device(const char* op, int*) { return none(op); }
Status set_device(const char* op, int) { return none(op); }
Status fill(const char* op, void*, int, size_t, void*) { return none(op); }
Status allocate(const char* op, size_t, void**) { return none(op); }
void release(void*) {}
Status create_stream(const char* op, void**) { return none(op); }
void destroy_stream(void*) {}
Status begin_capture(const char* op, void*) { return none(op); }
Status end_capture(const char* op, void*, void**) { return none(op); }
Status launch_graph(const char* op, void*, void*) { return none(op); }
void destroy_graph(void*) {}
Status free_memory(const char* op, size_t*) { return none(op); }
Status copy(const char* op, void*, const void*, size_t, void*) { return none(op); }
Status synchronize(const char* op, void*) { return none(op); }

}  // namespace earnest::cuda
