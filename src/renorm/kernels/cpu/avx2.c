/* The kernels compiled for AVX2 and FMA. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#ifdef RENORM_X86
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

/* stores past the caches: of a whole vector, and of half of one */
#define WIDE __m256i
#define NARROW __m128i
#define STREAM_WIDE _mm256_stream_si256
#define STREAM_NARROW _mm_stream_si128

#define VECTOR_BYTES 32
#include "instances.h"

const instructions avx2 = {"avx2", ALL_DTYPES, WINDOWS};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
