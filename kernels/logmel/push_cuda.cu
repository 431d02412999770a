// SPDX-License-Identifier: Apache-2.0
// One step of many streams in one launch. A block takes four streams, eight lanes each, and of those streams
// every gridDim.y-th eight frames; the block that is done with a stream last moves its state on.
#include "kernels/common/cuda.h"
#include "kernels/logmel/cuda_tile.h"
#include "kernels/logmel/logmel_cuda.h"
#include "kernels/logmel/push_grid.h"
#include "kernels/logmel/record_sample.h"
#include "kernels/logmel/signal.h"

namespace earnest::logmel {
namespace {

constexpr int kThreadsOfStream = kThreads / kStreamsOfBlock, kWarpsOfStream = kWarpsOfTile / kStreamsOfBlock;
constexpr int kHopsOfStream = kFramesOfStream + 2, kFloatsOfHop = kHop / simt::kWarpSize;
// Streams are so far apart that the 32 frames of a block still begin in different banks.
constexpr int kStreamStride = kHopsOfStream * kHopStride + 30;
static_assert(kStreamStride % simt::kWarpSize == kFramesOfStream && kHopStride % simt::kWarpSize == 1);
constexpr size_t kSharedBytes = kSamplesOffset + kStreamsOfBlock * kStreamStride * sizeof(float);

// A stream with its chunk: samples before the chunk come from the state.
struct Chunk {
  StreamState* state;
  const float* pcm;         // of the chunk
  int64_t origin;           // its place in the step's pcm
  int64_t before, samples;  // of the stream: before the chunk, and with it
  int64_t length;           // with the zeros appended, if it is the last
  int64_t first, frames;    // that it makes ready
  bool last;

  __device__ float at(int64_t i) const {
    i = reflected(i, length);
    if (i >= samples) return 0.0f;
    return i >= before ? pcm[i - before] : state->held[i - before + StreamState::kHeld];
  }
  __device__ bool check(FaultWord* fault, int64_t i, float x) const {
    return i < before || i >= samples || check_sample(fault, origin + (i - before), x);
  }
};

__device__ Chunk chunk_of(const Push& push, int64_t s) {
  Chunk chunk;
  chunk.state = static_cast<StreamState*>(push.states) + (push.ids == nullptr ? s : push.ids[s]);
  chunk.origin = push.cu_samples[s];
  chunk.pcm = push.pcm + chunk.origin;
  chunk.before = chunk.state->pushed;
  chunk.samples = chunk.before + (push.cu_samples[s + 1] - chunk.origin);
  chunk.last = push.last != nullptr && push.last[s] != 0;
  chunk.length = chunk.samples + (chunk.last ? appended_zeros(push.padding) : 0);
  chunk.first = whole_frames(chunk.before);
  chunk.frames =
      (chunk.last ? frames_in(chunk.samples, push.padding) : whole_frames(chunk.samples)) - chunk.first;
  return chunk;
}

// Whether the chunk fits, whatever its samples are.
__device__ bool check_chunk(const Push& push, const Chunk& chunk, int64_t s) {
  const int64_t pushed = chunk.samples - chunk.before, frames = push.cu_frames[s + 1] - push.cu_frames[s];
  const bool fits = chunk.origin >= 0 && pushed >= 0 && chunk.origin + pushed <= push.samples &&
                    chunk.samples <= kMaxSamples && push.cu_frames[s] >= 0 &&
                    push.cu_frames[s + 1] <= push.frames && frames == chunk.frames &&
                    frames <= push.most_frames;
  const bool empty = chunk.last && chunk.samples == 0, ended = chunk.state->ended != 0;
  if (fits && !empty && !ended) return true;
  const SampleFault fault = ended ? SampleFault::kEnded : empty ? SampleFault::kEmpty : SampleFault::kOffsets;
  record_fault(push.fault, {FaultOp::kLogMel, s, static_cast<int>(fault)});
  return false;
}

// What the block knows of its streams.
struct Turn {
  int64_t frames;      // 0: nothing to compute
  float* out;          // [n_mels, frames]
  uint32_t in_use;     // there is such a stream, and its chunk fits
  uint32_t last_here;  // this block is the last one that works on it
  uint32_t refused;
};

// Samples of `count` frames from the chunk's frame `first` on. False if one may not be.
__device__ bool load_frames(FaultWord* fault, const Chunk& chunk, int64_t first, int count,
                            simt::Shared<float> samples) {
  const int lane = lane_index();
  bool fine = true;
  for (int hop = warp_index() % kWarpsOfStream; hop < count + 2; hop += kWarpsOfStream) {
    const int64_t start = kHop * (chunk.first + first + hop) - kWindow / 2;
    const bool inside = start >= chunk.before && start + kHop <= chunk.samples;
    float x[kFloatsOfHop];
#pragma unroll
    for (int i = 0; i < kFloatsOfHop; ++i) {
      const int place = simt::kWarpSize * i + lane;
      x[i] = inside ? chunk.pcm[start - chunk.before + place] : chunk.at(start + place);
    }
#pragma unroll
    for (int i = 0; i < kFloatsOfHop; ++i) {
      const int place = simt::kWarpSize * i + lane;
      fine &= chunk.check(fault, start + place, x[i]);
      samples[kHopStride * hop + place] = x[i];
    }
  }
  return fine;
}

// The last block to leave a stream checks the samples that no frame has reached yet, and if all of the chunk
// are fine, moves the state on.
__device__ void leave(const Push& push, const Chunk& chunk, simt::Shared<Turn> turn) {
  constexpr int kEach = (StreamState::kHeld + kThreadsOfStream - 1) / kThreadsOfStream;
  const int thread = static_cast<int>(threadIdx.x) % kThreadsOfStream;
  StreamState* state = chunk.state;
  __syncthreads();
  if (thread == 0 && turn->in_use != 0) {
    if (turn->refused != 0) atomicOr(&state->refused, 1u);
    __threadfence();
    turn->last_here = atomicAdd(&state->blocks, 1u) == gridDim.y - 1;
    __threadfence();
    if (turn->last_here != 0) turn->refused = simt::load_acquire(&state->refused);
  }
  __syncthreads();
  const bool moves = turn->in_use != 0 && turn->last_here != 0 && turn->refused == 0;
  __syncthreads();  // everybody has read what a wrong sample changes below
  float held[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int place = thread + kThreadsOfStream * i;
    const int64_t at = chunk.samples - StreamState::kHeld + place;
    held[i] = 0.0f;
    if (!moves || place >= StreamState::kHeld || at < 0) continue;
    held[i] = at >= chunk.before ? chunk.pcm[at - chunk.before]
                                 : state->held[at - chunk.before + StreamState::kHeld];
    if (!chunk.check(push.fault, at, held[i])) atomicOr(&turn->refused, 1u);
  }
  __syncthreads();
  if (turn->in_use == 0 || turn->last_here == 0) return;
  if (turn->refused == 0) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int place = thread + kThreadsOfStream * i;
      if (place < StreamState::kHeld) state->held[place] = held[i];
    }
  }
  if (thread != 0) return;
  if (turn->refused == 0) {
    state->pushed = chunk.samples;
    state->ended = chunk.last ? 1 : 0;
  }
  state->blocks = state->refused = 0;
}

__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    push_kernel(const Push push, const CudaTables tables) {
  EARNEST_SHARED(Turn, turns, kStreamsOfBlock);
  const auto samples = simt::dynamic_shared<float>(kSamplesOffset, kStreamsOfBlock * kStreamStride);
  const int group = warp_index() / kWarpsOfStream, lane = lane_index();
  const int64_t s = int64_t{blockIdx.x} * kStreamsOfBlock + group;
  Chunk chunk = {};
  if (s < push.streams) chunk = chunk_of(push, s);
  if (threadIdx.x % kThreadsOfStream == 0) {
    const bool fits = s < push.streams && check_chunk(push, chunk, s);
    turns[group] = {fits ? chunk.frames : 0, fits ? push.out + push.n_mels * push.cu_frames[s] : nullptr,
                    fits, 0, 0};
  }
  __syncthreads();
  int64_t most = 0;
  for (int i = 0; i < kStreamsOfBlock; ++i) most = turns[i].frames > most ? turns[i].frames : most;
  const Turn of_lane = turns[lane / kFramesOfStream];
  const int64_t mine = turns[group].frames;
  for (int64_t begin = int64_t{blockIdx.y} * kFramesOfStream; begin < most;
       begin += int64_t{gridDim.y} * kFramesOfStream) {
    const int count = begin + kFramesOfStream <= mine ? kFramesOfStream
                      : begin < mine                  ? static_cast<int>(mine - begin)
                                                      : 0;
    if (count > 0 && !load_frames(push.fault, chunk, begin, count, samples + kStreamStride * group))
      atomicOr(&turns[group].refused, 1u);
    __syncthreads();
    const int64_t frame = begin + lane % kFramesOfStream;
    const Place place = {frame < of_lane.frames ? of_lane.out + frame : nullptr,
                         static_cast<uint32_t>(of_lane.frames)};
    compute_tile<InLoops>(tables, samples,
                          kStreamStride * (lane / kFramesOfStream) + kHopStride * (lane % kFramesOfStream),
                          place);
  }
  leave(push, chunk, turns + group);
}

}  // namespace

Status launch_push(const Push& push) {
  cuda::Properties device;
  if (Status status = cuda::properties("logmel", &device); !status.ok()) return status;
  const Tables* tables = tables_for(push.n_mels);
  if (tables == nullptr) return {StatusCode::kOutOfMemory, "[logmel] memory: expected some left, got none"};
  const PushGrid grid =
      push_grid(push.streams, push.most_frames, kBlocksOfMultiprocessor * device.multiprocessors);
  return simt::launch({"logmel", "push"}, push_kernel,
                      dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)), dim3(kThreads),
                      kSharedBytes, push.stream, push, cuda_tables(*tables));
}

}  // namespace earnest::logmel
