// The operations of a step on a CUDA device: which kernel, with which arguments. All pointers in Table, Run and Finish
// are device memory; nothing waits for the device. ``format`` is one of Format; of Format::HALF gradients are float32 or
// bfloat16; where there is no displacement they are of usual_pair in kernels.h.
#pragma once

#include <cstdint>

#include "../table.h"
#include "driver.h"
#include "finish.h"

namespace sfplus {
namespace cuda {

// Slot i of partials, (n_partials, Sum::WIDTH), becomes ``weight`` times the sums over the chunks i, i + n_partials,
// ...; the sum of g e is 0 without with_e. Where finish has tickets the step's coefficients are made too: for the last
// reduce of a step in one process.
void reduce(const Table& table, int format, int param_dtype, int grad_dtype, bool with_e, double* partials,
            std::int64_t n_partials, double weight, const Finish& finish, const Queue& queue);

// As csrc/cpu/passes.h has it; finish.tickets is not used.
void finalize(const Finish& finish, const Queue& queue);

// Nothing is written on a skipped step. The rows are in device memory, so the caller says which buffers they have.
// Where finish has tickets, the step's coefficients, without any sums, are made first. Where each chunk of the table is a
// row, another kernel projects them.
void update(const Table& table, int format, int param_dtype, int grad_dtype, bool has_exp_avg, bool has_exp_avg_sq,
            bool has_displacement, const Finish& finish, const Queue& queue);

// move is one of Move.
void interpolate(const Table& table, int format, int param_dtype, const Run& run, int move, const Queue& queue);

}  // namespace cuda
}  // namespace sfplus
