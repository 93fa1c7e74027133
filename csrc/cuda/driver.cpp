#include "driver.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <mutex>
#include <stdexcept>

#include "driver_abi.h"
#include "kernels.h"
#include "threads.h"

#ifndef SFPLUS_LIBCUDA  // the tests have one of their own
#define SFPLUS_LIBCUDA "libcuda.so.1"
#endif

namespace sfplus {
namespace cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kOldestForOverlap = 12030;  // in a capture too

struct Driver {
#define SFPLUS_MEMBER(member, symbol, ...) abi::Result (*member)(__VA_ARGS__) = nullptr;
  SFPLUS_DRIVER_FUNCTIONS(SFPLUS_MEMBER)
#undef SFPLUS_MEMBER
  std::string missing;  // why there is no driver; empty if there is one

  Driver() {
    void* library = dlopen(SFPLUS_LIBCUDA, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      missing = "no NVIDIA driver";
      return;
    }
#define SFPLUS_FIND(member, symbol, ...)                                                        \
  member = reinterpret_cast<decltype(member)>(dlsym(library, #symbol));                         \
  if (member == nullptr && missing.empty()) {                                                   \
    missing = "the NVIDIA driver is too old: its library has no " #symbol ", as of CUDA 12.0";  \
  }
    SFPLUS_DRIVER_FUNCTIONS(SFPLUS_FIND)
#undef SFPLUS_FIND
  }
};

const Driver& driver() {
  static const Driver found;
  if (!found.missing.empty()) throw std::runtime_error(found.missing);
  return found;
}

std::string text_of(abi::Result result) {
  const char *name = nullptr, *text = nullptr;
  driver().error_name(result, &name);
  driver().error_string(result, &text);
  if (name == nullptr || text == nullptr) return "error " + std::to_string(result);
  return std::string(text) + " (" + name + ")";
}

void raise_if_failed(abi::Result result, const std::string& what) {
  if (result != abi::kSuccess) throw std::runtime_error(what + " failed: " + text_of(result));
}

// What an earlier kernel of anybody's did wrong, which every call reports from then on.
bool is_of_an_earlier_kernel(abi::Result result) {
  switch (result) {
    case 214:  // an error in memory that could not be corrected
    case 700:  // an illegal address
    case 702:  // took too long
    case 710:  // an assertion
    case 714:  // stack
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // address space
    case 718:  // program counter
    case 719:  // unspecified
      return true;
    default:
      return false;
  }
}

// Makes a context current, and on leaving the one that was, if any. By context and not by device: to make a device
// current makes a context on it, which takes memory there.
class ContextGuard {
 public:
  explicit ContextGuard(abi::Context context) {
    raise_if_failed(driver().current(&before_), "asking for the current CUDA context");
    if (before_ == context) return;
    raise_if_failed(driver().set_current(context), "making a CUDA context current");
    changed_ = true;
  }
  ~ContextGuard() {
    if (changed_) driver().set_current(before_);
  }
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

 private:
  abi::Context before_ = nullptr;
  bool changed_ = false;
};

struct Loaded {
  abi::Context context = nullptr;
  bool overlaps = false;  // kernels may begin before the one in front of them has ended
  std::array<abi::Function, kKernels> functions = {};
};

// By device; never taken down: the driver may be gone before this is.
std::array<std::atomic<const Loaded*>, kMaxDevices> all_loaded = {};
std::mutex loading;

abi::Device device_by_number(int number) {
  raise_if_failed(driver().init(0), "initialising CUDA");
  abi::Device device;
  raise_if_failed(driver().device_get(&device, number), "finding CUDA device " + std::to_string(number));
  return device;
}

}  // namespace

int driver_version() {
  int version = 0;
  try {
    if (driver().driver_version(&version) != abi::kSuccess) return 0;
  } catch (const std::runtime_error&) {
    return 0;
  }
  return version;
}

std::pair<int, int> capability(int device) {
  int major = 0, minor = 0;
  const abi::Device found = device_by_number(device);
  const std::string what = "asking for the compute capability of CUDA device " + std::to_string(device);
  raise_if_failed(driver().device_attribute(&major, abi::kCapabilityMajor, found), what);
  raise_if_failed(driver().device_attribute(&minor, abi::kCapabilityMinor, found), what);
  return {major, minor};
}

void load(int device, const char* image) {
  const std::lock_guard<std::mutex> guard(loading);
  if (device < 0 || device >= kMaxDevices) {
    throw std::runtime_error("CUDA device " + std::to_string(device) + "; expected 0 to " +
                             std::to_string(kMaxDevices - 1));
  }
  if (all_loaded[device].load() != nullptr) return;
  const std::string where = " on CUDA device " + std::to_string(device);
  auto* made = new Loaded;
  try {
    made->overlaps = capability(device).first >= 9 && driver_version() >= kOldestForOverlap;
    raise_if_failed(driver().retain_primary(&made->context, device_by_number(device)),
                    "using the primary context" + where);
    const ContextGuard current(made->context);
    abi::Module module;
    raise_if_failed(driver().load_module(&module, image), "loading the kernels" + where);
    for (int kernel = 0; kernel < kKernels; ++kernel) {  // all at once: a capture may not load any
      const std::string name = kernel_name(kernel);
      raise_if_failed(driver().get_function(&made->functions[kernel], module, name.c_str()),
                      "finding the kernel '" + name + "'" + where);
    }
  } catch (...) {
    delete made;
    throw;
  }
  all_loaded[device].store(made);
}

void launch(int kernel, const Queue& queue, std::int64_t n_blocks, void** arguments, bool follows,
            unsigned shared_bytes) {
  if (n_blocks == 0) return;
  const Loaded* loaded = all_loaded[queue.device].load();
  if (loaded == nullptr) {
    throw std::runtime_error("no kernels were loaded for CUDA device " + std::to_string(queue.device));
  }
  abi::LaunchAttribute overlap = {};
  overlap.id = abi::kProgrammaticSerialization;
  overlap.flag = 1;
  const abi::LaunchConfig config = {static_cast<unsigned>(n_blocks),
                                    1,
                                    1,
                                    kThreads,
                                    1,
                                    1,
                                    shared_bytes,
                                    reinterpret_cast<abi::Stream>(queue.stream),
                                    &overlap,
                                    follows && loaded->overlaps ? 1u : 0u};
  const ContextGuard current(loaded->context);
  const abi::Result result = driver().launch(&config, loaded->functions[kernel], arguments, nullptr);
  if (result == abi::kSuccess) return;
  const std::string where = " on device " + std::to_string(queue.device);
  if (is_of_an_earlier_kernel(result)) {
    throw std::runtime_error("an earlier operation" + where + " failed: " + text_of(result) +
                             ". It was found when the CUDA kernel '" + kernel_name(kernel) +
                             "' was to be launched, and may be of any other kernel: run with "
                             "CUDA_LAUNCH_BLOCKING=1 to see which");
  }
  raise_if_failed(result, "launching the CUDA kernel '" + kernel_name(kernel) + "'" + where);
}

}  // namespace cuda
}  // namespace sfplus
