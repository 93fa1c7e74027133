// What the machine's memory can do for a pass: its arrays read and written, with nothing to compute.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace sfplus {

// Tensors side by side, of one number of elements each.
struct StreamPart {
  std::vector<StreamArray> arrays;
  std::int64_t numel;
};

// A loop over parts, all of as many arrays, of which the first n_changed are written. Blocks of 64 elements; fewer at the
// end of a part are left alone. What there is to prepare is done when it is made: a run is its memory's time.
class MemoryLoop {
 public:
  MemoryLoop(std::vector<StreamPart> parts, int n_changed);
  MemoryLoop(const MemoryLoop&) = delete;  // pieces point into its parts
  MemoryLoop& operator=(const MemoryLoop&) = delete;

  // Writes what it has read, or where it flips that with all bits turned; the exclusive or of what is only read.
  std::uint32_t run(bool backwards, bool flips, int n_threads) const;

 private:
  struct Piece {
    const StreamPart* part;
    std::int64_t start, numel;
  };

  std::uint32_t run_task(std::size_t task, std::uint32_t flipped, std::int64_t ahead) const;

  std::vector<StreamPart> parts_;
  std::vector<Piece> pieces_;
  std::vector<std::size_t> tasks_;  // the first piece of each, and the end
  int n_changed_;
};

}  // namespace sfplus
