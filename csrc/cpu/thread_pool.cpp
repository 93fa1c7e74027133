#include "thread_pool.h"

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace sfplus {
namespace {

struct Job {
  const std::function<void(std::int64_t)>* task = nullptr;
  std::int64_t n_tasks = 0;
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
  void run(std::int64_t n_tasks, int n_threads, const std::function<void(std::int64_t)>& task) {
    const std::lock_guard<std::mutex> one_job(running);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; n_workers_ < n_threads - 1; ++n_workers_) {
        std::thread(&Pool::serve, this, n_workers_).detach();
      }
      job_.task = &task;
      job_.n_tasks = n_tasks;
      std::fegetenv(&job_.arithmetic);
      job_.next.store(0, std::memory_order_relaxed);
      wanted_ = busy_ = n_threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    job_.work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

  std::mutex running;  // held during a job; fork waits for it

 private:
  void serve(int number) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (number >= wanted_) continue;
      lock.unlock();
      std::fesetenv(&job_.arithmetic);
      job_.work();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::uint64_t generation_ = 0;
  int n_workers_ = 0;
  int wanted_ = 0;  // workers that take part in the job
  int busy_ = 0;    // of these, the ones not yet done
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

void parallel_for(std::int64_t n_tasks, int n_threads, const std::function<void(std::int64_t)>& task) {
  if (n_threads > n_tasks) n_threads = static_cast<int>(n_tasks);
  if (n_threads <= 1) {
    for (std::int64_t i = 0; i < n_tasks; ++i) task(i);
    return;
  }
  the_pool().run(n_tasks, n_threads, task);
}

}  // namespace sfplus
