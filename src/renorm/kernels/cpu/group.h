/* Template: one group of examples that share statistics, and what its loops do at each vector. */

/* A group's part of the call: its tensors start where its first example does, and its statistics
 * (C,) are its row of the call's. */
typedef struct {
    const call *call;
    int64_t N, C, S;
    bool rows;
    const ELEMENT *x, *residual, *dy, *y;
    const uint8_t *mask;
    ELEMENT *out, *dresidual;
    REAL *mean, *lost, *var, *r, *d;
    double *dweight, *dbias;
    double values; /* in each channel; with fewer than two the running statistics serve */
    int threads, what;
    bool given;   /* what to normalize by, or to remove from dy: nothing is summed */
    bool streams; /* no cache will keep the output */
    atomic_bool *out_of_memory;
} NAME(group);

/* out = a * dy + b * (x - m) + c, with a == 0 and no dy in the forward; u * (x - m) + w is what the
 * forward gave to its ReLU. */
typedef struct {
    REAL *m, *a, *b, *c, *u, *w;
} NAME(coefficients);

enum { NAME(COEFFICIENTS) = 6 };

/* Arrays of n values each, one behind the other. */
INLINE NAME(coefficients) NAME(coefficients_in)(REAL *memory, int64_t n) {
    return (NAME(coefficients)){memory,         memory + n,     memory + 2 * n,
                                memory + 3 * n, memory + 4 * n, memory + 5 * n};
}

INLINE NAME(coefficients) NAME(coefficients_from)(NAME(coefficients) k, int64_t i) {
    return (NAME(coefficients)){k.m + i, k.a + i, k.b + i, k.c + i, k.u + i, k.w + i};
}

/* The coefficients of one vector. */
typedef struct {
    V m, a, b, c, u, w;
} NAME(terms);

/* One channel's, in all lanes. */
INLINE NAME(terms) NAME(terms_of)(NAME(coefficients) k) {
    return (NAME(terms)){NAME(splat)(*k.m), NAME(splat)(*k.a), NAME(splat)(*k.b),
                         NAME(splat)(*k.c), NAME(splat)(*k.u), NAME(splat)(*k.w)};
}

/* A channel in each lane; what is not used is not read. */
INLINE NAME(terms) NAME(terms_at)(NAME(coefficients) k, int64_t j, int what) {
    NAME(terms) t = {.m = NAME(load_real)(k.m + j)};
    t.b = NAME(load_real)(k.b + j);
    t.c = NAME(load_real)(k.c + j);
    if (what & PAIRED) t.a = NAME(load_real)(k.a + j);
    if (what & RELU) {
        t.u = NAME(load_real)(k.u + j);
        t.w = NAME(load_real)(k.w + j);
    }
    return t;
}

/* n values at p, then zeros. */
INLINE V NAME(read)(const ELEMENT *p, int64_t n) {
    return n == LANES ? NAME(load)(p) : NAME(load_part)(p, n);
}

INLINE void NAME(write)(ELEMENT *p, V value, int64_t n) {
    if (n == LANES)
        NAME(store)(p, value);
    else
        NAME(store_part)(p, value, n);
}

/* n values of dy at position `at`, 0 where a ReLU let nothing through; v = x - m. A NaN lets its
 * gradient through, as in torch. */
INLINE V NAME(passed)(const NAME(group) *g, int64_t at, int64_t n, V v, V u, V w, int what) {
    V dy = NAME(read)(g->dy + at, n);
    if (what & RELU) dy = NAME(kept)(dy, ~(u * v + w <= 0));
    if (what & SIGNED) dy = NAME(kept)(dy, ~(NAME(read)(g->y + at, n) <= 0));
    return dy;
}

/* What the sums have to know: not of the forward's ReLU. */
INLINE int NAME(summed)(const NAME(group) *g) {
    return g->what & PAIRED ? g->what : g->what & MASKED;
}

/* Adds (v, v * v) or, in the backward, (dy, dy * v) to s and q; v = x - shift. */
INLINE void NAME(add_at)(const NAME(group) *g, int64_t at, int64_t n, V shift, V u, V w, I keep,
                         V *s, V *q, int what) {
    V v = NAME(read)(g->x + at, n) - shift;
    V dy = what & PAIRED ? NAME(passed)(g, at, n, v, u, w, what) : v;
    if (what & (MASKED | PARTIAL)) {
        v = NAME(kept)(v, keep);
        dy = NAME(kept)(dy, keep);
    }
    *s += dy;
    *q += dy * v;
}

INLINE void NAME(map_at)(const NAME(group) *g, int64_t at, int64_t n, NAME(terms) k, I keep,
                         int what) {
    V v = NAME(read)(g->x + at, n) - k.m;
    V result = k.b * v + k.c;
    if (what & PAIRED) {
        V dy = NAME(passed)(g, at, n, v, k.u, k.w, what);
        if ((what & SIGNED) && g->dresidual) NAME(write)(g->dresidual + at, dy, n);
        result = k.a * dy + result;
    }
    if (what & MASKED) result = NAME(kept)(result, keep);
    if (what & ADDED) result += NAME(read)(g->residual + at, n);
    if (!(what & PAIRED) && (what & RELU)) result = NAME(kept)(result, ~(result < 0));
    if (g->streams && n == LANES)
        NAME(store_past)(g->out + at, result);
    else
        NAME(write)(g->out + at, result, n);
}
