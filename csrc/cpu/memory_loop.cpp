#include "memory_loop.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "dispatch.h"
#include "thread_pool.h"

namespace sfplus {
namespace {

// Elements of a task of one thread, about: part of a large tensor, or many small ones.
constexpr std::int64_t kTask = 1 << 18;
// As in the passes, the beginning of the tensor a few places behind this one is asked for.
constexpr std::size_t kPiecesAhead = 4;

}  // namespace

MemoryLoop::MemoryLoop(std::vector<StreamPart> parts, int n_changed) : parts_(std::move(parts)), n_changed_(n_changed) {
  std::int64_t in_task = kTask;
  for (const StreamPart& part : parts_) {
    for (std::int64_t start = 0; start < part.numel; start += kTask) {
      const std::int64_t numel = std::min(kTask, part.numel - start);
      if (in_task >= kTask) {
        tasks_.push_back(pieces_.size());
        in_task = 0;
      }
      pieces_.push_back({&part, start, numel});
      in_task += numel;
    }
  }
  tasks_.push_back(pieces_.size());
}

std::uint32_t MemoryLoop::run_task(std::size_t task, std::uint32_t flipped, std::int64_t ahead) const {
  std::uint32_t found = 0;
  const std::size_t end = tasks_[task + 1];
  for (std::size_t i = tasks_[task]; i < end; ++i) {
#ifdef __GNUC__
    if (i + kPiecesAhead < end) {
      for (const StreamArray& array : pieces_[i + kPiecesAhead].part->arrays) __builtin_prefetch(array.at);
    }
#endif
    const Piece& piece = pieces_[i];
    const std::vector<StreamArray>& arrays = piece.part->arrays;
    found ^= kernels().stream(arrays.data(), static_cast<int>(arrays.size()), n_changed_, piece.start, piece.numel, flipped,
                              ahead);
  }
  return found;
}

std::uint32_t MemoryLoop::run(bool backwards, bool flips, int n_threads) const {
  // where memory has other users too, and answers late, this is quicker for narrow arrays than what the passes do
  const std::int64_t ahead = backwards ? 2048 : 0;
  const std::size_t n_tasks = tasks_.size() - 1;
  std::atomic<std::uint32_t> found{0};
  parallel_for(static_cast<std::int64_t>(n_tasks), n_threads, [&](std::int64_t i) {
    const auto task = static_cast<std::size_t>(i);
    found ^= run_task(backwards ? n_tasks - 1 - task : task, flips ? ~std::uint32_t{0} : 0, ahead);
  });
  return found;
}

}  // namespace sfplus
