// SPDX-License-Identifier: Apache-2.0
// Tensors as they lie somewhere in memory: in a mapped file, or in a trainer. The engine reads all its
// weights through these, and asks no further where they came from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/common/device.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class MappedFile;

// kBytes: codes of a quantised matrix, which only those who know their layout read.
enum class StoredType { kFloat32, kBFloat16, kFloat16, kBytes };

size_t size_of(StoredType type);
const char* name_of(StoredType type);  // as safetensors write it: "F32", "BF16", "F16", "U8"

// Row-major; `data` may stand on any byte. On a GPU it is that memory's, which read() cannot reach.
struct TensorView {
  StoredType type = StoredType::kFloat32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  std::string file;                    // where it came from, for messages; empty: memory
  const MappedFile* mapped = nullptr;  // where it lies, if in a file
  Device device = Device::kCpu;

  int64_t count() const;  // of numbers; the shape has been checked not to overflow
};

// Tensors by name, and whoever keeps their memory in place.
struct Tensors {
  std::map<std::string, TensorView> views;
  std::vector<std::shared_ptr<const void>> owners;
};

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 3]"

// Numbers [first, first + count) of the tensor, rounded to nearest, ties to even; bytes as 0 to 255.
void read(const TensorView& view, int64_t first, int64_t count, float* out);
void read(const TensorView& view, int64_t first, int64_t count, BFloat16* out);

// The tensor in the host's memory: itself, or a copy in `memory` of one that lies on a GPU.
Status bring_here(const char* op, const TensorView& view, std::unique_ptr<char[]>* memory, TensorView* here);

// The numbers have been copied: memory that holds a file's is given back to the system.
void let_go(const TensorView& view);

}  // namespace earnest::engine
