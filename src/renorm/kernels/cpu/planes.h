/* Template: (N, C, S), where the values of a channel lie in planes of S. */

/* Running sums of some channels: in lanes, moved into doubles before rounding builds up. */
typedef struct {
    V s[BLOCK], q[BLOCK];
    double s_total[BLOCK], q_total[BLOCK];
    int64_t used; /* values added to each lane since the last flush */
} NAME(accumulators);

/* A lane takes about this many values in its own dtype: their rounding is below 1e-6 of the sum of
 * magnitudes. */
enum { NAME(FLUSH_AFTER) = 64, NAME(SPAN) = NAME(FLUSH_AFTER) * 4 * LANES };

/* Positions [at, at + length) of one plane, of those from `start` to `stop` of a channel's N * S. */
typedef struct {
    int64_t n, at, length;
} NAME(span);

/* Calls that walk the spans of a range, of at most SPAN positions each, in either direction. */
INLINE NAME(span) NAME(first_span)(const NAME(group) *g, int64_t start, int64_t stop) {
    NAME(span) p = {start / g->S, start % g->S, 0};
    p.length = least(least(g->S - p.at, stop - start), NAME(SPAN));
    return p;
}

INLINE void NAME(next_span)(const NAME(group) *g, NAME(span) *p, int64_t left) {
    p->at += p->length;
    if (p->at == g->S) {
        p->at = 0;
        p->n++;
    }
    p->length = least(least(g->S - p->at, left), NAME(SPAN));
}

INLINE int64_t NAME(offset)(const NAME(group) *g, NAME(span) p, int64_t channel) {
    return (p.n * g->C + channel) * g->S + p.at;
}

/* The lanes of n values at position `at` of plane n that are data. */
INLINE I NAME(plane_mask)(const NAME(group) *g, NAME(span) p, int64_t i, int64_t n, int what) {
    if (!(what & MASKED)) return (I){0};
    return NAME(load_mask)(g->mask + p.n * g->S + p.at + i, n);
}

#define ADD(k, i)                                                                                  \
    NAME(add_at)(g, at + (i), LANES, shift, u, w, NAME(plane_mask)(g, p, i, LANES, what), &s##k,   \
                 &q##k, what)

/* Adds one span of one channel to its sums. */
INLINE void NAME(add_span)(const NAME(group) *g, NAME(span) p, int64_t channel, V shift, V u, V w,
                           V *s, V *q, int what) {
    const int64_t at = NAME(offset)(g, p, channel), n = p.length;
    V s0 = *s, q0 = *q, s1 = {0}, s2 = {0}, s3 = {0}, q1 = {0}, q2 = {0}, q3 = {0};
    int64_t i = 0;
    for (; n - i >= 4 * LANES; i += 4 * LANES) {
        ADD(0, i);
        ADD(1, i + LANES);
        ADD(2, i + 2 * LANES);
        ADD(3, i + 3 * LANES);
    }
    for (; n - i >= LANES; i += LANES) ADD(1, i);
    if (i < n) {
        /* the last few: a whole vector that ends with them, without what was added before */
        const int64_t start = n >= LANES ? n - LANES : 0, count = least(n, LANES);
        I keep = n >= LANES ? NAME(numbers)() >= (INTEGER)(LANES - (n - i))
                            : NAME(numbers)() < (INTEGER)n;
        if (what & MASKED) keep &= NAME(plane_mask)(g, p, start, count, what);
        NAME(add_at)(g, at + start, count, shift, u, w, keep, &s2, &q2, what | PARTIAL);
    }
    *s = (s0 + s1) + (s2 + s3);
    *q = (q0 + q1) + (q2 + q3);
}

#undef ADD

INLINE void NAME(map_span)(const NAME(group) *g, NAME(span) p, int64_t channel, NAME(terms) k,
                           int what) {
    const int64_t at = NAME(offset)(g, p, channel), n = p.length;
    if (n < LANES) {
        NAME(map_at)(g, at, n, k, NAME(plane_mask)(g, p, 0, n, what), what);
        return;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t j = least(i, n - LANES); /* the last vector overlaps and writes the same again */
        NAME(map_at)(g, at + j, LANES, k, NAME(plane_mask)(g, p, j, LANES, what), what);
    }
}

static void NAME(flush)(NAME(accumulators) *t, int64_t channels) {
    for (int64_t i = 0; i < channels; i++) {
        t->s_total[i] += NAME(total)(t->s[i]);
        t->q_total[i] += NAME(total)(t->q[i]);
        t->s[i] = t->q[i] = (V){0};
    }
    t->used = 0;
}

/* Which channels, and which of their N * S positions. */
typedef struct {
    int64_t first, channels, start, stop;
} NAME(part);

INLINE void NAME(sum_part_as)(const NAME(group) *g, NAME(part) part, NAME(sums) sums,
                              NAME(coefficients) k, int what) {
    NAME(accumulators) t = {.used = 0};
    NAME(span) p = NAME(first_span)(g, part.start, part.stop);
    for (int64_t left = part.stop - part.start; left > 0; NAME(next_span)(g, &p, left)) {
        for (int64_t i = 0; i < part.channels; i++) {
            V u = {0}, w = {0};
            if (what & RELU) {
                u = NAME(splat)(k.u[i]);
                w = NAME(splat)(k.w[i]);
            }
            NAME(add_span)(g, p, part.first + i, NAME(splat)(sums.shift[i]), u, w, t.s + i, t.q + i,
                           what);
        }
        left -= p.length;
        t.used += p.length / (4 * LANES) + 4;
        if (t.used >= NAME(FLUSH_AFTER)) NAME(flush)(&t, part.channels);
    }
    NAME(flush)(&t, part.channels);
    memcpy(sums.s, t.s_total, (size_t)part.channels * sizeof(double));
    memcpy(sums.q, t.q_total, (size_t)part.channels * sizeof(double));
}

static void NAME(sum_part)(const NAME(group) *g, NAME(part) part, NAME(sums) sums,
                           NAME(coefficients) k) {
    SPECIALIZED(NAME(summed)(g), NAME(sum_part_as), g, part, sums, k)
}

INLINE void NAME(map_part_as)(const NAME(group) *g, NAME(part) part, NAME(coefficients) k,
                              int what) {
    NAME(span) p = NAME(first_span)(g, part.start, part.stop);
    for (int64_t left = part.stop - part.start; left > 0; NAME(next_span)(g, &p, left)) {
        for (int64_t i = 0; i < part.channels; i++)
            NAME(map_span)(g, p, part.first + i, NAME(terms_of)(NAME(coefficients_from)(k, i)),
                           what);
        left -= p.length;
    }
    if (g->streams) end_stream();
}

static void NAME(map_part)(const NAME(group) *g, NAME(part) part, NAME(coefficients) k) {
    SPECIALIZED(g->what, NAME(map_part_as), g, part, k)
}

/* What the sums of a channel are taken about: the mean of its first values that are data. */
static REAL NAME(plane_shift)(const NAME(group) *g, int64_t channel) {
    const int64_t n = least(LANES, g->S);
    I keep = NAME(numbers)() < (INTEGER)n;
    if (g->mask) keep &= NAME(load_mask)(g->mask, n);
    V sum = NAME(kept)(NAME(read)(g->x + channel * g->S, n), keep);
    double count = NAME(total)(NAME(kept)(NAME(splat)(1), keep));
    return (REAL)(NAME(total)(sum) / (count < 1 ? 1 : count));
}

static void NAME(plane_shifts)(const NAME(group) *g, int64_t first, int64_t channels, REAL *shift,
                               NAME(coefficients) k) {
    if (g->what & PAIRED)
        NAME(prepare_backward)(g, first, channels, shift, k);
    else
        for (int64_t i = 0; i < channels; i++) shift[i] = NAME(plane_shift)(g, first + i);
}

/* The sums that one part of all positions makes alone. */
static void NAME(sum_whole)(const NAME(group) *g, NAME(part) part, NAME(sums) sums,
                            NAME(coefficients) k) {
    NAME(plane_shifts)(g, part.first, part.channels, sums.shift, k);
    NAME(sum_part)(g, part, sums, k);
    if (!(g->what & PAIRED) && NAME(shift_is_far)(g, sums, part.channels)) {
        NAME(move_shift)(g, sums, part.channels);
        NAME(sum_part)(g, part, sums, k);
    }
}

/* Whole channels, in blocks that are still in cache when they are mapped. */
static void NAME(whole_channels)(int64_t begin, int64_t end, void *context) {
    const NAME(group) *g = context;
    REAL shift[BLOCK], memory[NAME(COEFFICIENTS) * BLOCK] = {0};
    double s[BLOCK], q[BLOCK];
    NAME(sums) sums = {shift, s, q};
    NAME(coefficients) k = NAME(coefficients_in)(memory, BLOCK);
    const int64_t positions = g->N * g->S;
    /* 256 KiB of input a block: with the output it stays in 1 MiB of second-level cache */
    const int64_t bytes = positions * (int64_t)sizeof(ELEMENT) * (g->what & PAIRED ? 2 : 1);
    const int64_t block = bytes > 262144 ? 1 : least(BLOCK, 262144 / bytes);
    for (int64_t first = begin; first < end; first += block) {
        NAME(part) part = {first, least(block, end - first), 0, positions};
        if (!g->given) NAME(sum_whole)(g, part, sums, k);
        NAME(finish)(g, first, part.channels, sums, k);
        if (g->out) NAME(map_part)(g, part, k);
    }
}

/* Channels that are too few for the threads: each is cut into `parts` ranges of positions. */
typedef struct {
    const NAME(group) *g;
    int64_t parts;
    NAME(sums) partial; /* s and q of (C, parts), shift of (C,) */
    NAME(coefficients) k;
} NAME(cut);

INLINE NAME(part) NAME(task_of)(const NAME(cut) *cut, int64_t task) {
    const int64_t positions = cut->g->N * cut->g->S, part = task % cut->parts;
    const int64_t share = positions / cut->parts, more = positions % cut->parts;
    return (NAME(part)){task / cut->parts, 1, share * part + least(part, more),
                        share * (part + 1) + least(part + 1, more)};
}

static void NAME(sum_tasks)(int64_t begin, int64_t end, void *context) {
    const NAME(cut) *cut = context;
    for (int64_t task = begin; task < end; task++) {
        NAME(part) part = NAME(task_of)(cut, task);
        NAME(sums) sums = {cut->partial.shift + part.first, cut->partial.s + task,
                           cut->partial.q + task};
        NAME(sum_part)(cut->g, part, sums, NAME(coefficients_from)(cut->k, part.first));
    }
}

static void NAME(map_tasks)(int64_t begin, int64_t end, void *context) {
    const NAME(cut) *cut = context;
    for (int64_t task = begin; task < end; task++) {
        NAME(part) part = NAME(task_of)(cut, task);
        NAME(map_part)(cut->g, part, NAME(coefficients_from)(cut->k, part.first));
    }
}

/* Sums of all channels about `sums.shift`, the parts added in their order. */
static void NAME(add_cut)(NAME(cut) *cut, NAME(sums) sums) {
    const int64_t C = cut->g->C, parts = cut->parts;
    in_parallel(cut->g->threads, C * parts, NAME(sum_tasks), cut);
    for (int64_t i = 0; i < C; i++) {
        sums.s[i] = sums.q[i] = 0;
        for (int64_t task = i * parts; task < (i + 1) * parts; task++) {
            sums.s[i] += cut->partial.s[task];
            sums.q[i] += cut->partial.q[task];
        }
    }
}

static void NAME(sum_cut)(NAME(cut) *cut, NAME(sums) sums) {
    const NAME(group) *g = cut->g;
    for (int64_t first = 0; first < g->C; first += BLOCK)
        NAME(plane_shifts)(g, first, least(BLOCK, g->C - first), sums.shift + first,
                           NAME(coefficients_from)(cut->k, first));
    NAME(add_cut)(cut, sums);
    if (!(g->what & PAIRED) && NAME(shift_is_far)(g, sums, g->C)) {
        NAME(move_shift)(g, sums, g->C);
        NAME(add_cut)(cut, sums);
    }
}

static void NAME(cut_channels)(const NAME(group) *g) {
    const int64_t C = g->C, parts = g->threads;
    double *doubles = malloc((size_t)(2 * C * (parts + 1)) * sizeof(double));
    REAL *reals = malloc((size_t)((1 + NAME(COEFFICIENTS)) * C) * sizeof(REAL));
    if (doubles && reals) {
        NAME(sums) sums = {reals, doubles, doubles + C};
        NAME(sums) partial = {reals, doubles + 2 * C, doubles + (2 + parts) * C};
        NAME(cut) cut = {g, parts, partial, NAME(coefficients_in)(reals + C, C)};
        if (!g->given) NAME(sum_cut)(&cut, sums);
        NAME(finish_all)(g, sums, cut.k);
        if (g->out) in_parallel(g->threads, C * parts, NAME(map_tasks), &cut);
    } else {
        atomic_store(g->out_of_memory, true);
    }
    free(doubles);
    free(reals);
}

static void NAME(planes)(NAME(group) *g) {
    int64_t most = (g->C + g->threads - 1) / g->threads; /* channels of the busiest thread */
    /* cutting reads a large input once more from memory, so a few idle threads are put up with */
    if (g->threads > 1 && 4 * most * g->threads > 5 * g->C)
        NAME(cut_channels)(g);
    else
        in_parallel(g->threads, g->C, NAME(whole_channels), g);
}
