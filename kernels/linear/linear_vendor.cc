// SPDX-License-Identifier: Apache-2.0
// Names and numbers are those of cublasLt.h (cuBLAS documentation, "Using the cuBLASLt API"); that interface
// is the same in versions 12 and 13. What is row-major here is the transposed, column-major matrix there, so
// it computes y^T = W x^T: W [K, N] is taken transposed, x^T [K, M] as it is.
#include "kernels/linear/linear_vendor.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace earnest::linear::vendor {
namespace {

using Handle = void*;
using Descriptor = void*;  // of an operation, of a matrix's layout, of a preference

constexpr int kFloat32 = 0, kBFloat16 = 14;                  // cudaDataType_t
constexpr int kSumInFloat32 = 68;                            // CUBLAS_COMPUTE_32F
constexpr int kTransA = 3, kEpilogue = 7, kBiasPointer = 8;  // CUBLASLT_MATMUL_DESC_...
constexpr int32_t kTransposed = 1;                           // CUBLAS_OP_T
constexpr uint32_t kAddBias = 4;                             // CUBLASLT_EPILOGUE_BIAS
constexpr int kMostWorkspace = 1, kAlignmentOfA = 5;  // CUBLASLT_MATMUL_PREF_...; of B, C and D: 6, 7, 8

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

struct Functions {
  int (*create)(Handle*);
  int (*create_operation)(Descriptor*, int compute, int scale);
  int (*destroy_operation)(Descriptor);
  int (*set_operation)(Descriptor, int attribute, const void* value, size_t size);
  int (*create_layout)(Descriptor*, int type, uint64_t rows, uint64_t columns, int64_t leading);
  int (*destroy_layout)(Descriptor);
  int (*create_preference)(Descriptor*);
  int (*destroy_preference)(Descriptor);
  int (*set_preference)(Descriptor, int attribute, const void* value, size_t size);
  int (*find)(Handle, Descriptor operation, Descriptor a, Descriptor b, Descriptor c, Descriptor d,
              Descriptor preference, int wanted, Heuristic*, int* found);
  int (*multiply)(Handle, Descriptor operation, const void* alpha, const void* a, Descriptor, const void* b,
                  Descriptor, const void* beta, const void* c, Descriptor, void* d, Descriptor,
                  const Algorithm*, void* workspace, size_t workspace_bytes, void* stream);
};

template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

bool find_all(void* library, Functions* f) {
  return find(library, "cublasLtCreate", &f->create) &&
         find(library, "cublasLtMatmulDescCreate", &f->create_operation) &&
         find(library, "cublasLtMatmulDescDestroy", &f->destroy_operation) &&
         find(library, "cublasLtMatmulDescSetAttribute", &f->set_operation) &&
         find(library, "cublasLtMatrixLayoutCreate", &f->create_layout) &&
         find(library, "cublasLtMatrixLayoutDestroy", &f->destroy_layout) &&
         find(library, "cublasLtMatmulPreferenceCreate", &f->create_preference) &&
         find(library, "cublasLtMatmulPreferenceDestroy", &f->destroy_preference) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", &f->set_preference) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", &f->find) &&
         find(library, "cublasLtMatmul", &f->multiply);
}

using Alignments = std::array<int64_t, 3>;  // of W, x and y
// Device, type, sizes, the output's pitch, alignments, and whether there is a bias.
using Key = std::array<int64_t, 10>;
constexpr size_t kMostKept = 4096;  // prompts come in all lengths

// A library that was found stays; one that was not is looked for again.
struct Library {
  std::mutex mutex;
  bool open = false;
  Functions functions = {};
  std::map<int, Handle> handles;  // by device
  std::map<Key, Heuristic> algorithms;
};
Library& library() {
  static Library one;
  return one;
}

Status open(Library* l, const char* op, const char* argument, const char* others) {
  if (l->open) return {};
  std::string reason;
  const char* named = std::getenv("EARNEST_CUBLASLT");
  for (const char* name : {named, "libcublasLt.so.13", "libcublasLt.so.12"}) {
    if (name == nullptr) continue;
    void* const found = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (found != nullptr && find_all(found, &l->functions)) {
      l->open = true;
      return {};
    }
    const char* error = dlerror();
    reason = error == nullptr ? "another library" : error;
    if (found != nullptr) dlclose(found);
    if (name == named) break;  // who names one wants no other
  }
  return unsupported(op, argument,
                     std::string(others) +
                         " (vendor needs cuBLASLt: libcublasLt.so.13 or .12, or as "
                         "EARNEST_CUBLASLT names it)",
                     "vendor (" + reason + ")");
}

Status status_of(const char* what, int code) {
  if (code == 0) return {};
  return {StatusCode::kInternal, "[linear] cuBLASLt: expected " + std::string(what) +
                                     " to succeed, got status " + std::to_string(code)};
}

// No more than the scratch memory of the engine promises, so that a step that comes again, in a graph too,
// has the algorithms that it had. 16 bytes are the most that an instruction, or TMA, asks for.
constexpr uintptr_t kMostAlignment = 64;

int64_t alignment_of(const void* array) {
  const auto address = reinterpret_cast<uintptr_t>(array) | kMostAlignment;
  return static_cast<int64_t>(address & (~address + 1));
}

// One part of a product.
struct Job {
  const void *left, *right, *bias;
  void* output;
  int64_t rows, columns, depth;
  int64_t pitch;  // numbers between two rows of the output
  int type;
};

// Descriptors of one job; as long as this lives.
class Problem {
 public:
  Problem(const Functions& f, const Job& p) : f_(f) {
    const auto n = static_cast<uint64_t>(p.columns), m = static_cast<uint64_t>(p.rows),
               k = static_cast<uint64_t>(p.depth);
    note(f.create_operation(&operation, kSumInFloat32, kFloat32));
    set(f.set_operation, operation, kTransA, kTransposed);
    if (p.bias != nullptr) {
      set(f.set_operation, operation, kEpilogue, kAddBias);
      set(f.set_operation, operation, kBiasPointer, p.bias);
    }
    note(f.create_layout(&right, p.type, k, n, p.depth));
    note(f.create_layout(&left, p.type, k, m, p.depth));
    note(f.create_layout(&output, p.type, n, m, p.pitch));
  }
  ~Problem() {
    if (operation != nullptr) f_.destroy_operation(operation);
    for (const Descriptor layout : {right, left, output}) {
      if (layout != nullptr) f_.destroy_layout(layout);
    }
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  // Its first choice.
  int choose(Handle handle, const Alignments& alignments, Heuristic* found) {
    Descriptor preference = nullptr;
    note(f_.create_preference(&preference));
    set(f_.set_preference, preference, kMostWorkspace, kWorkspaceBytes);
    for (int i = 0; i < 4; ++i)  // C is D
      set(f_.set_preference, preference, kAlignmentOfA + i, static_cast<uint32_t>(alignments[i < 3 ? i : 2]));
    int count = 0;
    if (code == 0)
      note(f_.find(handle, operation, right, left, output, output, preference, 1, found, &count));
    if (preference != nullptr) f_.destroy_preference(preference);
    if (code == 0) note(count == 1 ? found->state : 15);  // CUBLAS_STATUS_NOT_SUPPORTED
    return code;
  }

  Descriptor operation = nullptr, right = nullptr, left = nullptr, output = nullptr;
  int code = 0;  // the first that was not 0

 private:
  void note(int status) {
    if (code == 0) code = status;
  }
  template <typename Set, typename Value>
  void set(const Set& set_attribute, Descriptor of, int attribute, const Value& value) {
    if (code == 0) code = set_attribute(of, attribute, &value, sizeof value);
  }

  const Functions& f_;
};

// With the library held.
Status run(Library* l, int device, Handle handle, const Job& job, void* workspace, void* stream) {
  const Functions& f = l->functions;
  Problem problem(f, job);
  if (Status status = status_of("a description of the product", problem.code); !status.ok()) return status;
  const Alignments alignments = {alignment_of(job.right), alignment_of(job.left), alignment_of(job.output)};
  const Key key = {device,    job.type,      job.rows,      job.columns,   job.depth,
                   job.pitch, alignments[0], alignments[1], alignments[2], job.bias != nullptr};
  auto known = l->algorithms.find(key);
  if (known == l->algorithms.end()) {
    Heuristic found = {};
    if (Status status = status_of("an algorithm", problem.choose(handle, alignments, &found)); !status.ok())
      return status;
    if (l->algorithms.size() >= kMostKept) l->algorithms.clear();
    known = l->algorithms.emplace(key, found).first;
  }
  const float alpha = 1, beta = 0;
  return status_of("cublasLtMatmul",
                   f.multiply(handle, problem.operation, &alpha, job.right, problem.right, job.left,
                              problem.left, &beta, job.output, problem.output, job.output, problem.output,
                              &known->second.algorithm, workspace, kWorkspaceBytes, stream));
}

}  // namespace

Status available(const char* op, const char* argument, const char* others) {
  Library& l = library();
  const std::lock_guard<std::mutex> lock(l.mutex);
  return open(&l, op, argument, others);
}

Status run(const gpu::Operands& p, Type of, const cuda::Properties& device, void* workspace, void* stream) {
  Library& l = library();
  const std::lock_guard<std::mutex> lock(l.mutex);
  Handle& handle = l.handles[device.index];
  if (handle == nullptr) {
    if (Status status = status_of("cublasLtCreate", l.functions.create(&handle)); !status.ok()) return status;
  }
  const int type = of == Type::kFloat32 ? kFloat32 : kBFloat16;
  const int64_t size = of == Type::kFloat32 ? 4 : 2;
  for (int i = 0; i < p.count; ++i) {
    const gpu::PartOperands& part = p.parts[i];
    const Job job = {p.left, part.right,   part.bias, static_cast<char*>(p.output) + part.first_column * size,
                     p.rows, part.columns, p.depth,   p.columns,
                     type};
    if (Status status = run(&l, device.index, handle, job, workspace, stream); !status.ok()) return status;
  }
  return {};
}

}  // namespace earnest::linear::vendor
