// What the element loops share: blocks of elements, and memory that is asked for ahead of them.
#pragma once

#include <cstdint>

#include "../math/config.h"

// Of the loop that follows no iteration touches what another one does: without this the compiler would compare
// the addresses of all arrays with each other before each block.
#if defined(__clang__)
#define SFPLUS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define SFPLUS_INDEPENDENT _Pragma("GCC ivdep")
#else
#define SFPLUS_INDEPENDENT
#endif

// Of the loop that follows all turns are written out, if they are few: arrays then become registers.
#if defined(__clang__)
#define SFPLUS_UNROLLED _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define SFPLUS_UNROLLED _Pragma("GCC unroll 4")
#else
#define SFPLUS_UNROLLED
#endif

#ifdef __GNUC__
#define SFPLUS_NOT_INLINE __attribute__((noinline))
#else
#define SFPLUS_NOT_INLINE __declspec(noinline)
#endif

namespace sfplus {
inline namespace SFPLUS_ISA {

// Elements in two cache lines of state. Between two such blocks memory is asked for that is wanted soon: what
// the processor fetches ahead by itself ends with the page, and large tensors all begin at the same place
// within a page, so that all of them come to an end at once.
template <class State>
constexpr int kBlock = 128 / sizeof(State);

constexpr std::int64_t kAhead = 256;  // elements

// Asks for the block kAhead elements behind the one at i. Behind the end of the array that does nothing.
template <class State, class T>
SFPLUS_INLINE void ask_ahead(const T* array, std::int64_t i) {
#ifdef __GNUC__
  const auto address = reinterpret_cast<std::uintptr_t>(array) + (i + kAhead) * sizeof(T);
  for (std::size_t line = 0; line < kBlock<State> * sizeof(T); line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + line));
  }
#else
  static_cast<void>(array), static_cast<void>(i);
#endif
}

struct Unused {};

template <class State>
SFPLUS_INLINE void ask_ahead(Unused, std::int64_t) {}

template <bool used, class T>
SFPLUS_INLINE auto only_if(T* array) {
  if constexpr (used) {
    return array;
  } else {
    return Unused{};
  }
}

// element(i) for each i; ``arrays`` are those in which it touches element i.
template <class State, class Element, class... Arrays>
SFPLUS_INLINE void for_each_element(std::int64_t numel, const Element& element, const Arrays... arrays) {
  std::int64_t i = 0;
  for (; i + kBlock<State> <= numel; i += kBlock<State>) {
    (ask_ahead<State>(arrays, i), ...);
    SFPLUS_INDEPENDENT
    for (int j = 0; j < kBlock<State>; ++j) element(i + j);
  }
  SFPLUS_INDEPENDENT
  for (; i < numel; ++i) element(i);
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
