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

// What a block is to do, and where its clip lies.
struct Task {
  Work work;
  ClipPlace clip;
};

// The first hops of the samples from `start` on, all of them in the clip.
__device__ void load_inside(const float* pcm, int hops, simt::Shared<float> samples, FaultWord* fault,
                            int64_t origin) {
  const int lane = lane_index();
  for (int hop = warp_index(); hop < hops; hop += kWarpsOfTile) {
    float x[kFloatsOfHop];
    bool fine = true;
#pragma unroll
    for (int i = 0; i < kFloatsOfHop; ++i) x[i] = pcm[kHop * hop + simt::kWarpSize * i + lane];
#pragma unroll
    for (int i = 0; i < kFloatsOfHop; ++i) {
      fine &= fabsf(x[i]) <= kMaxMagnitude;
      samples[kHopStride * hop + simt::kWarpSize * i + lane] = x[i];
    }
    if (fine) continue;
#pragma unroll 1
    for (int i = 0; i < kFloatsOfHop; ++i)
      check_sample(fault, origin + kHop * hop + simt::kWarpSize * i + lane,
                   pcm[kHop * hop + simt::kWarpSize * i + lane]);
  }
}

// The same where frames reach beyond the clip.
__device__ void load_edge(const Signal& signal, int64_t start, int hops, simt::Shared<float> samples,
                          FaultWord* fault, int64_t origin) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kHop * hops; i += kThreads) {
    const float x = signal.at(start + i);
    if (start + i >= 0 && start + i < signal.samples) check_sample(fault, origin + start + i, x);
    samples[i + i / kHop * (kHopStride - kHop)] = x;
  }
}

// Raw features of the tile's frames, none to 32. Returns the largest that the thread has written, -10 if
// none.
template <typename Way>
__device__ float compute_raw(const Clips& clips, const CudaTables& tables, const Task& task) {
  const auto samples = simt::dynamic_shared<float>(kSamplesOffset, kHopsOfTile * kHopStride);
  const ClipPlace& clip = task.clip;
  const float* pcm = clips.pcm + clip.first_sample;
  const int64_t begin = task.work.tile * kFramesOfTile, left = clip.frames - begin;
  const int count = left < kFramesOfTile ? static_cast<int>(left) : kFramesOfTile;
  const int hops = count > 0 ? count + 2 : 0;
  const int64_t start = kHop * begin - kWindow / 2, end = start + kHop * hops;
  if (start >= 0 && end <= clip.samples) {
    load_inside(pcm + start, hops, samples, clips.fault, clip.first_sample + start);
  } else {
    const Signal signal{pcm, 0, clip.samples, clip.samples + appended_zeros(clips.padding)};
    load_edge(signal, start, hops, samples, clips.fault, clip.first_sample);
  }
  if (left <= kFramesOfTile && (count > 0 || task.work.tile == 0)) {  // what no frame reaches is checked, too
#pragma unroll 1
    for (int64_t i = (count > 0 ? end : 0) + threadIdx.x; i < clip.samples; i += kThreads)
      check_sample(clips.fault, clip.first_sample + i, pcm[i]);
  }
  if (count <= 0) return -10.0f;
  __syncthreads();
  const int lane = lane_index(), frame = lane < count ? lane : count - 1;
  float* out = clips.out + clips.n_mels * clip.first_frame + begin + lane;
  return compute_tile<Way>(tables, samples, kHopStride * frame, {lane < count ? out : nullptr, clip.frames});
}

template <typename Way>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    clips_kernel(const Clips clips, const Schedule schedule, const CudaTables tables) {
  EARNEST_SHARED(Task, task, 1);
  Progress* progress = static_cast<Progress*>(clips.workspace);
  if (warp_index() == 0) {
    const Work work = next_work(schedule, progress);
    if (lane_index() == 0) task[0] = {work, place_of(clips, work.clip)};
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
