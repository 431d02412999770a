// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: which path, what lies where in the workspace, and the launches in their order.
#include <algorithm>
#include <initializer_list>

#include "kernels/common/cuda.h"
#include "kernels/logprob/logprob_cuda.h"
#include "kernels/logprob/logprob_paths.h"
#include "kernels/logprob/logprob_rows.h"

namespace earnest::logprob {
namespace {

using namespace gpu;

constexpr const char* kOp = "logprob";

// What of this problem path sm90a cannot do; null if nothing. `gradients` are those that backward writes.
const char* beyond_sm90a(const Problem& p, std::initializer_list<const void*> gradients) {
  if (p.depth % 8 != 0) return "a depth that is no multiple of 8";
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool all =
      aligned(p.hidden) && aligned(p.weight) && std::all_of(gradients.begin(), gradients.end(), aligned);
  return all ? nullptr : "an array that does not begin on 16 bytes";
}

Status choose_path(const Problem& p, std::initializer_list<const void*> gradients, CudaPath* path) {
  const CudaPath highest = p.type == Type::kBFloat16 ? CudaPath::kSm90a : CudaPath::kSm80;
  return cuda::choose_path(kOp, {p.path, highest, beyond_sm90a(p, gradients)}, path);
}

template <typename Job>
Status run_product(CudaPath path, const Product& product, const Job& job, void* stream) {
  if constexpr (sizeof(typename Job::Element) == 2) {
    if (path == CudaPath::kSm90a) return sm90a::run(product, job, stream);
  }
  return sm80::run(product, job, stream);
}

dim3 grid_of(int64_t rows, int rows_of_block) {
  return dim3(static_cast<unsigned>(blocks_of(rows, rows_of_block)));
}

// Hands out parts of the workspace, each aligned. With no memory it only counts.
class Memory {
 public:
  explicit Memory(void* workspace)
      : next_(static_cast<size_t>(
            padded(static_cast<int64_t>(reinterpret_cast<uintptr_t>(workspace)), kAlignment))),
        begin_(reinterpret_cast<uintptr_t>(workspace)) {}
  template <typename T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += static_cast<size_t>(padded(count * static_cast<int64_t>(sizeof(T)), kAlignment));
    return taken;
  }
  size_t bytes() const { return next_ - begin_ + kAlignment; }  // the caller's pointer may lie anywhere

 private:
  uintptr_t next_, begin_;
};

// ---- forward ----

template <typename Stored>
struct ForwardMemory {
  Part<Arithmetic<Stored>>* parts;  // room for either path's
  Arithmetic<Stored>* target_logits;
  size_t bytes;

  ForwardMemory(const Problem& p, void* workspace) {
    Memory memory(workspace);
    parts = memory.take<Part<Arithmetic<Stored>>>(
        p.rows * std::max(sm80::kParts.count(p.vocabulary), sm90a::kParts.count(p.vocabulary)));
    target_logits = memory.take<Arithmetic<Stored>>(p.rows);
    bytes = memory.bytes();
  }
};

template <typename Stored>
Status forward(const Forward& f, CudaPath path, void* workspace) {
  using T = Arithmetic<Stored>;
  const Problem& p = f.problem;
  const ForwardMemory<Stored> memory(p, workspace);
  const auto inverse = static_cast<T>(1 / p.temperature);
  const int64_t count = (path == CudaPath::kSm90a ? sm90a::kParts : sm80::kParts).count(p.vocabulary);
  const LogitSums<Stored> sums = {p.rows,       p.vocabulary, p.targets,           inverse,
                                  memory.parts, count,        memory.target_logits};
  const Product logits = {{p.hidden, p.depth}, {p.weight, p.depth}, p.rows, p.vocabulary, p.depth};
  if (Status status = run_product(path, logits, sums, p.stream); !status.ok()) return status;
  const RowResults<T> results = {p.rows,
                                 p.vocabulary,
                                 p.targets,
                                 memory.parts,
                                 count,
                                 memory.target_logits,
                                 static_cast<T*>(f.logp),
                                 static_cast<T*>(f.entropy),
                                 static_cast<T*>(f.lse),
                                 p.fault};
  return simt::launch({kOp, "join_parts"}, join_parts<T>, grid_of(p.rows, kRowsOfBlock), dim3(kRowThreads), 0,
                      p.stream, results);
}

// ---- backward ----

template <typename Stored>
Sizes sizes_of(const Backward& b) {
  return {b.problem.rows, b.problem.depth, b.problem.vocabulary, sizeof(Stored), b.scratch};
}

template <typename Stored>
struct BackwardMemory {
  using T = Arithmetic<Stored>;
  static constexpr bool kRounds = sizeof(Stored) == 2;

  RowSlope<T>* slopes;      // [N]
  T* lost;                  // [N], bfloat16; else null
  int32_t *first, *next;    // [V], [N], bfloat16 and grad_weight wanted
  BFloat16* lower;          // [N, H], bfloat16 and grad_hidden wanted
  Stored* logit_gradients;  // [N, workspace_columns]
  size_t bytes;

  BackwardMemory(const Backward& b, void* workspace) {
    const Problem& p = b.problem;
    const bool strings = kRounds && b.grad_weight != nullptr;
    Memory memory(workspace);
    slopes = memory.take<RowSlope<T>>(p.rows);
    lost = kRounds ? memory.take<T>(p.rows) : nullptr;
    first = memory.take<int32_t>(strings ? p.vocabulary : 0);
    next = memory.take<int32_t>(strings ? p.rows : 0);
    lower = memory.take<BFloat16>(kRounds && b.grad_hidden != nullptr ? p.rows * p.depth : 0);
    const int64_t columns = p.rows == 0 ? 0 : workspace_columns(sizes_of<Stored>(b));
    logit_gradients = memory.take<Stored>(p.rows * chunk_pitch(columns));
    bytes = memory.bytes();
  }
};

template <typename Stored>
class BackwardRun {
 public:
  using T = Arithmetic<Stored>;

  BackwardRun(const Backward& b, CudaPath path, void* workspace)
      : b_(b), p_(b.problem), path_(path), memory_(b, workspace) {}

  Status run() const {
    if (p_.rows == 0 && b_.grad_weight != nullptr) {
      return fill(static_cast<Stored*>(b_.grad_weight), 0, p_.vocabulary * p_.depth);
    }
    if (p_.rows == 0 || (b_.grad_hidden == nullptr && b_.grad_weight == nullptr)) return {};
    if (Status status = prepare(); !status.ok()) return status;
    for (int64_t first = 0; first < p_.vocabulary;) {
      const Chunk chunk = chunk_at(first, sizes_of<Stored>(b_), b_.grad_weight != nullptr);
      if (Status status = run(chunk); !status.ok()) return status;
      first += chunk.columns;
    }
    return {};
  }

 private:
  Status prepare() const {
    const auto rows = [](const void* of) { return static_cast<const T*>(of); };
    const RowGradients<T> gradients = {
        p_.rows,           p_.vocabulary, p_.targets,         1 / p_.temperature,
        rows(b_.entropy),  rows(b_.lse),  rows(b_.grad_logp), rows(b_.grad_entropy),
        rows(b_.grad_lse), p_.fault};
    const dim3 grid = grid_of(p_.rows, kRowThreads), block(kRowThreads);
    if (Status status = simt::launch({kOp, "prepare_rows"}, prepare_rows<T>, grid, block, 0, p_.stream,
                                     gradients, memory_.slopes);
        !status.ok() || memory_.lost == nullptr) {
      return status;
    }
    if (Status status = fill(memory_.lost, 0, p_.rows); !status.ok() || b_.grad_weight == nullptr)
      return status;
    if (Status status = fill(memory_.first, 0xff, p_.vocabulary); !status.ok()) return status;
    return simt::launch({kOp, "link_targets"}, link_targets, grid, block, 0, p_.stream, p_.targets, p_.rows,
                        p_.vocabulary, memory_.first, memory_.next);
  }

  template <typename Number>
  Status fill(Number* numbers, int byte, int64_t count) const {
    return cuda::fill(kOp, numbers, byte, static_cast<size_t>(count) * sizeof(Number), p_.stream);
  }

  Status run(const Chunk& chunk) const {
    const Operand hidden = {p_.hidden, p_.depth};
    const Operand weight = {static_cast<const Stored*>(p_.weight) + chunk.first * p_.depth, p_.depth};
    const Matrix<Stored> gradients = {place_of(chunk), chunk_pitch(chunk.columns), p_.rows, chunk.columns,
                                      true};
    const Operand of_logits = {gradients.data, gradients.pitch};

    const LogitGradients<Stored> logits = {
        chunk.first, p_.targets, memory_.slopes, static_cast<T>(1 / p_.temperature), gradients, memory_.lost};
    if (Status status = multiply(hidden, weight, p_.rows, chunk.columns, p_.depth, logits); !status.ok())
      return status;

    if (b_.grad_hidden != nullptr) {
      const Matrix<Stored> result = matrix(b_.grad_hidden, 0, p_.rows);
      const HiddenGradient<Stored> job = {
          chunk.first == 0, chunk.first + chunk.columns == p_.vocabulary, sums_in(result),
          result,           static_cast<const Stored*>(p_.weight),        p_.targets,
          memory_.lost};
      if (Status status = multiply(of_logits, weight, p_.rows, p_.depth, chunk.columns, job); !status.ok())
        return status;
    }
    if (b_.grad_weight == nullptr) return {};
    const int32_t* first = memory_.lost == nullptr ? nullptr : memory_.first + chunk.first;
    const WeightGradient<Stored> job = {matrix(b_.grad_weight, chunk.first, chunk.columns),
                                        static_cast<const Stored*>(p_.hidden), first, memory_.next,
                                        memory_.lost};
    return multiply(of_logits, hidden, chunk.columns, p_.depth, p_.rows, job);
  }

  template <typename Job>
  Status multiply(const Operand& left, const Operand& right, int64_t rows, int64_t columns, int64_t depth,
                  const Job& job) const {
    return run_product(path_, {left, right, rows, columns, depth}, job, p_.stream);
  }

  // Rows of a gradient.
  Matrix<Stored> matrix(void* gradient, int64_t first_row, int64_t rows) const {
    const bool wide = p_.depth % 8 == 0 && reinterpret_cast<uintptr_t>(gradient) % 16 == 0;
    return {static_cast<Stored*>(gradient) + first_row * p_.depth, p_.depth, rows, p_.depth, wide};
  }

  auto sums_in(const Matrix<Stored>& result) const {
    if constexpr (sizeof(Stored) == 2) {
      return SplitSums{result, memory_.lower};
    } else {
      return result;
    }
  }

  Stored* place_of(const Chunk& chunk) const {
    if (!chunk.in_gradient) return memory_.logit_gradients;
    const Stored* behind =
        static_cast<const Stored*>(b_.grad_weight) + (chunk.first + chunk.columns) * p_.depth;
    return Memory(const_cast<Stored*>(behind)).template take<Stored>(0);
  }

  const Backward& b_;
  const Problem& p_;
  const CudaPath path_;
  const BackwardMemory<Stored> memory_;
};

// Calls job with a null pointer to the stored type.
template <typename Job>
auto with_type(Type type, const Job& job) {
  if (type == Type::kFloat64) return job(static_cast<double*>(nullptr));
  if (type == Type::kFloat32) return job(static_cast<float*>(nullptr));
  return job(static_cast<BFloat16*>(nullptr));
}
template <typename Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

}  // namespace

Status which_cuda(const Problem& p, std::string* name) {
  CudaPath path;
  if (Status status = choose_path(p, {}, &path); !status.ok()) return status;
  *name = std::string("cuda/") + name_of(path);
  return {};
}

size_t workspace_size_cuda(const Forward& f) {
  return with_type(f.problem.type, [&](auto* stored) {
    return ForwardMemory<Pointee<decltype(stored)>>(f.problem, nullptr).bytes;
  });
}

size_t workspace_size_cuda(const Backward& b) {
  return with_type(b.problem.type,
                   [&](auto* stored) { return BackwardMemory<Pointee<decltype(stored)>>(b, nullptr).bytes; });
}

Status run_cuda(const Forward& f, void* workspace) {
  CudaPath path;
  if (Status status = choose_path(f.problem, {}, &path); !status.ok()) return status;
  return with_type(f.problem.type,
                   [&](auto* stored) { return forward<Pointee<decltype(stored)>>(f, path, workspace); });
}

Status run_cuda(const Backward& b, void* workspace) {
  CudaPath path;
  if (Status status = choose_path(b.problem, {b.grad_hidden, b.grad_weight}, &path); !status.ok())
    return status;
  return with_type(b.problem.type, [&](auto* stored) {
    return BackwardRun<Pointee<decltype(stored)>>(b, path, workspace).run();
  });
}

}  // namespace earnest::logprob
