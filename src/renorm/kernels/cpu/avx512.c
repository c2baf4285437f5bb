/* The kernels compiled for AVX-512. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#ifdef RENORM_X86
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

/* gcc 12 makes these of two halves each */
#define WIDENED_16(p) ((I)_mm512_cvtepu16_epi32((__m256i)(p)))
#define NARROWED_16(i) ((NAME(packed))_mm512_cvtepi32_epi16((__m512i)(i)))

/* A vector of 64 or 32 bytes, to an address that is a multiple of that. */
static inline __attribute__((always_inline)) void stream(void *p, const void *value, size_t bytes) {
    __m512i wide;
    __m256i narrow;
    if (bytes == sizeof wide) {
        memcpy(&wide, value, sizeof wide);
        _mm512_stream_si512(p, wide);
    } else {
        memcpy(&narrow, value, sizeof narrow);
        _mm256_stream_si256(p, narrow);
    }
}
#define STREAM(p, value, bytes) stream(p, value, bytes)
#define STREAM_END() _mm_sfence()

#define VECTOR_BYTES 64
#include "instances.h"

const instructions avx512 = {"avx512", ALL_DTYPES};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
