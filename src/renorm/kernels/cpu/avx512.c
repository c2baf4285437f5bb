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

/* stores past the caches: of a whole vector, and of half of one */
#define WIDE __m512i
#define NARROW __m256i
#define STREAM_WIDE _mm512_stream_si512
#define STREAM_NARROW _mm256_stream_si256

/* The first n elements of a size at p, then zeros; and back. A plane of 3x3 is no more than this. */
static inline __attribute__((always_inline)) void load_some(void *value, const void *p, int64_t n,
                                                            size_t size) {
    if (size == 2) {
        __m256i some = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
        memcpy(value, &some, sizeof some);
    } else {
        __m512i some = size == 4 ? _mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p)
                                 : _mm512_maskz_loadu_epi64((__mmask8)((1u << n) - 1), p);
        memcpy(value, &some, sizeof some);
    }
}

static inline __attribute__((always_inline)) void store_some(void *p, const void *value, int64_t n,
                                                             size_t size) {
    if (size == 2) {
        __m256i some;
        memcpy(&some, value, sizeof some);
        _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), some);
    } else {
        __m512i some;
        memcpy(&some, value, sizeof some);
        if (size == 4)
            _mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), some);
        else
            _mm512_mask_storeu_epi64(p, (__mmask8)((1u << n) - 1), some);
    }
}
#define LOAD_SOME load_some
#define STORE_SOME store_some

#define VECTOR_BYTES 64
#include "instances.h"

const instructions avx512 = {"avx512", ALL_DTYPES, WINDOWS};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
