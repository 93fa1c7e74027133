// The kernels themselves, under the names by which the driver's stand-in finds them.
#include "device.h"

#pragma GCC visibility push(default)
#include "cuda/kernels.cu"
#pragma GCC visibility pop
