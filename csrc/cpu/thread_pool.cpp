#include "thread_pool.h"

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace sfplus {
namespace {

// How long a thread looks for the next job without falling asleep, where one was announced. What the caller does
// between the passes of a step takes some 0.1 ms with a thousand tensors, 0.3 ms with ten thousand.
constexpr std::chrono::microseconds kAwake{500};

// What a processor wants to be told in a loop that waits.
void relax() {
#if defined(__GNUC__) && defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__GNUC__) && defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Job {
  const std::function<void(std::int64_t)>* task = nullptr;
  std::int64_t n_tasks = 0;
  bool more_follows = false;
  std::fenv_t arithmetic;  // the caller's, e.g. whether subnormals are flushed: all threads use it
  std::atomic<std::int64_t> next{0};

  void work() {
    for (;;) {
      const std::int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= n_tasks) return;
      (*task)(i);
    }
  }
};

class Pool {
 public:
  void run(std::int64_t n_tasks, int n_threads, const std::function<void(std::int64_t)>& task, bool more_follows) {
    const std::lock_guard<std::mutex> one_job(running);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; n_workers_ < n_threads - 1; ++n_workers_) {
        std::thread(&Pool::serve, this).detach();
      }
      job_.task = &task;
      job_.n_tasks = n_tasks;
      job_.more_follows = more_follows;
      std::fegetenv(&job_.arithmetic);
      job_.next.store(0, std::memory_order_relaxed);
      places_ = n_threads - 1;
      generation_.store(generation_ + 1, std::memory_order_release);
    }
    wake_.notify_all();
    job_.work();
    std::unique_lock<std::mutex> lock(mutex_);
    // Nobody waits for a worker that has not come: where other threads have the processors, that may be milliseconds.
    places_ = 0;
    done_.wait(lock, [this] { return busy_ == 0; });
  }

  std::mutex running;  // held during a job; fork waits for it

 private:
  void serve() {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (job_.more_follows && generation_ == seen) {
        lock.unlock();
        stay_awake(seen);
        lock.lock();
      }
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (places_ == 0) continue;
      --places_, ++busy_;
      lock.unlock();
      std::fesetenv(&job_.arithmetic);
      job_.work();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  // Until there is another job than the one that was seen, or kAwake is over.
  void stay_awake(std::uint64_t seen) const {
    const auto end = std::chrono::steady_clock::now() + kAwake;
    while (generation_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < end) relax();
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<std::uint64_t> generation_{0};  // of the job; changed with the mutex held
  int n_workers_ = 0;
  int places_ = 0;  // for workers that may still take part in the job
  int busy_ = 0;    // those that do
  Job job_;
};

// Never destroyed: its threads wait on its members until the process ends. A forked child has none of
// the threads, and a pool whose members may be in any state: it leaves that one alone and takes a new one.
Pool* pool = nullptr;

void make_pool() { pool = new Pool; }

Pool& the_pool() {
  static const bool once = [] {
    make_pool();
#ifndef _WIN32
    pthread_atfork([] { pool->running.lock(); }, [] { pool->running.unlock(); }, make_pool);
#endif
    return true;
  }();
  static_cast<void>(once);
  return *pool;
}

}  // namespace

void parallel_for(std::int64_t n_tasks, int n_threads, const std::function<void(std::int64_t)>& task,
                  bool more_follows) {
  if (n_threads > n_tasks) n_threads = static_cast<int>(n_tasks);
  if (n_threads <= 1) {
    for (std::int64_t i = 0; i < n_tasks; ++i) task(i);
    return;
  }
  the_pool().run(n_tasks, n_threads, task, more_follows);
}

}  // namespace sfplus
