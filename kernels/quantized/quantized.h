// SPDX-License-Identifier: Apache-2.0
// Linear layers on quantised weights, y = x W^T + b.
//
//   int8:  W[n, k] = scale[n] q[n, k]                     q from -127 to 127, scale float32
//   int4:  W[n, k] = scale[n, g] q[n, k] + minimum[n, g]  q from 0 to 15, g = k / 32, both numbers bfloat16
//
// Activations are taken as whole numbers too, by blocks of 256 (of 8 bits: 64) of the depth: x[m, k] =
// unit[m, block] times a number of 8, 16 or 24 bits, the largest of a block being 127, 127 2^8 or 127 2^16.
// Their products with q are summed exactly; what is rounded is the result of each block, the sum over blocks
// (in order, float32) and y.  So an output's bits depend on its own row and column alone: not on how many
// rows there are, nor on the number of threads. 16 bits are more than a bfloat16 has, and 24 as many as a
// float32: kExact takes these.
//
// A row with a NaN or an infinity in it becomes NaN; a block with nothing above 1e-30 counts as zero. Tiers
// may differ in the last bits.
//
// On CUDA, where the same packed matrices are taken, x is multiplied as it is (float32 as the sum of three
// bfloat16) with codes as they are, and summed in float32 over up to 8 strands of the inputs
// (kernels/common/strands.h); int8's scale comes last, int4's after each group. Of bits the same is promised,
// on both of its paths; a NaN or an infinity makes its own row unfinite (int8 as IEEE arithmetic has it, int4
// mostly NaN), and no other. kExact alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/common/device.h"
#include "kernels/common/status.h"
#include "kernels/common/thread_pool.h"

namespace earnest::quantized {

enum class Type { kFloat32, kBFloat16 };   // of x, y and the bias
enum class Codes { kInt8, kInt4 };         // of the weights
enum class Activations { kExact, kInt8 };  // kInt8: 8 bits, whatever the type
// CUDA's ways to a product, of the same bits. kFew: codes are read once for up to 64 rows; kSm80: tiles of
// 128 x 64. kBest: the faster.
enum class CudaPath { kBest, kSm80, kFew };
constexpr int64_t kPanel = 16;  // outputs that lie together in a packed matrix
constexpr int64_t kGroup = 32;  // inputs that share a scale in int4

// A packed matrix is [panels][panel_bytes], a panel 16 outputs (the last may have fewer). It is the same for
// all tiers, and the layout of saved files:
//   int8: 16 scales float32; for each 4 inputs: [16 outputs][4 inputs], a byte each, q + 128.
//   int4: for each 32 inputs: [16 outputs] of (scale, minimum); for each 8 of them [16 outputs][4 inputs]
//         bytes, of which the lower half has inputs 0 to 3 and the upper one inputs 4 to 7.
// Inputs are filled up to a multiple of 32.
struct Shape {
  Codes codes = Codes::kInt8;
  int64_t outputs = 0;  // at least 1
  int64_t inputs = 0;   // at least 1
};
inline int64_t panels(const Shape& shape) { return (shape.outputs + kPanel - 1) / kPanel; }
inline int64_t panel_bytes(const Shape& shape) {
  const int64_t groups = (shape.inputs + kGroup - 1) / kGroup;
  return shape.codes == Codes::kInt8 ? kPanel * 4 + groups * kGroup * kPanel : groups * (kPanel * 4 + 256);
}
Status packed_size(const Shape& shape, size_t* bytes);

// Quantises W [outputs, inputs] of `type`. int8: to the nearest, the largest of an output at 127. int4: scale
// and minimum with the least squared error among some ranges tried. A row, in int4 a group, with a NaN or an
// infinity becomes NaN. Any alignment; a packed matrix is read fastest on a 64-byte boundary. On the CPU: a
// product on CUDA takes the same bytes.
Status pack(const Shape& shape, Type type, const void* source, void* packed, Device device = Device::kCpu);

// Rows [first, first + count) of W as it is used, rounded to `type`.
Status unpack(const Shape& shape, const void* packed, int64_t first, int64_t count, Type type, void* rows);

// Matrices with the same inputs, one below the other: one product for all.
struct Part {
  const void* packed = nullptr;  // on CUDA on a 16-byte boundary
  int64_t outputs = 0;           // at least 1
  const void* bias = nullptr;    // [outputs]; null: none
};

struct Product {
  Type type = Type::kFloat32;
  Codes codes = Codes::kInt8;
  Activations activations = Activations::kExact;
  int64_t rows = 0;              // may be 0
  int64_t inputs = 0;            // at least 1
  const Part* parts = nullptr;   // [count], in the host's memory
  int64_t count = 0;             // 1 to 16
  const void* left = nullptr;    // [rows, inputs]
  void* output = nullptr;        // [rows, sum of outputs]
  Device device = Device::kCpu;  // where to run, and where all other arrays and the workspace lie
  int threads = num_threads();   // at most
  // With Device::kCuda only. A call puts work on the stream, waits for nothing and allocates nothing.
  void* stream = nullptr;  // a cudaStream_t
  CudaPath path = CudaPath::kBest;
};

// Bytes of scratch memory, which needs no alignment and no particular content. Bad sizes need none, nor does
// bfloat16 on CUDA: the workspace may be null where it is 0.
size_t workspace_size(const Product& product);
Status run(const Product& product, void* workspace);

// The same by plain loops in double, x as it is: the oracle.
Status run_reference(const Product& product);

// The back end that would run: "cpu/scalar", ..., "cpu/avx512_bf16", which has the products of VNNI as well;
// "cuda/sm80", "cuda/few". Of a device: the one for many rows.
Status which(Device device, std::string* name);
Status which(const Product& product, std::string* name);

}  // namespace earnest::quantized
