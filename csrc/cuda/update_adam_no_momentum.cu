#include "update_launch.cuh"

namespace sfplus {
namespace cuda {

SFPLUS_DEFINE_LAUNCH_UPDATE(Direction::ADAM_NO_MOMENTUM, "update (adam_no_momentum)")

}  // namespace cuda
}  // namespace sfplus
