// Stands in for NVIDIA's driver library: its functions by their names, on the host. Contexts are numbers of devices;
// what is asked is written down. A launch runs the kernel, in the order of the blocks.
#include <dlfcn.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "cuda/driver_abi.h"
#include "cuda/finish.h"
#include "device.h"
#include "fibers.h"

namespace abi = sfplus::cuda::abi;
using host_cuda::settings;
using sfplus::Run;
using sfplus::Table;
using sfplus::cuda::Finish;

namespace {

constexpr abi::Result kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500;
char contexts[64];  // their addresses are the contexts

void note(const std::string& call) { settings().calls.push_back(call); }

std::string device_of(abi::Context context) {
  return context == nullptr ? "none" : std::to_string(static_cast<char*>(context) - contexts);
}

struct Kernel {
  std::string name;
  void* code;
};

template <class T>
T argument(void** arguments, int i) {
  return *static_cast<T*>(arguments[i]);
}

// The kernel's name says which parameters it has.
std::function<void()> call_of(const Kernel& kernel, void** arguments) {
  if (kernel.name.rfind("reduce", 0) == 0) {
    using Code = void (*)(Table, double*, std::int64_t, double, Finish);
    return [=] {
      reinterpret_cast<Code>(kernel.code)(argument<Table>(arguments, 0), argument<double*>(arguments, 1),
                                          argument<std::int64_t>(arguments, 2),
                                          argument<double>(arguments, 3), argument<Finish>(arguments, 4));
    };
  }
  if (kernel.name.rfind("interpolate", 0) == 0) {
    return [=] {
      reinterpret_cast<void (*)(Table, Run)>(kernel.code)(argument<Table>(arguments, 0),
                                                          argument<Run>(arguments, 1));
    };
  }
  if (kernel.name.rfind("finalize", 0) == 0) {
    return [=] { reinterpret_cast<void (*)(Finish)>(kernel.code)(argument<Finish>(arguments, 0)); };
  }
  return [=] {
    reinterpret_cast<void (*)(Table, Finish)>(kernel.code)(argument<Table>(arguments, 0),
                                                           argument<Finish>(arguments, 1));
  };
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

abi::Result cuInit(unsigned) { return abi::kSuccess; }

abi::Result cuDriverGetVersion(int* version) {
  *version = settings().driver_version;
  return abi::kSuccess;
}

abi::Result cuGetErrorName(abi::Result error, const char** name) {
  *name = error == kInvalidValue ? "CUDA_ERROR_INVALID_VALUE"
          : error == 700         ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == 701         ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
                                 : "CUDA_ERROR_OF_THE_TESTS";
  return abi::kSuccess;
}

abi::Result cuGetErrorString(abi::Result error, const char** text) {
  *text = error == kInvalidValue ? settings().problem.c_str()
          : error == 700         ? "an illegal memory access was encountered"
          : error == 701         ? "too many resources requested for launch"
                                 : "an error";
  return abi::kSuccess;
}

abi::Result cuDeviceGet(abi::Device* device, int number) {
  *device = number;
  return abi::kSuccess;
}

abi::Result cuDeviceGetAttribute(int* value, int attribute, abi::Device) {
  const auto [major, minor] = settings().capability;
  *value = attribute == abi::kCapabilityMajor ? major : minor;
  return abi::kSuccess;
}

abi::Result cuDevicePrimaryCtxRetain(abi::Context* context, abi::Device device) {
  note("retain " + std::to_string(device));
  *context = contexts + device;
  return abi::kSuccess;
}

abi::Result cuCtxGetCurrent(abi::Context* context) {
  *context = settings().device < 0 ? nullptr : contexts + settings().device;
  return abi::kSuccess;
}

abi::Result cuCtxSetCurrent(abi::Context context) {
  note("current " + device_of(context));
  settings().device = context == nullptr ? -1 : static_cast<int>(static_cast<char*>(context) - contexts);
  return abi::kSuccess;
}

abi::Result cuModuleLoadData(abi::Module* module, const void* image) {
  const auto* bytes = static_cast<const unsigned char*>(image);
  const bool elf = bytes[0] == 0x7F && bytes[1] == 'E';
  note(elf ? "load ELF for machine " + std::to_string(bytes[18] | bytes[19] << 8) : "load text");
  *module = contexts + settings().device;
  return abi::kSuccess;
}

abi::Result cuModuleGetFunction(abi::Function* function, abi::Module, const char* name) {
  Dl_info own;
  dladdr(reinterpret_cast<void*>(&cuInit), &own);
  void* code = dlsym(dlopen(own.dli_fname, RTLD_NOW), name);
  if (code == nullptr) return kNotFound;
  *function = new Kernel{name, code};
  return abi::kSuccess;
}

abi::Result cuLaunchKernelEx(const abi::LaunchConfig* config, abi::Function function, void** arguments, void**) {
  const Kernel& kernel = *static_cast<Kernel*>(function);
  bool overlaps = false;
  for (unsigned i = 0; i < config->n_attributes; ++i) {
    overlaps = overlaps || (config->attributes[i].id == abi::kProgrammaticSerialization &&
                            config->attributes[i].flag == 1);
  }
  note((overlaps ? "overlap " : "launch ") + kernel.name);
  ++settings().launches;
  settings().problem.clear();
  if (settings().device < 0) return kInvalidContext;
  if (settings().fail_next != 0) return std::exchange(settings().fail_next, 0);
  settings().problem = host_cuda::run(config->grid_x, config->block_x, config->shared_bytes, call_of(kernel, arguments));
  return settings().problem.empty() ? abi::kSuccess : kInvalidValue;
}

}  // extern "C"
#pragma GCC visibility pop
