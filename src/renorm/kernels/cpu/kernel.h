/* One call of batch renorm over a whole tensor: what is computed, and by which code. */
#ifndef RENORM_KERNEL_H
#define RENORM_KERNEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "window.h"

enum dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, DTYPES };

/* A (C,) vector of the caller, in a dtype of its own; values is NULL where there is none. */
typedef struct {
    const void *values;
    enum dtype dtype;
} vector;

/* x is (N, C, S), or (N, S, C) where `rows` says so, contiguous; out, dy, y and both residuals lie
 * alike, and the mask is (N, S). Every `microbatch` examples (the last may be fewer) are one of G
 * groups with statistics of their own.
 *
 * The forward writes out = y (unless NULL) and the statistics of each group, (G, C) each: mean, lost
 * (what rounding took from the mean), var, r and d; then the new running statistics, which may be the
 * old ones' own place, and adds 1 to the counter. Where it is given a mean, it normalizes by that and
 * by the var, r and d beside it, and those are stored. The backward reads those, dy, and with a ReLU
 * behind a residual y; it writes out = dx (unless NULL), dresidual, dweight and dbias. For dx
 * it removes from dy each group's mean and slope along (x - mean) / sigma; where it is given both, it
 * removes those instead, and there are no dweight and dbias.
 *
 * Pointers to void are in the dtype of x; statistics and gradients (C,) are in its accumulation
 * dtype, double for double and float for everything else. Whatever there is none of is NULL.
 */
typedef struct {
    int64_t N, C, S, microbatch;
    bool rows, relu;
    const void *x, *residual, *dy, *y;
    const uint8_t *mask;
    void *out, *dresidual;
    void *mean, *lost, *var, *r, *d;
    void *new_mean, *new_var;
    int64_t *counter;
    void *dweight, *dbias;
    vector weight, bias, running_mean, running_var;
    vector given_mean, given_var, given_r, given_d;
    vector removed_mean, removed_slope; /* from dy */
    bool renormalizes; /* there are running statistics */
    double r_max, d_max, momentum, eps;
    double share; /* of a group's own moments in what it was normalized by, as far as they move it */
    int threads;
    bool counted;
    atomic_bool out_of_memory;
} call;

/* Of a call with examples and a microbatch of at least one. */
static inline int64_t groups_of(const call *c) { return (c->N - 1) / c->microbatch + 1; }

typedef void (*call_function)(call *);

/* The code for each dtype, compiled for one instruction set. */
typedef struct {
    const char *name;
    call_function run[DTYPES]; /* backward where there is a dy, else forward */
    window_code window[2];     /* for float and double */
} instructions;

extern const instructions baseline;
#if defined(__x86_64__) || defined(__i386__)
#define RENORM_X86 1
extern const instructions avx2, avx512;
#endif

/* Calls f on parts of [0, n) on up to `threads` threads of torch's own pool. */
void in_parallel(int threads, int64_t n, void (*f)(int64_t, int64_t, void *), void *context);

#endif
