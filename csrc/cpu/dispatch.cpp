#include "dispatch.h"

#ifdef SFPLUS_X86_VARIANTS
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace sfplus {

#ifdef SFPLUS_X86_VARIANTS
namespace avx512 {
extern const Kernels table;
extern const Kernels16bit table_16bit;
extern const Kernels8bit table_8bit;
extern const KernelsOfDrift table_of_drift;
}
namespace avx2 {
extern const Kernels table;
extern const Kernels16bit table_16bit;
extern const Kernels8bit table_8bit;
extern const KernelsOfDrift table_of_drift;
}
#endif
namespace portable {
extern const Kernels table;
extern const Kernels16bit table_16bit;
extern const Kernels8bit table_8bit;
extern const KernelsOfDrift table_of_drift;
}

namespace {

struct Variant {
  std::string name;
  const Kernels* table;
  const Kernels16bit* table_16bit;
  const Kernels8bit* table_8bit;
  const KernelsOfDrift* table_of_drift;
};

#ifdef SFPLUS_X86_VARIANTS
// Conversions of float16: every processor with AVX2 has them, but not every compiler knows the name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

std::vector<Variant> available() {
  std::vector<Variant> variants;
#ifdef SFPLUS_X86_VARIANTS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    variants.push_back({"avx512", &avx512::table, &avx512::table_16bit, &avx512::table_8bit, &avx512::table_of_drift});
  }
  if (__builtin_cpu_supports("avx2") && has_f16c()) {
    variants.push_back({"avx2", &avx2::table, &avx2::table_16bit, &avx2::table_8bit, &avx2::table_of_drift});
  }
#endif
  variants.push_back(
      {"portable", &portable::table, &portable::table_16bit, &portable::table_8bit, &portable::table_of_drift});
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

const Kernels16bit& kernels_16bit() { return *current().table_16bit; }

const Kernels8bit& kernels_8bit() { return *current().table_8bit; }

const KernelsOfDrift& kernels_of_drift() { return *current().table_of_drift; }

void set_isa(const std::string& name) { current() = find(name); }

}  // namespace sfplus
