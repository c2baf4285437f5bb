/* The statistics of a window of iterations: what is computed, in one of two dtypes.
 *
 * A window is the current iteration and L lags before it, each in its place of a ring. Everything is
 * contiguous and in one dtype, float or double; C channels, G groups, K values of a patch. Whatever
 * there is none of is NULL.
 */
#ifndef RENORM_WINDOW_H
#define RENORM_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

/* E[p] of x (N, channels, S): `shares` (k, S) is how large a part of the outputs reads each of the S
 * inputs at each of the k places of the kernel. `means` is room for (channels, S); out has
 * channels / G * k values for each group, `out_apart` from group to group. */
typedef struct {
    int64_t N, channels, S, k, G, out_apart;
    const void *x, *shares;
    void *means, *out;
    int threads;
} boxes;

/* The statistics of the lags at the weights W (C, K) of now: mean (C, L + 1), where the last one is
 * W E[p] + bias of the current iteration, and var (C, L).
 *
 * offset is (C, L + 1), rest and inverse_var (C, L), bias (C,). Either from derivative (C, L, K) and
 * mean_patch (G, L + 1, K); or from products (C, L + 1 + L s) of W with mean and sampled patches, and
 * with outputs (C, L, s) where the variance is expanded. */
typedef struct {
    int64_t C, G, K, L, s;
    const void *W, *bias, *mean_patch, *derivative, *products, *outputs, *offset, *rest, *inverse_var;
    void *mean, *var;
    int threads;
} lags;

/* Mean and variance of the window, out (2, C), from mean and var (C,) of the current iteration and
 * those of the lags, rows of L that lie so many apart. Without weights (L + 1,) it is the current
 * iteration alone. */
typedef struct {
    int64_t C, L, mean_apart, var_apart;
    const void *mean, *var, *lag_mean, *lag_var, *weights;
    void *out;
} window;

/* Where the statistics of an iteration are kept: offset (C, L + 1), rest and inverse_var (C, L),
 * valid (L,). own_mean, W E[p] + bias, is the last column of (C, L + 1) before it. */
typedef struct {
    int64_t C, L, slot;
    bool no_rest;
    const void *mean, *var, *own_mean;
    void *offset, *rest, *inverse_var, *valid;
} place;

/* Where n <= s positions of an iteration are kept: patches (G, R, K), with R = L + 1 + L s, of which
 * row L is the mean, and outputs (C, L, s). x is (N, channels, S), y (N, C, out); a position is an
 * example and an output place, and reads x at `read` (n, k), where -1 is a zero. Gathered alone, patches
 * are (G, n, K). */
typedef struct {
    int64_t C, G, K, L, R, s, n, slot, channels, S, k, out;
    const int64_t *example, *output, *read;
    const void *x, *y, *mean;
    void *patches, *outputs, *rest;
} positions;

/* Running statistics (C,), the variance with a factor, and how many updates there were. */
typedef struct {
    int64_t C;
    double rate, unbiased;
    const void *mean, *var;
    void *running_mean, *running_var;
    int64_t *counter;
} averages;

/* The code for one dtype, compiled for one instruction set. */
typedef struct {
    void (*mean_patch)(boxes *);
    void (*derived)(lags *);
    void (*sampled)(lags *);
    bool (*combined)(const window *);
    void (*keep)(const place *);
    void (*sample)(const positions *);
    void (*gather)(const positions *);
    void (*track)(const averages *);
} window_code;

#endif
