#include "update_launch.cuh"

namespace sfplus {
namespace cuda {

template <>
void launch_update<Direction::ADAM>(const Table&, int, int, const Run&, const Queue&);
template <>
void launch_update<Direction::ADAM_NO_MOMENTUM>(const Table&, int, int, const Run&, const Queue&);
template <>
void launch_update<Direction::SGD>(const Table&, int, int, const Run&, const Queue&);

void update(const Table& table, int param_dtype, int grad_dtype, bool has_exp_avg, bool has_exp_avg_sq,
            const Run& run, const Queue& queue) {
  if (has_exp_avg) {
    launch_update<Direction::ADAM>(table, param_dtype, grad_dtype, run, queue);
  } else if (has_exp_avg_sq) {
    launch_update<Direction::ADAM_NO_MOMENTUM>(table, param_dtype, grad_dtype, run, queue);
  } else {
    launch_update<Direction::SGD>(table, param_dtype, grad_dtype, run, queue);
  }
}

}  // namespace cuda
}  // namespace sfplus
