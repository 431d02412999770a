// SPDX-License-Identifier: Apache-2.0
// The choice among CUDA's paths, for chips that are not here: a function of what the device is, what the call
// asks for and has, what the environment forces, and which paths a GPU has run.
#include <cstdlib>
#include <string>

#include "kernels/common/cuda_path.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest;
using cuda::PathRequest;
using cuda::Properties;

constexpr CudaPath kBest = CudaPath::kBest, kSm80 = CudaPath::kSm80, kSm90a = CudaPath::kSm90a;

Properties chip(int major, int minor) {
  Properties device;
  device.major = major, device.minor = minor;
  device.runs_sm90a = major == 9 && minor == 0;
  return device;
}

// "sm80" or "sm90a", or what is said instead.
std::string choice(const Properties& device, const PathRequest& request, CudaPath forced, CudaPath last_met) {
  CudaPath path = kBest;
  const Status status = choose_path("op", device, request, forced, &path, last_met);
  return status.ok() ? name_of(path) : status.message();
}

const PathRequest kAny, kAsks80 = {.asked = kSm80}, kAsks90 = {.asked = kSm90a},
                        kFloat32 = {.highest = kSm80}, kRowsOf5 = {.beyond_sm90a = "rows of 5"};

}  // namespace

TEST(what_no_gpu_has_run_is_no_choice) {
  for (const Properties& device : {chip(8, 0), chip(8, 6), chip(8, 9), chip(9, 0), chip(10, 0), chip(12, 1)})
    CHECK(choice(device, kAny, kBest, kSm80) == "sm80");
}

TEST(once_a_gpu_has_run_sm90a_it_is_the_choice_on_9_0_and_nowhere_else) {
  CHECK(choice(chip(9, 0), kAny, kBest, kSm90a) == "sm90a");
  for (const Properties& device : {chip(8, 0), chip(8, 9), chip(9, 1), chip(10, 0), chip(12, 0)})
    CHECK(choice(device, kAny, kBest, kSm90a) == "sm80");
  CHECK(choice(chip(9, 0), kRowsOf5, kBest, kSm90a) == "sm80");
  CHECK(choice(chip(9, 0), kFloat32, kBest, kSm90a) == "sm80");
}

TEST(the_emulator_takes_it_by_name_alone) {
  Properties emulator = chip(8, 0);
  emulator.runs_sm90a = true;
  CHECK(choice(emulator, kAny, kBest, kSm90a) == "sm80");
  CHECK(choice(emulator, kAsks90, kBest, kSm80) == "sm90a" &&
        choice(emulator, kAny, kSm90a, kSm80) == "sm90a");
}

TEST(the_call_goes_before_the_environment_and_that_before_the_choice) {
  const Properties hopper = chip(9, 0);
  for (const CudaPath met : {kSm80, kSm90a}) {
    CHECK(choice(hopper, kAny, kSm90a, met) == "sm90a" && choice(hopper, kAny, kSm80, met) == "sm80");
    for (const CudaPath forced : {kBest, kSm80, kSm90a}) {
      CHECK(choice(hopper, kAsks90, forced, met) == "sm90a" &&
            choice(hopper, kAsks80, forced, met) == "sm80");
      CHECK(choice(chip(8, 6), kAsks80, forced, met) == "sm80");
    }
  }
}

TEST(a_path_that_cannot_run_is_an_error_and_never_another_path) {
  CHECK(choice(chip(8, 6), kAsks90, kBest, kSm80) ==
        "[op] path: expected sm90a on compute capability 9.0, got compute capability 8.6");
  CHECK(choice(chip(10, 0), kAny, kSm90a, kSm90a) ==
        "[op] EARNEST_CUDA_TIER: expected sm90a on compute capability 9.0, got compute capability 10.0");
  CHECK(choice(chip(9, 0), {kSm90a, kSm90a, "rows of 5"}, kBest, kSm90a) ==
        "[op] path: expected sm80 for rows of 5, got sm90a");
  CHECK(choice(chip(9, 0), kRowsOf5, kSm90a, kSm80) ==
        "[op] EARNEST_CUDA_TIER: expected sm80 for rows of 5, got sm90a");
  CHECK(choice(chip(9, 0), kRowsOf5, kSm80, kSm80) == "sm80");
  CHECK(choice(chip(9, 0), {kSm80, kSm90a, "rows of 5"}, kSm90a, kSm80) == "sm80");

  CudaPath path;  // torch's operators stand in where something is not supported, but not for what is forced
  CHECK(choose_path("op", chip(8, 6), kAsks90, kBest, &path).code() == StatusCode::kUnsupported);
  CHECK(choose_path("op", chip(8, 6), kAny, kSm90a, &path).code() == StatusCode::kInvalidArgument);
}

TEST(a_type_goes_by_the_highest_path_that_has_code_for_it_unless_the_call_asks) {
  CHECK(choice(chip(9, 0), kFloat32, kSm90a, kSm80) == "sm80");
  CHECK(choice(chip(9, 0), {kBest, kSm80, "rows of 5"}, kSm90a, kSm80) == "sm80");
  CHECK(choice(chip(9, 0), {kSm90a, kSm80, nullptr}, kBest, kSm90a) ==
        "[op] path: expected sm80 for this type, got sm90a");
  CHECK(choice(chip(8, 0), kFloat32, kSm90a, kSm80) ==
        "[op] EARNEST_CUDA_TIER: expected sm90a on compute capability 9.0, got compute capability 8.0");
}

TEST(a_tier_is_forced_by_the_environment_and_before_it_for_the_process) {
  const std::string wrong = "[cuda_tier] EARNEST_CUDA_TIER: expected sm80 or sm90a, got 'sm70'";
  setenv("EARNEST_CUDA_TIER", "sm70", 1);
  CudaPath path = kBest;
  CHECK(forced_cuda_tier(&path).message() == wrong);
  CHECK(cuda::choose_path("op", kAny, &path).message() == wrong);
  CHECK(force_cuda_tier("sm90a").ok() && forced_cuda_tier(&path).ok() && path == kSm90a);
  CHECK(force_cuda_tier("sm80").ok() && forced_cuda_tier(&path).ok() && path == kSm80);
  CHECK(force_cuda_tier("best").message() ==
        "[cuda_tier] EARNEST_CUDA_TIER: expected sm80 or sm90a, got 'best'");
  CHECK(forced_cuda_tier(&path).ok() && path == kSm80);
  CHECK(force_cuda_tier("").ok() && forced_cuda_tier(&path).message() == wrong);
}
