// Who does what. Every warp takes whole chunks of the table, whatever the size of the tensors: a chunk of a
// large one keeps it busy for long, and thousands of small ones are spread over as many warps.
#pragma once

#include <cstdint>

#include "../math/layout.h"
#include "../table.h"
#include "memory.cuh"
#include "threads.h"

namespace sfplus {
namespace cuda {

// Elements of a tensor that a thread accesses at once: 16 bytes of state, and as many elements of all else.
template <class Stored>
constexpr int kPack = 16 / static_cast<int>(sizeof(Stored));

// One chunk of the table: which tensor, where in it, how many elements.
struct Piece {
  const std::int64_t* columns;
  std::int64_t row, start;
  int numel;

  // The tensor of a column, from the piece's first element on.
  template <class Stored>
  __device__ __forceinline__ Stored* at(int column) const {
    return reinterpret_cast<Stored*>(columns[column]) + start;
  }
};

__device__ __forceinline__ Piece piece_of(const Table& table, std::int64_t index) {
  const std::int64_t* chunk = table.chunks + index * Chunk::WIDTH;
  const std::int64_t row = chunk[Chunk::ROW], start = chunk[Chunk::START];
  const std::int64_t* columns = table.rows + row * Row::WIDTH;
  if (table.chunk_size == 0) return {columns, row, start, static_cast<int>(columns[Row::ROW_LENGTH])};
  const std::int64_t left = columns[Row::NUMEL] - start;
  return {columns, row, start, static_cast<int>(left < table.chunk_size ? left : table.chunk_size)};
}

template <int n>
struct Count {
  static constexpr int value = n;
};

// Calls body(Count<n>, Count<turns>, offset) so that all elements of a piece are met once by the warp: a call
// is for n elements at offset, and for turns - 1 times as many at distances of 32 n, of which the loads do
// not wait for one another. n is 1 for the last few elements, and for all of them where vectors is false.
template <int n, int turns, class Body>
__device__ __forceinline__ void share_out(int numel, bool vectors, int lane, const Body& body) {
  constexpr int kStride = kLanes * n;
  const int whole = vectors ? numel / n * n : 0;
  int offset = lane * n;
#pragma unroll 1  // turns are what is meant to overlap: more would cost registers
  for (; offset + (turns - 1) * kStride < whole; offset += turns * kStride) {
    body(Count<n>{}, Count<turns>{}, offset);
  }
  if (turns > 1) {
#pragma unroll 1
    for (; offset < whole; offset += kStride) body(Count<n>{}, Count<1>{}, offset);
  }
#pragma unroll 1
  for (int i = whole + lane; i < numel; i += kLanes) body(Count<1>{}, Count<1>{}, i);
}

}  // namespace cuda
}  // namespace sfplus
