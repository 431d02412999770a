// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace earnest {
namespace {

thread_local bool inside_task = false;  // a mutex must not be tried again by the thread that holds it

// A job is handed out index by index from one counter; workers sleep between jobs. A job is over when the
// caller has drained the counter and every worker that joined it has left.
class ThreadPool {
 public:
  static ThreadPool& get() {
    // Never destroyed: a worker may outlive static destructors. A forked child has none of the parent's
    // threads, so it gets a pool of its own.
    static std::atomic<ThreadPool*> pool{new ThreadPool};
    ThreadPool* current = pool.load();
    if (current->owner_ != getpid()) {
      auto* fresh = new ThreadPool;
      fresh->threads_ = current->threads_.load();
      if (!pool.compare_exchange_strong(current, fresh)) delete fresh;
    }
    return *pool.load();
  }

  void set_num_threads(int threads) { threads_ = std::max(1, threads); }
  int num_threads() const { return threads_; }

  void parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
    const int helpers = static_cast<int>(std::min<int64_t>(threads_ - 1, count - 1));
    if (helpers <= 0 || inside_task || !entry_.try_lock()) {
      for (int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    std::lock_guard<std::mutex> entry(entry_, std::adopt_lock);
    while (static_cast<int>(workers_.size()) < helpers) {
      workers_.emplace_back([this, rank = static_cast<int>(workers_.size())] { work(rank); });
      workers_.back().detach();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      next_ = 0;
      invited_ = helpers;
      ++job_;
    }
    wake_.notify_all();
    drain(task, count);
    std::unique_lock<std::mutex> lock(mutex_);
    invited_ = 0;  // a worker that has not woken yet finds nothing to do
    done_.wait(lock, [this] { return active_ == 0; });
    task_ = nullptr;
  }

 private:
  void drain(const std::function<void(int64_t)>& task, int64_t count) {
    inside_task = true;
    for (int64_t i = next_.fetch_add(1); i < count; i = next_.fetch_add(1)) task(i);
    inside_task = false;
  }

  void work(int rank) {
    int64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != seen; });
      seen = job_;
      if (rank >= invited_ || task_ == nullptr) continue;
      ++active_;
      const auto* task = task_;
      const int64_t count = count_;
      lock.unlock();
      drain(*task, count);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  const pid_t owner_ = getpid();
  std::atomic<int> threads_{std::max(1, static_cast<int>(std::thread::hardware_concurrency()))};
  std::mutex entry_;  // held for a whole job: one job at a time
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int64_t)>* task_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  int64_t job_ = 0;
  int invited_ = 0;
  int active_ = 0;
};

}  // namespace

void set_num_threads(int threads) { ThreadPool::get().set_num_threads(threads); }
int num_threads() { return ThreadPool::get().num_threads(); }
void parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
  ThreadPool::get().parallel_for(count, task);
}

}  // namespace earnest
