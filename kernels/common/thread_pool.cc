// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace earnest {
namespace {

thread_local bool inside_task = false;  // a mutex must not be tried again by the thread that holds it

// A thread looks again for about 50 microseconds before it sleeps: longer than the gap between two kernels of
// one layer, short beside a time slice. It does not yield its core while it looks: the scheduler would give
// it away for milliseconds.
constexpr int kSpins = 2500;

int cores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Leaves a core that the thread shares with another of the same job. Left alone, the scheduler keeps the two
// there for many jobs, as one of them is always about to sleep, and nothing runs in parallel.
void step_off(int core) {
#if defined(__linux__)
  if (sched_getcpu() != core) return;
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  others = allowed;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)core;
#endif
}

int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// A wait that spins briefly and then sleeps. The sleeper announces itself before it looks a last time, and
// the waker looks for sleepers after its change: both in sequential order, so one of them sees the other.
class Gate {
 public:
  template <typename Ready>
  void wait(const Ready& ready, int spins) {
    for (int i = 0; i < spins; ++i) {
      if (ready()) return;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    changed_.wait(lock, ready);
    --sleepers_;
  }

  // To be called after a sequentially consistent change of what `ready` reads.
  void wake(int most) {
    if (sleepers_.load() == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // a sleeper between its last look and its sleep comes first
    for (int i = std::min(most, sleepers_.load()); i > 0; --i) changed_.notify_one();
  }

 private:
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

// A job is handed out index by index from one counter. A worker takes a seat before it reads what the job is,
// and the caller, once the counter is drained, withdraws the seats left over and waits for the workers that
// sat down. So a worker that wakes too late costs nobody any time.
class ThreadPool {
 public:
  static ThreadPool& get() {
    static const int registered = pthread_atfork(nullptr, nullptr, &start_afresh);
    (void)registered;
    return *current().load(std::memory_order_acquire);
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
    for (; workers_ < helpers; ++workers_) std::thread([this] { work(); }).detach();
    task_ = &task;
    count_ = count;
    core_ = current_core();
    next_.store(0, std::memory_order_relaxed);
    left_.store(0, std::memory_order_relaxed);
    seats_.store(helpers);
    start_.wake(helpers);
    drain();
    const int seated = helpers - seats_.exchange(0);
    end_.wait([&] { return left_.load() == seated; }, spins());
  }

 private:
  static std::atomic<ThreadPool*>& current() {
    // Never destroyed: a worker may outlive static destructors.
    static std::atomic<ThreadPool*> pool{new ThreadPool};
    return pool;
  }

  // A forked child has none of its parent's threads, so it gets a pool of its own.
  static void start_afresh() {
    auto* fresh = new ThreadPool;
    fresh->threads_ = current().load()->threads_.load();
    current() = fresh;
  }

  // Where threads share cores, spinning would keep another one from its work.
  int spins() const { return threads_ <= cores_ ? kSpins : 0; }

  void drain() {
    const std::function<void(int64_t)>& task = *task_;
    const int64_t count = count_;
    inside_task = true;
    for (int64_t i = next_.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      task(i);
    }
    inside_task = false;
  }

  void work() {
    for (;;) {
      start_.wait([this] { return seats_.load() > 0; }, spins());
      int seats = seats_.load();
      while (seats > 0 && !seats_.compare_exchange_weak(seats, seats - 1)) {
      }
      if (seats <= 0) continue;
      step_off(core_);
      drain();
      left_.fetch_add(1);
      end_.wake(1);
    }
  }

  const int cores_ = cores();
  std::atomic<int> threads_{cores_};
  std::mutex entry_;  // held for a whole job: one job at a time
  int workers_ = 0;
  const std::function<void(int64_t)>* task_ = nullptr;
  int64_t count_ = 0;
  int core_ = -1;  // the caller's
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> seats_{0};  // how many more workers may join the job
  alignas(64) std::atomic<int> left_{0};   // how many have joined and left it
  alignas(64) Gate start_;
  alignas(64) Gate end_;
};

}  // namespace

void set_num_threads(int threads) { ThreadPool::get().set_num_threads(threads); }
int num_threads() { return ThreadPool::get().num_threads(); }
void parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
  ThreadPool::get().parallel_for(count, task);
}

}  // namespace earnest
