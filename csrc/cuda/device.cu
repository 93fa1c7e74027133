#include <stdexcept>

#include "finalize.cuh"
#include "launch.cuh"

namespace sfplus {
namespace cuda {
namespace {

std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

}  // namespace

void raise_if_failed(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forget it: it is raised here, and must not be found again
  throw std::runtime_error(what + " failed: " + text_of(error));
}

DeviceGuard::DeviceGuard(int device) : device_(device) {
  raise_if_failed(cudaGetDevice(&before_), "asking for the current CUDA device");
  if (before_ != device_) {
    raise_if_failed(cudaSetDevice(device_), "making CUDA device " + std::to_string(device_) + " current");
  }
}

DeviceGuard::~DeviceGuard() {
  if (before_ != device_) cudaSetDevice(before_);
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string device_problem(int device) {
  try {
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes;
    raise_if_failed(cudaFuncGetAttributes(&attributes, finalize_tensors_kernel), "loading a kernel");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

void finalize(const double* partials, std::int64_t n_partials, const std::int64_t* rows,
              std::int64_t n_rows, const Run& run, double max_coefficient, const Queue& queue) {
  launch("finalize", queue, finalize_kernel, 1, kFinalizeThreads, partials, n_partials, run, max_coefficient);
  launch("finalize_tensors", queue, finalize_tensors_kernel, blocks_for(n_rows, kThreads), kThreads,
         rows, n_rows, run);
}

}  // namespace cuda
}  // namespace sfplus
