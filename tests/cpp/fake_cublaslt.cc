// SPDX-License-Identifier: Apache-2.0
// A library with cuBLASLt's names that multiplies by plain loops in the host's memory, where the emulator's
// arrays lie: for tests of kernels/linear and of the engine. It takes what cublasLt.h says of a product in
// bfloat16 or float32, and answers CUBLAS_STATUS_INVALID_VALUE to anything else.
#include "tests/cpp/fake_cublaslt.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/common/bfloat16.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using earnest::BFloat16;

constexpr int kSuccess = 0, kInvalid = 7, kFailed = 13, kNotSupported = 15;

FakeCublasLt told;

struct Operation {
  int32_t transposed_a = 0;
  uint32_t epilogue = 1;
  const void* bias = nullptr;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
};
struct Preference {
  size_t workspace = 0;
  uint32_t alignments[4] = {256, 256, 256, 256};
};
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

constexpr uint64_t kChosen = 0x5eed;

template <typename T>
int set(T* value, const void* from, size_t size) {
  if (size != sizeof *value) return kInvalid;
  std::memcpy(value, from, size);
  return kSuccess;
}

template <typename T>
void multiply(const Operation& o, const Layout& a, const Layout& b, const Layout& d, const void* left,
              const void* right, void* out) {
  ++told.done;
  const double planted = told.depends_on_batch ? static_cast<double>(d.columns) / 16 : 0;
  const auto *x = static_cast<const T*>(left), *y = static_cast<const T*>(right);
  for (uint64_t j = 0; j < d.columns; ++j) {
    for (uint64_t i = 0; i < d.rows; ++i) {
      double sum = planted;
      for (uint64_t k = 0; k < a.rows; ++k)
        sum += static_cast<double>(earnest::widen(x[i * static_cast<uint64_t>(a.leading) + k])) *
               static_cast<double>(earnest::widen(y[j * static_cast<uint64_t>(b.leading) + k]));
      if (o.epilogue == 4) sum += static_cast<double>(earnest::widen(static_cast<const T*>(o.bias)[i]));
      earnest::narrow(static_cast<float>(sum),
                      static_cast<T*>(out) + j * static_cast<uint64_t>(d.leading) + i);
    }
  }
}

bool fit(const Operation& o, const Layout& a, const Layout& b, const Layout& d) {
  return o.transposed_a == 1 && a.rows == b.rows && d.rows == a.columns && d.columns == b.columns &&
         a.type == b.type && a.type == d.type && (a.type == 0 || a.type == 14);
}

}  // namespace

EXPORT FakeCublasLt* fake_cublaslt() { return &told; }

EXPORT int cublasLtCreate(void** handle) {
  static int one;
  *handle = &one;
  return kSuccess;
}
EXPORT int cublasLtMatmulDescCreate(void** made, int compute, int scale) {
  if (compute != 68 || scale != 0) return kInvalid;
  *made = new Operation;
  return kSuccess;
}
EXPORT int cublasLtMatmulDescDestroy(void* one) {
  delete static_cast<Operation*>(one);
  return kSuccess;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* one, int attribute, const void* value, size_t size) {
  auto* o = static_cast<Operation*>(one);
  if (attribute == 3) return set(&o->transposed_a, value, size);
  if (attribute == 7) return set(&o->epilogue, value, size);
  if (attribute == 8) return set(&o->bias, value, size);
  return kInvalid;
}
EXPORT int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns,
                                      int64_t leading) {
  *made = new Layout{type, rows, columns, leading};
  return kSuccess;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* one) {
  delete static_cast<Layout*>(one);
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceCreate(void** made) {
  *made = new Preference;
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* one) {
  delete static_cast<Preference*>(one);
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* one, int attribute, const void* value, size_t size) {
  auto* p = static_cast<Preference*>(one);
  if (attribute == 1) return set(&p->workspace, value, size);
  if (attribute >= 5 && attribute <= 8) return set(&p->alignments[attribute - 5], value, size);
  return kInvalid;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void* operation, void* a, void* b, void* c, void* d,
                                          void* preference, int wanted, Heuristic* results, int* found) {
  const auto* p = static_cast<const Preference*>(preference);
  ++told.searches;
  *found = 0;
  if (c != d || wanted != 1 ||
      !fit(*static_cast<Operation*>(operation), *static_cast<Layout*>(a), *static_cast<Layout*>(b),
           *static_cast<Layout*>(d)))
    return kInvalid;
  for (uint32_t alignment : p->alignments)
    if (alignment < 2) return kNotSupported;
  *results = {};
  results->algorithm.data[0] = kChosen;
  results->workspace_bytes = p->workspace;
  *found = 1;
  return kSuccess;
}
EXPORT int cublasLtMatmul(void*, void* operation, const void* alpha, const void* a, void* of_a, const void* b,
                          void* of_b, const void* beta, const void* c, void* of_c, void* d, void* of_d,
                          const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  const auto& o = *static_cast<const Operation*>(operation);
  const auto &la = *static_cast<const Layout*>(of_a), &lb = *static_cast<const Layout*>(of_b),
             &ld = *static_cast<const Layout*>(of_d);
  float one, zero;
  std::memcpy(&one, alpha, sizeof one);
  std::memcpy(&zero, beta, sizeof zero);
  if (!fit(o, la, lb, ld) || one != 1 || zero != 0 || c != d || of_c != of_d || algorithm->data[0] != kChosen)
    return kInvalid;
  if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) return kInvalid;
  if (told.fails) return kFailed;
  ++told.products;
  const auto work = [=] {  // descriptors may be gone when it is done
    constexpr size_t kPage = 4096;
    auto* const bytes = static_cast<unsigned char*>(workspace);
    for (size_t i = 0; i < workspace_bytes; i += kPage) bytes[i] = 0xab;  // all of it is there
    bytes[workspace_bytes - 1] = 0xab;
    if (la.type == 14) {
      multiply<BFloat16>(o, la, lb, ld, a, b, d);
    } else {
      multiply<float>(o, la, lb, ld, a, b, d);
    }
  };
  if (told.put) return told.put(stream, work) ? kSuccess : kFailed;
  work();
  return kSuccess;
}
