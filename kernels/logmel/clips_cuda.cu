// SPDX-License-Identifier: Apache-2.0
// A batch of whole clips in one launch, from samples to normalised features. schedule.h says who does what.
#include "kernels/common/cuda.h"
#include "kernels/logmel/cuda_tile.h"
#include "kernels/logmel/cuda_unrolled.h"
#include "kernels/logmel/logmel_cuda.h"
#include "kernels/logmel/normalize_device.h"
#include "kernels/logmel/record_sample.h"
#include "kernels/logmel/signal.h"

namespace earnest::logmel {
namespace {

constexpr int kHopsOfTile = kFramesOfTile + 2;
constexpr int kFloatsOfHop = kHop / simt::kWarpSize;  // in one lane
constexpr size_t kSharedBytes = kSamplesOffset + kHopsOfTile * kHopStride * sizeof(float);

// A clip's place among the samples and frames of all.
struct ClipPlace {
  int64_t first_sample, samples, first_frame, frames;
};

// Nothing, and a fault, if the offsets do not fit.
__device__ ClipPlace place_of(const Clips& clips, int64_t c) {
  if (clips.cu_samples == nullptr) {
    const int64_t frames = frames_in(clips.samples, clips.padding);
    return {c * clips.samples, clips.samples, c * frames, frames};
  }
  const int64_t sample = clips.cu_samples[c], samples = clips.cu_samples[c + 1] - sample;
  const int64_t frame = clips.cu_frames[c], frames = clips.cu_frames[c + 1] - frame;
  if (sample >= 0 && samples >= 0 && samples <= kMaxSamples && sample + samples <= clips.samples &&
      frame >= 0 && frame + frames <= clips.frames && frames == frames_in(samples, clips.padding))
    return {sample, samples, frame, frames};
  record_fault(clips.fault, {FaultOp::kLogMel, c, static_cast<int>(SampleFault::kOffsets)});
  return {0, 0, 0, 0};
}

// What a block is to do, worked out by one thread of it.
struct Task {
  Work work;
  ClipPlace clip;
  // Of a tile: the sample at which its first frame begins, of the clip and of all; how many frames it has,
  // none to 32.
  int64_t start, origin;
  int32_t frames;
  bool inside;  // its frames reach nothing beyond the clip
  bool last;    // the samples that no frame reaches are the tile's, too
};

__device__ Task task_of(const Clips& clips, const Work& work) {
  Task task = {work, place_of(clips, work.clip), 0, 0, 0, false, false};
  if (work.tile < 0) return task;
  const int64_t begin = work.tile * kFramesOfTile, left = task.clip.frames - begin;
  task.frames = left < 0 ? 0 : left < kFramesOfTile ? static_cast<int>(left) : kFramesOfTile;
  task.start = kHop * begin - kWindow / 2;
  task.origin = task.clip.first_sample + task.start;
  task.inside = task.start >= 0 && task.start + kHop * (task.frames + 2) <= task.clip.samples;
  task.last = left <= kFramesOfTile && (task.frames > 0 || work.tile == 0);
  return task;
}

// The tile's samples, all of them in the clip: every warp takes each sixteenth hop.
__device__ __forceinline__ void load_inside(const Clips& clips, const Task& task,
                                            simt::Shared<float> samples) {
  constexpr int kMostHops = (kHopsOfTile + kWarpsOfTile - 1) / kWarpsOfTile;
  const int warp = warp_index(), lane = lane_index(), hops = task.frames + 2;
  const float* pcm = clips.pcm + (task.origin + kHop * warp + lane);
  const int place = kHopStride * warp + lane;
#pragma unroll
  for (int j = 0; j < kMostHops; ++j) {
    if (warp + kWarpsOfTile * j >= hops) return;
    float x[kFloatsOfHop];
    bool fine = true;
#pragma unroll
    for (int i = 0; i < kFloatsOfHop; ++i) x[i] = pcm[kHop * kWarpsOfTile * j + simt::kWarpSize * i];
#pragma unroll
    for (int i = 0; i < kFloatsOfHop; ++i) {
      fine &= fabsf(x[i]) <= kMaxMagnitude;
      samples[place + kHopStride * kWarpsOfTile * j + simt::kWarpSize * i] = x[i];
    }
    if (fine) continue;
#pragma unroll 1
    for (int i = 0; i < kHop; i += simt::kWarpSize) {
      const int64_t at = kHop * (warp + kWarpsOfTile * j) + i + lane;
      check_sample(clips.fault, task.origin + at, clips.pcm[task.origin + at]);
    }
  }
}

// The same where frames reach beyond the clip.
__device__ void load_edge(const Clips& clips, const Task& task, simt::Shared<float> samples) {
  const ClipPlace& clip = task.clip;
  const Signal signal{clips.pcm + clip.first_sample, 0, clip.samples,
                      clip.samples + appended_zeros(clips.padding)};
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kHop * (task.frames + 2); i += kThreads) {
    const float x = signal.at(task.start + i);
    if (task.start + i >= 0 && task.start + i < clip.samples) check_sample(clips.fault, task.origin + i, x);
    samples[i + i / kHop * (kHopStride - kHop)] = x;
  }
}

// Samples from where the tile ends to the clip's end.
__device__ void check_rest(const Clips& clips, const Task& task) {
  const int64_t begin = task.frames > 0 ? task.start + kHop * (task.frames + 2) : 0;
#pragma unroll 1
  for (int64_t i = begin + threadIdx.x; i < task.clip.samples; i += kThreads)
    check_sample(clips.fault, task.clip.first_sample + i, clips.pcm[task.clip.first_sample + i]);
}

// Raw features of the tile's frames. Returns the largest that the thread has written, -10 if none.
template <typename Way>
__device__ float compute_raw(const Clips& clips, const CudaTables& tables, const Task& task) {
  const auto samples = simt::dynamic_shared<float>(kSamplesOffset, kHopsOfTile * kHopStride);
  if (task.last) check_rest(clips, task);
  if (task.frames == 0) return -10.0f;
  if (task.inside) {
    load_inside(clips, task, samples);
  } else {
    load_edge(clips, task, samples);
  }
  __syncthreads();
  const int lane = lane_index(), frame = lane < task.frames ? lane : task.frames - 1;
  float* out = clips.out + clips.n_mels * task.clip.first_frame + task.work.tile * kFramesOfTile + lane;
  return compute_tile<Way>(tables, samples, kHopStride * frame,
                           {lane < task.frames ? out : nullptr, static_cast<uint32_t>(task.clip.frames)});
}

template <typename Way>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    clips_kernel(const Clips clips, const Schedule schedule, const CudaTables tables) {
  EARNEST_SHARED(Task, task, 1);
  Progress* progress = static_cast<Progress*>(clips.workspace);
  if (warp_index() == 0) {
    const Work work = next_work(schedule, progress);
    if (lane_index() == 0) task[0] = task_of(clips, work);
  }
  __syncthreads();
  if (task->work.tile >= 0) {
    const float highest = compute_raw<Way>(clips, tables, task[0]);
    if (schedule.lag > 0) publish(progress, task->work.clip, highest);
  } else {
    float* out = clips.out + clips.n_mels * task->clip.first_frame;
    normalize_part(progress, task->work, out, out, clips.n_mels * task->clip.frames);
  }
  if (schedule.lag > 0) leave(progress, schedule.clips);
}

using Kernel = void (*)(const Clips, const Schedule, const CudaTables);

template <int kMels>
Kernel unrolled_kernel(ClipsPath path) {
  return path == ClipsPath::kUnrolled ? clips_kernel<Unrolled<kMels, true>>
                                      : clips_kernel<Unrolled<kMels, false>>;
}

Kernel kernel_of(const Clips& clips) {
  const ClipsPath path = clips_path(clips);
  if (path == ClipsPath::kLoops) return clips_kernel<InLoops>;
  return clips.n_mels == 80 ? unrolled_kernel<80>(path) : unrolled_kernel<128>(path);
}

}  // namespace

Status which_cuda(std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties("logmel", &device); !status.ok()) return status;
  *name = "cuda/simt";
  return {};
}

Status unsupported_cuda() {
  return unsupported("logmel", "device", "cpu (on cuda clips and streams go in batches: logmel_batch.h)",
                     "cuda");
}

Status launch_clips(const Clips& clips) {
  cuda::Properties device;
  if (Status status = cuda::properties("logmel", &device); !status.ok()) return status;
  const Tables* tables = tables_for(clips.n_mels);
  if (tables == nullptr) return {StatusCode::kOutOfMemory, "[logmel] memory: expected some left, got none"};
  const Schedule schedule = schedule_of(clips.clips, clips.cu_frames, clips.frames, clips.normalized,
                                        kBlocksOfMultiprocessor * device.multiprocessors);
  const auto kernel = kernel_of(clips);
  return simt::launch({"logmel", "clips"}, kernel, dim3(static_cast<unsigned>(schedule.tickets())),
                      dim3(kThreads), kSharedBytes, clips.stream, clips, schedule, cuda_tables(*tables));
}

}  // namespace earnest::logmel
