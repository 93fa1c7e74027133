// The four operations of a step over the address table, on threads. ``format`` is one of Format in math/layout.h.
#pragma once

#include <cstdint>

#include "../math/layout.h"
#include "../table.h"
#include "kernels.h"

namespace sfplus {

// Slot i of partials, (n_partials, Sum::WIDTH), becomes the sums over the chunks i, i + n_partials, ...; the
// sum of g e is 0 without with_e.
void reduce(const Table& table, int format, int param_dtype, int grad_dtype, bool with_e, double* partials,
            std::int64_t n_partials, int n_threads);

// A step with a non-finite sum or loss, or a gamma or an omega above max_coefficient, is marked as skipped
// and advances nothing.
void finalize(const double* partials, std::int64_t n_partials, const std::int64_t* rows,
              std::int64_t n_rows, const Run& run, double max_coefficient);

// Nothing is written on a skipped step. The direction follows from the moments that the rows have: all rows of
// a table have the same.
void update(const Table& table, int format, int param_dtype, int grad_dtype, const Run& run, int n_threads);

// One Move of every tensor.
void interpolate(const Table& table, int format, int param_dtype, const Run& run, int move, int n_threads);

}  // namespace sfplus
