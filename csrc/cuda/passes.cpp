#include "passes.h"

#include "drift.h"
#include "kernels.h"
#include "threads.h"

namespace sfplus {
namespace cuda {
namespace {

// Tensors that one block counts the steps of, in turns, in less time than another kernel takes to begin.
constexpr std::int64_t kManyTensors = 4096;

std::int64_t blocks_for(std::int64_t n, int n_per_block) { return (n + n_per_block - 1) / n_per_block; }

// In front of finalize_tensors, where that is needed.
Finish groups_of(const Finish& finish) {
  Finish groups = finish;
  if (finish.n_rows > kManyTensors) groups.n_rows = 0;
  return groups;
}

void finish_many_tensors(Finish finish, const Queue& queue) {
  if (finish.n_rows <= kManyTensors) return;
  void* arguments[] = {&finish};
  launch(kFinalizeTensors, queue, blocks_for(finish.n_rows, kThreads), arguments, true);
}

}  // namespace

void reduce(const Table& table, int format, int param_dtype, int grad_dtype, bool with_e, double* partials,
            std::int64_t n_partials, double weight, const Finish& finish, const Queue& queue) {
  Table own = table;
  Finish groups = groups_of(finish);
  void* arguments[] = {&own, &partials, &n_partials, &weight, &groups};
  const int state_dtype = param_dtype == DType::FLOAT64 ? 0 : 1;
  const bool half = with_e && format != Format::FULL;
  launch(half ? kReduceHalf + half_type(grad_dtype)
              : kReduce + ((with_e ? 2 : 0) + state_dtype) * DType::WIDTH + grad_dtype,
         queue, n_partials, arguments, false);
  if (finish.tickets != nullptr) finish_many_tensors(finish, queue);
}

void finalize(const Finish& finish, const Queue& queue) {
  Finish groups = groups_of(finish);
  void* arguments[] = {&groups};
  launch(kFinalize, queue, 1, arguments, false);
  finish_many_tensors(finish, queue);
}

void update(const Table& table, int format, int param_dtype, int grad_dtype, bool has_exp_avg, bool has_exp_avg_sq,
            bool has_displacement, const Finish& finish, const Queue& queue) {
  Table own = table;
  Finish given = finish;
  // while somebody monitors, coefficients are a kernel's of their own: so many sums more would be too much for one that
  // has them to make
  const bool whole = finish.tickets != nullptr && finish.n_rows <= kManyTensors && format == Format::FULL &&
                     has_displacement && table.drift == nullptr && is_usual_pair(param_dtype, grad_dtype);
  if (finish.tickets != nullptr && !whole) finalize(finish, queue);
  const int direction = static_cast<int>(direction_of(has_exp_avg, has_exp_avg_sq, has_displacement));
  void* arguments[] = {&own, &given};
  const int half = (direction * kHalfTypes + half_type(param_dtype)) * kHalfTypes + half_type(grad_dtype);
  const int quarter = half - (direction == 2 ? kHalfTypes : 0);  // there is no float32 parameter without moments
  const int full = (direction * DType::WIDTH + param_dtype) * DType::WIDTH + grad_dtype;
  const int plain = (direction - kAveragingDirections) * kUsualPairs + usual_pair(param_dtype, grad_dtype);
  const int plain_of_format =
      format == Format::QUARTER ? kUpdatePlainQuarter + plain_half(direction, param_dtype, grad_dtype)
      : format == Format::HALF  ? kUpdatePlainHalf + plain_half(direction, param_dtype, grad_dtype)
                                : kUpdatePlain + plain;
  const int step = direction * kUsualPairs + usual_pair(param_dtype, grad_dtype);
  launch(!has_displacement           ? plain_of_format
         : format == Format::QUARTER ? kUpdateQuarter + quarter
         : format == Format::HALF    ? kUpdateHalf + half
         : whole                     ? kStep + step
                                     : kUpdate + full,
         queue, blocks_for(table.n_chunks, kWarps), arguments, !whole, table.drift == nullptr ? 0 : kDriftBytes);
  if (table.chunk_size != 0) return;
  Run run = finish.run;
  void* of_project[] = {&own, &run};
  const int in_full = kProject + (has_displacement ? DType::WIDTH : 0) + param_dtype;
  const int in_bits = (format == Format::QUARTER ? kProjectQuarter : kProjectHalf) +
                      (has_displacement ? half_type(param_dtype) : kHalfTypes);
  const bool as_in_full = format == Format::FULL || (!has_displacement && param_dtype == DType::FLOAT32);
  launch(as_in_full ? in_full : in_bits, queue, blocks_for(table.n_chunks, kWarps), of_project, false);
}

void interpolate(const Table& table, int format, int param_dtype, const Run& run, int move, const Queue& queue) {
  Table own = table;
  Run given = run;
  void* arguments[] = {&own, &given};
  const bool quarter = format == Format::QUARTER && param_dtype == DType::BFLOAT16;
  launch(quarter                   ? kInterpolateQuarter + move
         : format != Format::FULL ? kInterpolateHalf + move * kHalfTypes + half_type(param_dtype)
                                  : kInterpolate + move * DType::WIDTH + param_dtype,
         queue, blocks_for(table.n_chunks, kWarps), arguments, false);
}

}  // namespace cuda
}  // namespace sfplus
