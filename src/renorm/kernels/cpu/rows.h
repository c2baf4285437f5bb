/* Template: (M, C), rows of channels: 2-D input and channels-last maps.
 *
 * Several rows are taken as one of `width` columns, so that the width is a multiple of the vector and
 * no channel count needs a tail; column j belongs to channel j % C. Only the end of the tensor may
 * be a partial row.
 */

typedef struct {
    step *t;
    int64_t width, rows, rest; /* whole rows of `width` columns, and the columns left over */
    int64_t parts;
    REAL *shift;               /* (width,) */
    REAL *lanes;               /* (parts, 2, width): sums that are not yet in doubles */
    double *partial;           /* (parts, 2, C) */
    NAME(coefficients) k;      /* (width,) each */
} NAME(table);

/* Rows fetched ahead: blocks of rows are read across, which the processor's own prefetcher follows
 * badly. */
enum { NAME(ROWS) = 8, NAME(FLUSH_ROWS) = 128, NAME(ROWS_AHEAD) = 16, NAME(ROWS_BEHIND) = 8 };

INLINE const void *NAME(moved)(const ELEMENT *p, int64_t columns) {
    return (const void *)((uintptr_t)p + (uintptr_t)columns * sizeof(ELEMENT));
}

INLINE int64_t NAME(first_row)(const NAME(table) *b, int64_t part) {
    return b->rows / b->parts * part + least(part, b->rows % b->parts);
}

/* Adds `rows` rows to the sums of each column; two chains, so that additions need not wait. */
INLINE void NAME(add_rows)(const NAME(table) *b, const ELEMENT *x, const ELEMENT *dy, int rows,
                           REAL *sum, REAL *square, bool paired) {
    const int64_t width = b->width;
    for (int64_t j = 0; j < width; j += LANES) {
        const V shift = NAME(load_real)(b->shift + j);
        V s0 = NAME(load_real)(sum + j), q0 = NAME(load_real)(square + j), s1 = {0}, q1 = {0};
        for (int r = 0; r < rows; r++) {
            V v = NAME(load)(x + r * width + j) - shift;
            V w = paired ? NAME(load)(dy + r * width + j) : v;
            FETCH(NAME(moved)(x, (r + NAME(ROWS_AHEAD)) * width + j));
            if (paired) FETCH(NAME(moved)(dy, (r + NAME(ROWS_AHEAD)) * width + j));
            NAME(add)(r % 2 ? &s1 : &s0, r % 2 ? &q1 : &q0, v, w, paired);
        }
        NAME(store_real)(sum + j, s0 + s1);
        NAME(store_real)(square + j, q0 + q1);
    }
}

/* Adds the partial row at the end of the tensor. */
INLINE void NAME(add_rest)(const NAME(table) *b, const ELEMENT *x, const ELEMENT *dy, REAL *sum,
                           REAL *square, bool paired) {
    for (int64_t j = 0; j < b->rest; j += LANES) {
        int64_t n = least(LANES, b->rest - j);
        V v = n == LANES ? NAME(load)(x + j) : NAME(load_part)(x + j, n);
        V w = v, s = NAME(load_real)(sum + j), q = NAME(load_real)(square + j);
        if (paired) w = n == LANES ? NAME(load)(dy + j) : NAME(load_part)(dy + j, n);
        I mask = NAME(numbers)() < (INTEGER)n;
        v = NAME(kept)(v - NAME(load_real)(b->shift + j), mask);
        NAME(add)(&s, &q, v, NAME(kept)(w, mask), paired);
        NAME(store_real)(sum + j, s);
        NAME(store_real)(square + j, q);
    }
}

/* Moves the sums of columns into the sums of channels. */
static void NAME(fold)(const NAME(table) *b, REAL *columns, double *channels) {
    const int64_t C = b->t->C;
    for (int64_t j = 0; j < b->width; j += C)
        for (int64_t c = 0; c < C; c++) channels[c] += columns[j + c];
    memset(columns, 0, (size_t)b->width * sizeof(REAL));
}

INLINE void NAME(sum_rows_of)(const NAME(table) *b, int64_t part, bool paired) {
    const int64_t C = b->t->C, width = b->width, stop = NAME(first_row)(b, part + 1);
    const ELEMENT *x = b->t->x, *dy = b->t->dy;
    REAL *sum = b->lanes + 2 * part * width, *square = sum + width;
    double *s = b->partial + 2 * part * C, *q = s + C;
    int64_t used = 0;
    memset(sum, 0, (size_t)(2 * width) * sizeof(REAL));
    memset(s, 0, (size_t)(2 * C) * sizeof(double));
    for (int64_t row = NAME(first_row)(b, part), rows; row < stop; row += rows, used += rows) {
        if (used >= NAME(FLUSH_ROWS)) {
            NAME(fold)(b, sum, s);
            NAME(fold)(b, square, q);
            used = 0;
        }
        rows = stop - row >= NAME(ROWS) ? NAME(ROWS) : 1;
        const ELEMENT *at = x + row * width, *beside = paired ? dy + row * width : NULL;
        if (rows == NAME(ROWS))
            NAME(add_rows)(b, at, beside, NAME(ROWS), sum, square, paired);
        else
            NAME(add_rows)(b, at, beside, 1, sum, square, paired);
    }
    if (part == b->parts - 1)
        NAME(add_rest)(b, x + stop * width, paired ? dy + stop * width : NULL, sum, square, paired);
    NAME(fold)(b, sum, s);
    NAME(fold)(b, square, q);
}

static void NAME(sum_rows)(int64_t begin, int64_t end, void *context) {
    const NAME(table) *b = context;
    for (int64_t part = begin; part < end; part++) {
        if (b->t->dy)
            NAME(sum_rows_of)(b, part, true);
        else
            NAME(sum_rows_of)(b, part, false);
    }
}

INLINE V NAME(mapped_at)(const NAME(table) *b, int64_t j, V x, V dy, bool paired) {
    V a = paired ? NAME(load_real)(b->k.a + j) : dy;
    return NAME(mapped)(x - NAME(load_real)(b->k.m + j), dy, a, NAME(load_real)(b->k.b + j),
                        NAME(load_real)(b->k.c + j), paired);
}

INLINE void NAME(map_rows_at)(const NAME(table) *b, int64_t row, int rows, bool paired) {
    const int64_t width = b->width;
    const ELEMENT *x = (const ELEMENT *)b->t->x + row * width;
    const ELEMENT *dy = paired ? (const ELEMENT *)b->t->dy + row * width : NULL;
    ELEMENT *out = (ELEMENT *)b->t->out + row * width;
    for (int64_t j = 0; j < width; j += LANES)
        for (int r = 0; r < rows; r++) {
            V v = NAME(load)(x + r * width + j);
            V w = paired ? NAME(load)(dy + r * width + j) : v;
            FETCH(NAME(moved)(x, (r - NAME(ROWS_BEHIND)) * width + j));
            if (paired) FETCH(NAME(moved)(dy, (r - NAME(ROWS_BEHIND)) * width + j));
            NAME(store)(out + r * width + j, NAME(mapped_at)(b, j, v, w, paired));
        }
}

INLINE void NAME(map_rest)(const NAME(table) *b, bool paired) {
    const int64_t start = b->rows * b->width;
    const ELEMENT *x = (const ELEMENT *)b->t->x + start;
    const ELEMENT *dy = paired ? (const ELEMENT *)b->t->dy + start : NULL;
    ELEMENT *out = (ELEMENT *)b->t->out + start;
    for (int64_t j = 0; j < b->rest; j += LANES) {
        int64_t n = least(LANES, b->rest - j);
        V v = n == LANES ? NAME(load)(x + j) : NAME(load_part)(x + j, n);
        V w = v;
        if (paired) w = n == LANES ? NAME(load)(dy + j) : NAME(load_part)(dy + j, n);
        v = NAME(mapped_at)(b, j, v, w, paired);
        if (n == LANES)
            NAME(store)(out + j, v);
        else
            NAME(store_part)(out + j, v, n);
    }
}

/* From the last row to the first: the rows that were summed last are still in cache. */
INLINE void NAME(map_rows_of)(const NAME(table) *b, int64_t part, bool paired) {
    const int64_t start = NAME(first_row)(b, part);
    int64_t row = NAME(first_row)(b, part + 1);
    if (part == b->parts - 1) NAME(map_rest)(b, paired);
    for (; row - start >= 4; row -= 4) NAME(map_rows_at)(b, row - 4, 4, paired);
    for (; row > start; row--) NAME(map_rows_at)(b, row - 1, 1, paired);
}

static void NAME(map_rows)(int64_t begin, int64_t end, void *context) {
    const NAME(table) *b = context;
    for (int64_t part = begin; part < end; part++) {
        if (b->t->dy)
            NAME(map_rows_of)(b, part, true);
        else
            NAME(map_rows_of)(b, part, false);
    }
}

/* Sums of all channels about `sums.shift`, the parts added in their order. */
static void NAME(sum_table)(NAME(table) *b, NAME(sums) sums) {
    const int64_t C = b->t->C;
    for (int64_t j = 0; j < b->width; j += C)
        memcpy(b->shift + j, sums.shift, (size_t)C * sizeof(REAL));
    in_parallel(b->t->threads, b->parts, NAME(sum_rows), b);
    memcpy(sums.s, b->partial, (size_t)(2 * C) * sizeof(double)); /* q lies behind s in both */
    for (int64_t part = 1; part < b->parts; part++)
        for (int64_t i = 0; i < 2 * C; i++) sums.s[i] += b->partial[2 * part * C + i];
}

/* What the sums are taken about: the mean of the first rows, or the saved mean. */
static void NAME(row_shift)(const step *t, double *scratch, REAL *shift) {
    const int64_t C = t->C, rows = least(16, t->N);
    if (t->dy) {
        memcpy(shift, t->mean, (size_t)C * sizeof(REAL));
        return;
    }
    memset(scratch, 0, (size_t)C * sizeof(double));
    for (int64_t row = 0; row < rows; row++)
        for (int64_t c = 0; c < C; c += LANES) {
            const ELEMENT *x = (const ELEMENT *)t->x + row * C + c;
            int64_t n = least(LANES, C - c);
            V v = n == LANES ? NAME(load)(x) : NAME(load_part)(x, n);
            for (int64_t l = 0; l < n; l++) scratch[c + l] += v[l];
        }
    for (int64_t c = 0; c < C; c++) shift[c] = (REAL)(scratch[c] / (double)rows);
}

/* Repeats the C coefficients in front for all columns. */
static void NAME(repeat)(const NAME(table) *b) {
    REAL *const all[] = {b->k.m, b->k.a, b->k.b, b->k.c};
    const int64_t C = b->t->C;
    for (int i = 0; i < 4; i++)
        for (int64_t j = C; j < b->width; j += C) memcpy(all[i] + j, all[i], (size_t)C * sizeof(REAL));
}

static void NAME(run_table)(NAME(table) *b, NAME(sums) sums) {
    step *t = b->t;
    NAME(row_shift)(t, sums.s, sums.shift);
    NAME(sum_table)(b, sums);
    if (!t->dy && NAME(shift_is_far)(t, sums, t->C)) {
        NAME(move_shift)(t, sums, t->C);
        NAME(sum_table)(b, sums);
    }
    NAME(finish_all)(t, sums, b->k);
    if (!t->out) return;
    NAME(repeat)(b);
    in_parallel(t->threads, b->parts, NAME(map_rows), b);
}

static void NAME(rows)(step *t) {
    int64_t together = 1;
    /* four vectors at least, so that additions to one do not wait for those before */
    while (t->C * together % LANES || t->C * together < 4 * LANES) together *= 2;
    const int64_t C = t->C, width = C * together;
    NAME(table) b = {.t = t, .width = width};
    b.rows = t->N / together;
    b.rest = t->N % together * C;
    b.parts = least(t->threads, b.rows > 0 ? b.rows : 1);
    b.lanes = malloc((size_t)((2 * b.parts + 5) * width + C) * sizeof(REAL));
    b.partial = malloc((size_t)(2 * (b.parts + 1) * C) * sizeof(double));
    if (b.lanes && b.partial) {
        REAL *free_reals = b.lanes + 2 * b.parts * width;
        double *totals = b.partial + 2 * b.parts * C;
        NAME(coefficients) k = {free_reals, free_reals + width, free_reals + 2 * width,
                                free_reals + 3 * width};
        b.k = k;
        b.shift = free_reals + 4 * width;
        NAME(sums) sums = {b.shift + width, totals, totals + C};
        NAME(run_table)(&b, sums);
    } else {
        atomic_store(&t->out_of_memory, true);
    }
    free(b.lanes);
    free(b.partial);
}
