#include "update_launch.cuh"

namespace sfplus {
namespace cuda {

SFPLUS_DEFINE_LAUNCH_UPDATE(Direction::SGD, "update (sgd)")

}  // namespace cuda
}  // namespace sfplus
