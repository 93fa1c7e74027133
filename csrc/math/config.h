// What every header of csrc/math needs: they are compiled by the C++ compiler and by nvcc, include only
// the standard library, and hold the mathematics of the step in one place.
#pragma once

#ifdef __CUDACC__
#define SFPLUS_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define SFPLUS_INLINE __forceinline
#else
#define SFPLUS_INLINE inline __attribute__((always_inline))
#endif

// Element loops are compiled once per instruction set. Each set has a namespace of its own: the linker
// keeps one copy of an inline function, and a copy with AVX-512 in it must not serve the others.
#ifndef SFPLUS_ISA
#define SFPLUS_ISA portable
#endif
