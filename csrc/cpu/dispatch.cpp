#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace sfplus {

#ifdef SFPLUS_X86_VARIANTS
namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
#endif
namespace portable {
extern const Kernels table;
}

namespace {

struct Variant {
  std::string name;
  const Kernels* table;
};

std::vector<Variant> available() {
  std::vector<Variant> variants;
#ifdef SFPLUS_X86_VARIANTS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    variants.push_back({"avx512", &avx512::table});
  }
  if (__builtin_cpu_supports("avx2")) variants.push_back({"avx2", &avx2::table});
#endif
  variants.push_back({"portable", &portable::table});
  return variants;
}

Variant find(const std::string& name) {
  std::string known;
  for (const Variant& variant : available()) {
    if (variant.name == name) return variant;
    known += (known.empty() ? "" : ", ") + variant.name;
  }
  throw std::invalid_argument("instruction set '" + name + "' cannot be had; this processor and this "
                              "build have: " + known + ". Unset SFPLUS_CPU_ISA to take the first");
}

Variant initial() {
  const char* wanted = std::getenv("SFPLUS_CPU_ISA");
  return wanted != nullptr && *wanted != '\0' ? find(wanted) : available().front();
}

Variant& current() {
  static Variant variant = initial();
  return variant;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Variant& variant : available()) names.push_back(variant.name);
  return names;
}

const std::string& isa() { return current().name; }

const Kernels& kernels() { return *current().table; }

void set_isa(const std::string& name) { current() = find(name); }

}  // namespace sfplus
