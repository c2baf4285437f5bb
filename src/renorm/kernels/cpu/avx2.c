/* The kernels compiled for AVX2 and FMA. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#ifdef RENORM_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VECTOR_BYTES 32
#include "instances.h"

const instructions avx2 = {"avx2", ALL_DTYPES};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
