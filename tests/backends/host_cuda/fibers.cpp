// Blocks of threads on one thread of the host. A fiber runs one thread after another until one of them waits
// at a barrier; then the next fiber goes on, and returns to the waiting ones when no thread is left to begin.
#include "fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include "device.h"


namespace host_cuda {

Index thread_index, block_index, grid_size;

namespace {

constexpr std::size_t kStack = 64 * 1024;
constexpr unsigned kMaxThreads = 1024, kWarp = 32;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf place;
  unsigned thread = 0;
  bool entered = false;  // has run before, so that place is valid
  bool working = false;  // in the middle of a thread
};

struct Barrier {
  unsigned arrived = 0, generation = 0;
  bool vote = false, result = false;
};

struct Block {
  const std::function<void()>* thread;
  unsigned n_threads, next;
  Barrier all, warps[kMaxThreads / kWarp], parts[kMaxThreads];  // of a part by its first thread
  bool progress;
  std::string problem;
} block;

std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* current;
jmp_buf scheduler;
double slots[kMaxThreads];
std::vector<uint4> given;  // and behind it kGuard words that nobody may write
constexpr std::size_t kGuard = 64;

void pause() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    while (block.next < block.n_threads) {
      const unsigned number = block.next++;
      current->thread = settings().reverse ? block.n_threads - 1 - number : number;
      current->working = true;
      thread_index.x = current->thread;
      try {
        (*block.thread)();
      } catch (const std::exception& error) {
        block.problem = error.what();
      }
      current->working = false;
      block.progress = true;
    }
    pause();
  }
}

void resume(Fiber& fiber) {
  current = &fiber;
  thread_index.x = fiber.thread;
  if (_setjmp(scheduler) == 0) {
    if (fiber.entered) _longjmp(fiber.place, 1);
    fiber.entered = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
  }
}

bool wait(Barrier& barrier, unsigned expected, bool vote) {
  barrier.vote = barrier.vote || vote;
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.result = barrier.vote;
    barrier.arrived = 0;
    barrier.vote = false;
    ++barrier.generation;
    block.progress = true;
  } else {
    while (barrier.generation == generation) pause();
  }
  return barrier.result;
}

void run_block() {
  for (std::size_t started = 0; block.next < block.n_threads; ++started) {
    if (started == fibers.size()) fibers.push_back(std::make_unique<Fiber>());
    resume(*fibers[started]);
  }
  for (bool waiting = true; waiting;) {
    waiting = false;
    block.progress = false;
    for (const auto& fiber : fibers) {
      if (!fiber->working) continue;
      resume(*fiber);
      waiting = waiting || fiber->working;
    }
    if (waiting && !block.progress) {  // the fibers' stacks are given up with them
      fibers.clear();
      throw std::runtime_error("some threads wait at a barrier that others never reach");
    }
  }
}

}  // namespace

Settings& settings() {
  static Settings settings;
  return settings;
}

std::string run(unsigned n_blocks, unsigned n_threads, unsigned shared_bytes, const std::function<void()>& thread) {
  if (n_threads > kMaxThreads || n_threads % kWarp != 0) return "so many threads do not make a block";
  grid_size.x = n_blocks;
  for (unsigned i = 0; i < n_blocks; ++i) {
    block_index.x = i;
    given.assign(shared_bytes / sizeof(uint4) + kGuard, uint4{~0u, ~0u, ~0u, ~0u});
    block = Block{&thread, n_threads, 0, {}, {}, {}, false, ""};
    try {
      run_block();
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    if (!block.problem.empty()) return block.problem;
    const bool kept = std::all_of(given.end() - kGuard, given.end(), [](uint4 word) { return word.x == ~0u; });
    if (!kept) return "a write beyond the shared memory that the launch gave";
  }
  return "";
}

void* given_memory() { return given.data(); }

bool block_barrier(bool vote) { return wait(block.all, block.n_threads, vote); }

bool warp_barrier(bool vote) { return wait(block.warps[thread_index.x / kWarp], kWarp, vote); }

void barrier_of(unsigned mask) {
  const unsigned lane = thread_index.x % kWarp;
  if ((mask >> lane & 1) == 0) throw std::runtime_error("a thread is not in its own mask");
  const unsigned first = static_cast<unsigned>(__builtin_ctz(mask)), n = static_cast<unsigned>(__builtin_popcount(mask));
  wait(block.parts[thread_index.x - lane + first], n, false);
}

double& shuffle_slot(unsigned thread) { return slots[thread]; }

void access(bool is_store, std::size_t bytes, const void* address) {
  ++settings().accesses[{is_store, static_cast<int>(bytes)}];
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    throw std::runtime_error("misaligned access of " + std::to_string(bytes) + " bytes");
  }
}

}  // namespace host_cuda
