// SPDX-License-Identifier: Apache-2.0
// The normaliser alone, for frames that came from streams, in the blocks of a batch of clips (schedule.h).
#include "kernels/common/cuda.h"
#include "kernels/logmel/logmel_cuda.h"
#include "kernels/logmel/normalize_device.h"

namespace earnest::logmel {
namespace {

__global__ void __launch_bounds__(kThreads)
    normalize_kernel(const Normalization call, const Schedule schedule) {
  EARNEST_SHARED(Work, shared, 1);
  Progress* progress = static_cast<Progress*>(call.workspace);
  if (warp_index() == 0) {
    const Work work = next_work(schedule, progress);
    if (lane_index() == 0) shared[0] = work;
  }
  __syncthreads();
  const Work work = shared[0];
  const int64_t c = work.clip;
  const int64_t first = call.cu_frames == nullptr ? c * schedule.frames_each : call.cu_frames[c];
  const int64_t frames = call.cu_frames == nullptr ? schedule.frames_each : call.cu_frames[c + 1] - first;
  const int64_t origin = call.n_mels * first, count = call.n_mels * frames;
  if (work.tile >= 0) {
    const int64_t each = kFramesOfTile * call.n_mels, begin = each * work.tile;
    const int64_t end = begin + each < count ? begin + each : count;
    float highest = -INFINITY;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
      highest = fmaxf(highest, call.raw[origin + i]);
    publish(progress, c, highest);
  } else {
    normalize_part(progress, work, call.raw + origin, call.out + origin, count);
  }
  leave(progress, schedule.clips);
}

}  // namespace

Status launch_normalize(const Normalization& call) {
  cuda::Properties device;
  if (Status status = cuda::properties("logmel", &device); !status.ok()) return status;
  const Schedule schedule = schedule_of(call.clips, call.cu_frames, call.frames, true,
                                        kBlocksOfMultiprocessor * device.multiprocessors);
  return simt::launch({"logmel", "normalize"}, normalize_kernel,
                      dim3(static_cast<unsigned>(schedule.tickets())), dim3(kThreads), 0, call.stream, call,
                      schedule);
}

}  // namespace earnest::logmel
