// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/place.h"

#include <charconv>
#include <string_view>
#include <system_error>

#include "csrc/engine/guard.h"
#include "kernels/common/cuda.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "engine";
constexpr std::string_view kCuda = "cuda", kNumbered = "cuda:";

}  // namespace

std::string name_of(const Place& place) {
  std::string name = earnest::name_of(place.device);
  if (place.gpu != 0) name.append(":").append(std::to_string(place.gpu));
  return name;
}

Status read_place(const std::string& name, Place* place) {
  if (name == "cpu" || name == kCuda) {
    *place = name == kCuda ? Device::kCuda : Device::kCpu;
    return {};
  }
  if (name.starts_with(kNumbered)) {
    const char *first = name.data() + kNumbered.size(), *last = name.data() + name.size();
    int gpu = 0;
    const auto [end, error] = std::from_chars(first, last, gpu);
    if (error == std::errc() && end == last && *first != '-') {
      *place = {Device::kCuda, gpu};
      return {};
    }
  }
  return invalid_argument(kOp, "device", "cpu, cuda or cuda:N", name);
}

Status check_place(const Place& place) {
  if (place.device == Device::kCpu) return {};
  int count = 0;
  EARNEST_RETURN_IF_ERROR(cuda::device_count(kOp, &count));
  if (place.gpu < 0 || place.gpu >= count) {
    std::string there = "cuda:0";
    if (count > 1) there.append(" to cuda:").append(std::to_string(count - 1));
    there.append(count == 1 ? " (there is 1 GPU)" : " (there are " + std::to_string(count) + " GPUs)");
    return unsupported(kOp, "device", there, std::string(kNumbered).append(std::to_string(place.gpu)));
  }
  const CurrentPlace current(place);
  EARNEST_RETURN_IF_ERROR(current.status());
  cuda::Properties found;
  return cuda::properties(kOp, &found);
}

CurrentPlace::CurrentPlace(const Place& place) {
  if (place.device == Device::kCpu) return;
  status_ = current_gpu(&before_);
  if (!status_.ok() || before_ == place.gpu) return;
  status_ = cuda::set_device(kOp, place.gpu);
  moved_ = status_.ok();
}

CurrentPlace::~CurrentPlace() {
  if (moved_) (void)cuda::set_device(kOp, before_);
}

Status current_gpu(int* gpu) { return cuda::current_device(kOp, gpu); }

}  // namespace earnest::engine
