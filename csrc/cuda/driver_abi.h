// What is used of the interface of NVIDIA's driver library, libcuda.so.1: said here, because whoever builds may have
// no CUDA header, and no more of it, because it has to be the same from CUDA 12.0 on. A test compares it with cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sfplus {
namespace cuda {
namespace abi {

using Result = int;
using Device = int;
using Context = void*;
using Module = void*;
using Function = void*;
using Stream = void*;

constexpr Result kSuccess = 0;
constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;  // CUdevice_attribute
constexpr unsigned kProgrammaticSerialization = 6;           // CUlaunchAttributeID

struct LaunchAttribute {
  unsigned id;
  char padding[4];
  union {
    char bytes[64];
    int flag;
  };
};

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned n_attributes;
};

// X(member, symbol, types of its arguments): symbols with the suffixes that cuda.h gives them
#define SFPLUS_DRIVER_FUNCTIONS(X)                                                                \
  X(init, cuInit, unsigned)                                                                       \
  X(driver_version, cuDriverGetVersion, int*)                                                     \
  X(error_name, cuGetErrorName, abi::Result, const char**)                                        \
  X(error_string, cuGetErrorString, abi::Result, const char**)                                    \
  X(device_get, cuDeviceGet, abi::Device*, int)                                                   \
  X(device_attribute, cuDeviceGetAttribute, int*, int, abi::Device)                               \
  X(retain_primary, cuDevicePrimaryCtxRetain, abi::Context*, abi::Device)                         \
  X(current, cuCtxGetCurrent, abi::Context*)                                                      \
  X(set_current, cuCtxSetCurrent, abi::Context)                                                   \
  X(load_module, cuModuleLoadData, abi::Module*, const void*)                                     \
  X(get_function, cuModuleGetFunction, abi::Function*, abi::Module, const char*)                  \
  X(launch, cuLaunchKernelEx, const abi::LaunchConfig*, abi::Function, void**, void**)

}  // namespace abi
}  // namespace cuda
}  // namespace sfplus
