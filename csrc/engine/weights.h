// SPDX-License-Identifier: Apache-2.0
// The weights of a model in the forms in which they are used: matrices packed for their products, everything
// else as plain numbers. They are made from tensors wherever these lie; refresh() reads them again after a
// change there. The forms of a matrix are classes below Matrix: packed_matrix.h, quantized_matrix.h and on a
// GPU device_matrix.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/config.h"
#include "csrc/engine/device_memory.h"
#include "csrc/engine/place.h"
#include "csrc/engine/products.h"
#include "csrc/engine/tensor.h"
#include "csrc/engine/weight_memory.h"
#include "kernels/common/status.h"
#include "kernels/quantized/quantized.h"

namespace earnest::engine {

// What activations and weights are rounded to; sums are float32 for all. kMixed is how models are trained
// under torch's autocast: float32 throughout, but for what goes into a matrix product and what comes out of
// it, which is bfloat16; the output matrix is float32 again.
enum class Precision { kFloat32, kBFloat16, kMixed };

// Of activations, and of all weights but matrices.
inline size_t size_of(Precision precision) { return precision == Precision::kBFloat16 ? 2 : 4; }

// y = x W^T + b
class Matrix {
 public:
  virtual ~Matrix() = default;
  virtual int64_t inputs() const = 0;
  virtual int64_t outputs() const = 0;
  // x [rows, inputs], y [rows, outputs], both of the matrix's precision, and the arena's memory where the
  // matrix lies.
  virtual Status multiply(const void* x, int64_t rows, void* y, Arena* arena) const = 0;
  virtual Status refresh() = 0;
  virtual size_t bytes() const = 0;
};

class QuantizedMatrix;

// Numbers in the model's precision: those of the tensor itself where it has them in that type, else a copy,
// as of few in a file. On a GPU a copy there, unless a trainer has them there already; the taps of a
// convolution outside of its inputs ([out, taps, in]) there.
class Array {
 public:
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  const void* data() const { return data_; }

 private:
  friend class Weights;
  TensorView source_;
  const void* data_ = nullptr;
  std::vector<char> copy_;
  DeviceMemory there_;
};

// What is multiplied as one: weights one below the other, and their biases. The name of a bias that a weight
// does not have is empty. A convolution's weight [out, in, taps] is used as [out, taps in].
struct MatrixNames {
  std::vector<std::string> weights;
  std::vector<std::string> biases;  // none, or as many as weights
};

// Rows of the embedding table, from numbers or from codes; codes are kept by the host, too.
class Table {
 public:
  // Row `index`, `width` numbers of the model's precision, into memory of the host. Not of numbers on a GPU.
  Status copy_row(int64_t index, void* out) const;
  // All rows where the model computes; null: they are codes.
  const void* numbers() const { return array_ == nullptr ? nullptr : array_->data(); }

 private:
  friend class Weights;
  const Array* array_ = nullptr;
  const QuantizedMatrix* matrix_ = nullptr;  // where the table is quantised
  size_t row_bytes_ = 0;
};

// The names and shapes that a model of this config has, before it is quantised. Where embeddings are tied,
// lm_head.weight may be missing.
std::map<std::string, std::vector<int64_t>> tensor_shapes(const Config& config);

// All tensors that are missing, of no use or of the wrong shape, in one error. Those that a quantised
// checkpoint has in codes must be codes of the right size, all others numbers.
Status check_tensors(const Config& config, const Tensors& tensors);

// A file that ties its embeddings may hold the output matrix all the same, but no other one.
Status check_tied(const Tensors& tensors);

class Weights {
 public:
  // The matrices that quantized_tensors() lists are kept in codes. place: where all that is made lies.
  Weights(Tensors tensors, Precision precision, const Config& config, Quantization quantization,
          const Place& place = {}, Products products = Products::kOurs);
  ~Weights();
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  Precision precision() const { return precision_; }
  const Place& place() const { return place_; }
  Device device() const { return place_.device; }
  Products products() const { return products_; }
  bool has(const std::string& name) const { return tensors_.views.count(name) > 0; }
  const TensorView& view(const std::string& name) const { return tensors_.views.at(name); }

  // They live as long as this does, at one place. Names have been checked; may throw std::bad_alloc.
  Status matrix(const MatrixNames& names, const Matrix** matrix);
  Status head_matrix(const std::string& name, const Matrix** matrix);
  Status array(const std::string& name, const Array** array);
  Status table(const std::string& name, const Table** table);
  bool is_quantized(const std::string& name) const;

  // Reads all tensors again: for weights in a trainer's memory, after a step.
  Status refresh();

  // Once all are made: what was read of files leaves memory, until what is used in place is touched again.
  void let_files_go() const;

  size_t bytes() const;  // of packed and converted numbers; those in place not counted

 private:
  Status read(Array* array) const;
  Status send(Array* array) const;
  Status device_matrix(const MatrixNames& names, Precision precision, const Matrix** matrix);
  Status add_matrix(const MatrixNames& names, Precision precision, const Matrix** matrix);
  Status quantized_matrix(const MatrixNames& names, Device device, const QuantizedMatrix** matrix);

  Tensors tensors_;
  Precision precision_;
  Place place_;
  Products products_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, quantized::Codes> quantized_;
  using Where = std::pair<std::string, Device>;
  std::map<Where, const QuantizedMatrix*> quantized_matrices_;  // by the first of their weights
  WeightMemory memory_;
  std::vector<std::unique_ptr<Matrix>> matrices_;
  std::map<std::string, std::unique_ptr<Array>> arrays_;
  std::vector<std::unique_ptr<Table>> tables_;
};

}  // namespace earnest::engine
