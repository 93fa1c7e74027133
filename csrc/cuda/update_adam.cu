#include "update_launch.cuh"

namespace sfplus {
namespace cuda {

SFPLUS_DEFINE_LAUNCH_UPDATE(Direction::ADAM, "update (adam)")

}  // namespace cuda
}  // namespace sfplus
