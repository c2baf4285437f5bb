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

/* A vector of 32 or 16 bytes, to an address that is a multiple of that. */
static inline __attribute__((always_inline)) void stream(void *p, const void *value, size_t bytes) {
    __m256i wide;
    __m128i narrow;
    if (bytes == sizeof wide) {
        memcpy(&wide, value, sizeof wide);
        _mm256_stream_si256(p, wide);
    } else {
        memcpy(&narrow, value, sizeof narrow);
        _mm_stream_si128(p, narrow);
    }
}
#define STREAM(p, value, bytes) stream(p, value, bytes)
#define STREAM_END() _mm_sfence()

#define VECTOR_BYTES 32
#include "instances.h"

const instructions avx2 = {"avx2", ALL_DTYPES};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
