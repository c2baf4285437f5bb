/* One training step of batch renorm over a whole tensor: what is computed, and by which code. */
#ifndef RENORM_KERNEL_H
#define RENORM_KERNEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, DTYPES };

/* A (C,) vector of the caller, in a dtype of its own; values is NULL where there is none. */
typedef struct {
    const void *values;
    enum dtype dtype;
} vector;

/* x is (N, C, S), contiguous. S == 1 makes it rows (N, C): 2-D input and channels-last maps.
 *
 * The forward writes out = y (unless NULL), mean, lost, invstd, r, d and the new statistics; the
 * backward reads those and dy, and writes out = dx (unless NULL), dweight and dbias. Pointers
 * to void are in the dtype of x; the others are in its accumulation dtype, double for double
 * and float for everything else.
 */
typedef struct {
    int64_t N, C, S;
    const void *x, *dy;
    void *out;
    void *mean, *lost; /* the mean in its dtype, and what rounding took from it */
    void *invstd, *r, *d;
    void *new_mean, *new_var;
    void *dweight, *dbias;
    vector weight, bias, running_mean, running_var;
    double r_max, d_max, momentum, eps;
    int threads;
    atomic_bool rejected;    /* a statistic of this batch is not finite */
    atomic_bool out_of_memory;
} step;

typedef void (*step_function)(step *);

/* The code for each dtype, compiled for one instruction set. */
typedef struct {
    const char *name;
    step_function run[DTYPES]; /* backward where there is a dy, else forward */
} instructions;

extern const instructions baseline;
#if defined(__x86_64__) || defined(__i386__)
#define RENORM_X86 1
extern const instructions avx2, avx512;
#endif

/* Calls f on parts of [0, n) on up to `threads` threads of torch's own pool. */
void in_parallel(int threads, int64_t n, void (*f)(int64_t, int64_t, void *), void *context);

#endif
