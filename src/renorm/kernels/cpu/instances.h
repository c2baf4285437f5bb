/* Template: the code of all dtypes for the instruction set of the file that includes this.
 *
 * That file defines VECTOR_BYTES and, before including this, has included the headers below, which
 * must not be compiled for its instruction set.
 */

#define INLINE static inline __attribute__((always_inline, unused))
#define NAME_(function, dtype) function##_##dtype
#define NAME__(function, dtype) NAME_(function, dtype)
#define NAME(function) NAME__(function, DTYPE)

#ifndef WIDENED_16
#define WIDENED_16(p) __builtin_convertvector(p, I)
#define NARROWED_16(i) __builtin_convertvector(i, NAME(packed))
#endif

/* Where a vector is loaded and stored whole or not at all. */
#ifndef LOAD_SOME
INLINE void load_each(void *value, const void *p, int64_t n, size_t size) {
    char whole[VECTOR_BYTES] = {0};
    for (int64_t i = 0; i < n; i++)
        memcpy(whole + i * (int64_t)size, (const char *)p + i * (int64_t)size, size);
    memcpy(value, whole, size == 2 ? VECTOR_BYTES / 2 : VECTOR_BYTES);
}

INLINE void store_each(void *p, const void *value, int64_t n, size_t size) {
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)p + i * (int64_t)size, (const char *)value + i * (int64_t)size, size);
}
#define LOAD_SOME load_each
#define STORE_SOME store_each
#endif

/* Stores a vector past the caches, where the processor can, to an address that is a multiple of it. */
#ifdef STREAM_WIDE
INLINE void stream(void *p, const void *value, size_t bytes) {
    WIDE wide;
    NARROW narrow;
    if (bytes == sizeof wide) {
        memcpy(&wide, value, sizeof wide);
        STREAM_WIDE(p, wide);
    } else {
        memcpy(&narrow, value, sizeof narrow);
        STREAM_NARROW(p, narrow);
    }
}
INLINE void end_stream(void) { _mm_sfence(); }
#else
INLINE void stream(void *p, const void *value, size_t bytes) { memcpy(p, value, bytes); }
INLINE void end_stream(void) {}
#endif

/* Asks for a cache line before it is needed; the address need not be the caller's. */
#define FETCH(p) __builtin_prefetch((const void *)(p), 0, 3)

/* What the loops do. Where it is a constant, each becomes code of its own. */
enum {
    PAIRED = 1,  /* the backward: x and dy are read */
    RELU = 2,    /* a ReLU; in the backward its sign is computed again from x ... */
    SIGNED = 4,  /* ... or read from y */
    ADDED = 8,   /* the forward adds a residual */
    MASKED = 16, /* some values are padding */
    PARTIAL = 32 /* of this vector, some lanes are not to be counted */
};

/* Calls `function` with `what` as a constant in the cases that are worth code of their own. */
#define SPECIALIZED(what, function, ...)                                                           \
    switch (what) {                                                                                \
    case 0:                                                                                        \
        function(__VA_ARGS__, 0);                                                                  \
        break;                                                                                     \
    case RELU:                                                                                     \
        function(__VA_ARGS__, RELU);                                                               \
        break;                                                                                     \
    case PAIRED:                                                                                   \
        function(__VA_ARGS__, PAIRED);                                                             \
        break;                                                                                     \
    case PAIRED | RELU:                                                                            \
        function(__VA_ARGS__, PAIRED | RELU);                                                      \
        break;                                                                                     \
    default:                                                                                       \
        function(__VA_ARGS__, what);                                                               \
    }

/* Of a loop over vectors that are to stay in registers. */
#define UNROLLED _Pragma("GCC unroll 8")

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE double widened_half(uint16_t half) {
    double magnitude = half & 0x7fff;
    int exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 31)
        magnitude = mantissa ? NAN : INFINITY;
    else
        magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

INLINE double widened_brain(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* n values of a (C,) vector from number `first` on, or of the constant that its absence means. */
static void read_vector(vector v, int64_t first, int64_t n, double absent, double *out) {
    if (!v.values) {
        for (int64_t i = 0; i < n; i++) out[i] = absent;
    } else if (v.dtype == FLOAT32) {
        for (int64_t i = 0; i < n; i++) out[i] = ((const float *)v.values)[first + i];
    } else if (v.dtype == FLOAT64) {
        for (int64_t i = 0; i < n; i++) out[i] = ((const double *)v.values)[first + i];
    } else if (v.dtype == BFLOAT16) {
        for (int64_t i = 0; i < n; i++)
            out[i] = widened_brain(((const uint16_t *)v.values)[first + i]);
    } else {
        for (int64_t i = 0; i < n; i++)
            out[i] = widened_half(((const uint16_t *)v.values)[first + i]);
    }
}

#define REAL double
#define INTEGER int64_t
#define REAL_ABS fabs
#define LARGEST DBL_MAX
#define EPSILON DBL_EPSILON

#define DTYPE float64
#define ELEMENT double
#define DTYPE_IS_REAL 1
#include "instance.h"

#undef REAL
#undef INTEGER
#undef REAL_ABS
#undef LARGEST
#undef EPSILON
#define REAL float
#define INTEGER int32_t
#define REAL_ABS fabsf
#define LARGEST FLT_MAX
#define EPSILON FLT_EPSILON

#define DTYPE float32
#define ELEMENT float
#include "instance.h"
#undef DTYPE_IS_REAL

#define DTYPE bfloat16
#define ELEMENT uint16_t
#define DTYPE_IS_BFLOAT16 1
#include "instance.h"
#undef DTYPE_IS_BFLOAT16

#define DTYPE float16
#define ELEMENT uint16_t
#define DTYPE_IS_FLOAT16 1
#include "instance.h"

#define ALL_DTYPES {run_float32, run_float64, run_bfloat16, run_float16}
#define WINDOW_OF(dtype)                                                                           \
    {mean_patch_##dtype, derived_##dtype, sampled_##dtype, combined_##dtype,                       \
     keep_##dtype,       sample_##dtype,  gather_##dtype,  track_##dtype}
#define WINDOWS {WINDOW_OF(float32), WINDOW_OF(float64)}
