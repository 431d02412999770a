// SPDX-License-Identifier: Apache-2.0
// Lists what kernels are launched with, for the record of what they take of a multiprocessor
// (.ci/cuda_launches.py): in the file that the environment's EARNEST_LAUNCHES names, a line for each way that
// is new to the process, "PROGRAM OFFSET THREADS BYTES". A kernel is told by where it lies in the program,
// whose symbols have its whole name.
#include <dlfcn.h>

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <tuple>

#include "kernels/common/simt_emulator.h"

namespace earnest::simt::emulator {

void list(const Grid& grid) {
  static const char* const file = std::getenv("EARNEST_LAUNCHES");
  if (file == nullptr) return;
  static std::mutex mutex;
  static std::set<std::tuple<const void*, uint64_t, size_t>> listed;
  const uint64_t threads = uint64_t{grid.block.x} * grid.block.y * grid.block.z;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!listed.insert({grid.kernel, threads, grid.shared_bytes}).second) return;
  Dl_info place;
  if (dladdr(grid.kernel, &place) == 0) return;
  std::ostringstream line;  // written at once: other programs append to the file, too
  line << place.dli_fname << ' '
       << static_cast<const char*>(grid.kernel) - static_cast<const char*>(place.dli_fbase) << ' ' << threads
       << ' ' << grid.shared_bytes << '\n';
  std::ofstream(file, std::ios::app) << line.str();
}

}  // namespace earnest::simt::emulator
