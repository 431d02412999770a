// SPDX-License-Identifier: Apache-2.0
// One pool of threads for all CPU kernels. Results never depend on how many threads there are: a task is a
// whole unit of output, and no two tasks add into the same number.
#pragma once

#include <cstdint>
#include <functional>

namespace earnest {

// How many threads parallel_for may use, the caller's included. Default: the number of cores.
void set_num_threads(int threads);
int num_threads();

// Calls task(i) once for each i in [0, count), in any order, on up to num_threads() threads, and returns when
// all are done. Nested or concurrent calls run on the calling thread alone, so that they can neither deadlock
// nor oversubscribe. task must not throw.
void parallel_for(int64_t count, const std::function<void(int64_t)>& task);

}  // namespace earnest
