/* Template: (N, C, S) with S > 1, where the values of a channel lie in planes of S. */

/* Running sums of one channel: in lanes, moved into doubles before rounding builds up. */
typedef struct {
    V s0, s1, s2, s3, q0, q1, q2, q3;
    double s, q;
    int64_t used; /* values added to each lane since the last flush */
} NAME(accumulator);

/* A lane takes at most this many values in its own dtype: their rounding is below 1e-6 of the sum
 * of magnitudes. */
enum { NAME(FLUSH_AFTER) = 64 };

INLINE void NAME(flush)(NAME(accumulator) *t) {
    t->s += NAME(total)((t->s0 + t->s1) + (t->s2 + t->s3));
    t->q += NAME(total)((t->q0 + t->q1) + (t->q2 + t->q3));
    t->s0 = t->s1 = t->s2 = t->s3 = t->q0 = t->q1 = t->q2 = t->q3 = (V){0};
    t->used = 0;
}

INLINE void NAME(add)(V *s, V *q, V v, V dy, bool paired) {
    *s += paired ? dy : v;
    *q += paired ? dy * v : v * v;
}

#define ADD(k, at)                                                                                 \
    NAME(add)(&t->s##k, &t->q##k, NAME(load)(x + (at)) - shift,                                    \
              paired ? NAME(load)(dy + (at)) : shift, paired)

/* The last n % LANES values: a whole vector that ends with them, without what was added before. */
INLINE void NAME(add_tail)(NAME(accumulator) *t, const ELEMENT *x, const ELEMENT *dy, int64_t n,
                           int64_t rest, V shift, bool paired) {
    V v, w = shift;
    I mask;
    if (n >= LANES) {
        v = NAME(load)(x + n - LANES);
        if (paired) w = NAME(load)(dy + n - LANES);
        mask = NAME(numbers)() >= (INTEGER)(LANES - rest);
    } else {
        v = NAME(load_part)(x, n);
        if (paired) w = NAME(load_part)(dy, n);
        mask = NAME(numbers)() < (INTEGER)n;
    }
    v = NAME(kept)(v - shift, mask);
    NAME(add)(&t->s1, &t->q1, v, NAME(kept)(w, mask), paired);
}

INLINE void NAME(add_piece)(NAME(accumulator) *t, const ELEMENT *x, const ELEMENT *dy, int64_t n,
                            V shift, bool paired) {
    int64_t i = 0;
    while (n - i >= 4 * LANES) {
        int64_t stop = i + least((n - i) / (4 * LANES), NAME(FLUSH_AFTER) - t->used) * 4 * LANES;
        t->used += (stop - i) / (4 * LANES);
        for (; i < stop; i += 4 * LANES) {
            ADD(0, i);
            ADD(1, i + LANES);
            ADD(2, i + 2 * LANES);
            ADD(3, i + 3 * LANES);
        }
        if (t->used >= NAME(FLUSH_AFTER)) NAME(flush)(t);
    }
    if (n - i >= 2 * LANES) {
        ADD(0, i);
        ADD(1, i + LANES);
        i += 2 * LANES;
    }
    if (n - i >= LANES) {
        ADD(2, i);
        i += LANES;
    }
    if (i < n) NAME(add_tail)(t, x, dy, n, n - i, shift, paired);
    t->used += 2;
    if (t->used >= NAME(FLUSH_AFTER)) NAME(flush)(t);
}

#undef ADD

INLINE V NAME(mapped)(V v, V dy, V a, V b, V c, bool paired) {
    V result = b * v + c;
    return paired ? a * dy + result : result;
}

INLINE void NAME(map_piece)(ELEMENT *out, const ELEMENT *x, const ELEMENT *dy, int64_t n,
                            NAME(coefficients) k, bool paired) {
    const V m = NAME(splat)(*k.m), a = NAME(splat)(*k.a);
    const V b = NAME(splat)(*k.b), c = NAME(splat)(*k.c);
    if (n < LANES) {
        V w = paired ? NAME(load_part)(dy, n) : m;
        V y = NAME(mapped)(NAME(load_part)(x, n) - m, w, a, b, c, paired);
        NAME(store_part)(out, y, n);
        return;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t at = least(i, n - LANES); /* the last vector overlaps and writes the same again */
        V w = paired ? NAME(load)(dy + at) : m;
        NAME(store)(out + at, NAME(mapped)(NAME(load)(x + at) - m, w, a, b, c, paired));
    }
}

/* A piece of a channel: the values from position `at` on that lie together, up to `stop`. */
typedef struct {
    int64_t offset, length;
} NAME(piece);

INLINE NAME(piece) NAME(piece_at)(const step *t, int64_t channel, int64_t at, int64_t stop) {
    int64_t n = at / t->S, i = at % t->S;
    return (NAME(piece)){(n * t->C + channel) * t->S + i, least(t->S - i, stop - at)};
}

/* Sums over positions [start, stop) of one channel, of its N * S. */
INLINE void NAME(sum_channel)(const step *t, int64_t channel, int64_t start, int64_t stop,
                              REAL shift, double *s, double *q, bool paired) {
    NAME(accumulator) sums = {.s = 0};
    NAME(piece) p;
    for (int64_t at = start; at < stop; at += p.length) {
        p = NAME(piece_at)(t, channel, at, stop);
        const ELEMENT *dy = paired ? (const ELEMENT *)t->dy + p.offset : NULL;
        NAME(add_piece)(&sums, (const ELEMENT *)t->x + p.offset, dy, p.length,
                        NAME(splat)(shift), paired);
    }
    NAME(flush)(&sums);
    *s = sums.s;
    *q = sums.q;
}

INLINE void NAME(map_channel)(const step *t, int64_t channel, int64_t start, int64_t stop,
                              NAME(coefficients) k, bool paired) {
    NAME(piece) p;
    for (int64_t at = start; at < stop; at += p.length) {
        p = NAME(piece_at)(t, channel, at, stop);
        const ELEMENT *dy = paired ? (const ELEMENT *)t->dy + p.offset : NULL;
        NAME(map_piece)((ELEMENT *)t->out + p.offset, (const ELEMENT *)t->x + p.offset, dy,
                        p.length, k, paired);
    }
}

/* One copy of each loop for the forward and one for the backward. */
static void NAME(sum_range)(const step *t, int64_t channel, int64_t start, int64_t stop, REAL shift,
                            double *s, double *q) {
    if (t->dy)
        NAME(sum_channel)(t, channel, start, stop, shift, s, q, true);
    else
        NAME(sum_channel)(t, channel, start, stop, shift, s, q, false);
}

static void NAME(map_range)(const step *t, int64_t channel, int64_t start, int64_t stop,
                            NAME(coefficients) all, int64_t index) {
    NAME(coefficients) k = {all.m + index, all.a + index, all.b + index, all.c + index};
    if (t->dy)
        NAME(map_channel)(t, channel, start, stop, k, true);
    else
        NAME(map_channel)(t, channel, start, stop, k, false);
}

/* What the sums are taken about: the mean of the channel's first values, or the saved mean. */
static REAL NAME(plane_shift)(const step *t, int64_t channel) {
    if (t->dy) return ((const REAL *)t->mean)[channel];
    const ELEMENT *x = (const ELEMENT *)t->x + channel * t->S;
    int64_t n = least(64, t->S);
    double sum = 0;
    for (int64_t i = 0; i < n; i += LANES)
        sum += NAME(total)(n - i >= LANES ? NAME(load)(x + i) : NAME(load_part)(x + i, n - i));
    return (REAL)(sum / (double)n);
}

/* Whole channels, in blocks that are still in cache when they are mapped. */
static void NAME(whole_channels)(int64_t begin, int64_t end, void *context) {
    step *t = context;
    REAL shift[BLOCK], m[BLOCK], a[BLOCK], b[BLOCK], c[BLOCK];
    double s[BLOCK], q[BLOCK];
    NAME(sums) sums = {shift, s, q};
    NAME(coefficients) k = {m, a, b, c};
    const int64_t positions = t->N * t->S;
    /* 256 KiB of input a block: with the output it stays in 1 MiB of second-level cache */
    const int64_t bytes = positions * (int64_t)sizeof(ELEMENT) * (t->dy ? 2 : 1);
    const int64_t block = bytes > 262144 ? 1 : least(BLOCK, 262144 / bytes);
    for (int64_t first = begin; first < end; first += block) {
        int64_t channels = least(block, end - first);
        for (int64_t i = 0; i < channels; i++) {
            NAME(sums) one = {shift + i, s + i, q + i};
            shift[i] = NAME(plane_shift)(t, first + i);
            NAME(sum_range)(t, first + i, 0, positions, shift[i], s + i, q + i);
            if (!t->dy && NAME(shift_is_far)(t, one, 1)) {
                NAME(move_shift)(t, one, 1);
                NAME(sum_range)(t, first + i, 0, positions, shift[i], s + i, q + i);
            }
        }
        NAME(finish)(t, first, channels, sums, k);
        if (!t->out) continue;
        for (int64_t i = 0; i < channels; i++) NAME(map_range)(t, first + i, 0, positions, k, i);
    }
}

/* Channels that are too few for the threads: each is cut into `parts` ranges of positions. */
typedef struct {
    step *t;
    int64_t parts;
    NAME(sums) partial; /* s and q of (C, parts), shift of (C,) */
    NAME(coefficients) k;
} NAME(cut);

INLINE int64_t NAME(cut_at)(const NAME(cut) *cut, int64_t part) {
    int64_t positions = cut->t->N * cut->t->S;
    return positions / cut->parts * part + least(part, positions % cut->parts);
}

static void NAME(sum_parts)(int64_t begin, int64_t end, void *context) {
    const NAME(cut) *cut = context;
    for (int64_t task = begin; task < end; task++) {
        int64_t channel = task / cut->parts, part = task % cut->parts;
        NAME(sum_range)(cut->t, channel, NAME(cut_at)(cut, part), NAME(cut_at)(cut, part + 1),
                        cut->partial.shift[channel], cut->partial.s + task, cut->partial.q + task);
    }
}

static void NAME(map_parts)(int64_t begin, int64_t end, void *context) {
    const NAME(cut) *cut = context;
    for (int64_t task = begin; task < end; task++) {
        int64_t channel = task / cut->parts, part = task % cut->parts;
        NAME(map_range)(cut->t, channel, NAME(cut_at)(cut, part), NAME(cut_at)(cut, part + 1),
                        cut->k, channel);
    }
}

/* Sums of all channels, the parts added in their order. */
static void NAME(sum_cut)(NAME(cut) *cut, NAME(sums) sums) {
    in_parallel(cut->t->threads, cut->t->C * cut->parts, NAME(sum_parts), cut);
    for (int64_t i = 0; i < cut->t->C; i++) {
        sums.s[i] = sums.q[i] = 0;
        for (int64_t part = 0; part < cut->parts; part++) {
            sums.s[i] += cut->partial.s[i * cut->parts + part];
            sums.q[i] += cut->partial.q[i * cut->parts + part];
        }
    }
}

static void NAME(cut_channels)(step *t) {
    const int64_t C = t->C, parts = t->threads;
    double *doubles = malloc((size_t)(2 * C * (parts + 1)) * sizeof(double));
    REAL *reals = malloc((size_t)(5 * C) * sizeof(REAL));
    if (doubles && reals) {
        NAME(sums) sums = {reals, doubles, doubles + C};
        NAME(coefficients) k = {reals + C, reals + 2 * C, reals + 3 * C, reals + 4 * C};
        NAME(sums) partial = {reals, doubles + 2 * C, doubles + (2 + parts) * C};
        NAME(cut) cut = {t, parts, partial, k};
        for (int64_t i = 0; i < C; i++) reals[i] = NAME(plane_shift)(t, i);
        NAME(sum_cut)(&cut, sums);
        if (!t->dy && NAME(shift_is_far)(t, sums, C)) {
            NAME(move_shift)(t, sums, C);
            NAME(sum_cut)(&cut, sums);
        }
        NAME(finish_all)(t, sums, k);
        if (t->out) in_parallel(t->threads, C * parts, NAME(map_parts), &cut);
    } else {
        atomic_store(&t->out_of_memory, true);
    }
    free(doubles);
    free(reals);
}

static void NAME(planes)(step *t) {
    int64_t most = (t->C + t->threads - 1) / t->threads; /* channels of the busiest thread */
    /* cutting reads a large input once more from memory, so a few idle threads are put up with */
    if (t->threads > 1 && 4 * most * t->threads > 5 * t->C)
        NAME(cut_channels)(t);
    else
        in_parallel(t->threads, t->C, NAME(whole_channels), t);
}
