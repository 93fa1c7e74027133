// Memory that will be read soon.
#pragma once

#include <cstdint>

namespace sfplus {

inline std::uintptr_t address(const void* object) { return reinterpret_cast<std::uintptr_t>(object); }

// Of any address: there is no fault.
inline void fetch_lines(std::uintptr_t from, std::uintptr_t bytes) {
#if defined(__GNUC__)
  for (std::uintptr_t at = from & ~std::uintptr_t{63}; at < from + bytes; at += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(at));
  }
#else
  static_cast<void>(from), static_cast<void>(bytes);
#endif
}

}  // namespace sfplus
