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

#define VECTOR_BYTES 64
#include "instances.h"

const instructions avx512 = {"avx512", ALL_DTYPES};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
