/* Template: (M, C), many rows of channels: channels-last maps.
 *
 * Several rows are taken as one of `width` columns, so that the width is a multiple of the vector and
 * no channel count needs a tail; column j belongs to channel j % C. Only the end of the tensor may
 * be a partial row.
 */

typedef struct {
    const NAME(group) *g;
    int64_t together;          /* rows of the tensor in one of ours */
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

/* The lanes of the n columns from number j on that are data. */
INLINE I NAME(row_mask)(const NAME(table) *b, int64_t row, int64_t j, int64_t n, int what) {
    I keep = {0};
    if (!(what & MASKED)) return keep;
    const uint8_t *mask = b->g->mask + row * b->together;
    if (b->together == 1) return *mask ? ~keep : keep;
    for (int64_t l = 0; l < n; l++) keep[l] = mask[(j + l) / b->g->C] ? -1 : 0;
    return keep;
}

/* Adds `rows` rows to the sums of each column; two chains, so that additions need not wait. */
INLINE void NAME(add_rows)(const NAME(table) *b, int64_t row, int rows, REAL *sum, REAL *square,
                           int what) {
    const int64_t width = b->width;
    const NAME(group) *g = b->g;
    for (int64_t j = 0; j < width; j += LANES) {
        const V shift = NAME(load_real)(b->shift + j);
        const V u = what & RELU ? NAME(load_real)(b->k.u + j) : shift;
        const V w = what & RELU ? NAME(load_real)(b->k.w + j) : shift;
        V s0 = NAME(load_real)(sum + j), q0 = NAME(load_real)(square + j), s1 = {0}, q1 = {0};
        for (int r = 0; r < rows; r++) {
            const int64_t at = (row + r) * width + j;
            FETCH(NAME(moved)(g->x + at, NAME(ROWS_AHEAD) * width));
            if (what & PAIRED) FETCH(NAME(moved)(g->dy + at, NAME(ROWS_AHEAD) * width));
            I keep = NAME(row_mask)(b, row + r, j, LANES, what);
            NAME(add_at)(g, at, LANES, shift, u, w, keep, r % 2 ? &s1 : &s0, r % 2 ? &q1 : &q0,
                         what);
        }
        NAME(store_real)(sum + j, s0 + s1);
        NAME(store_real)(square + j, q0 + q1);
    }
}

/* Adds the partial row at the end of the tensor. */
INLINE void NAME(add_rest)(const NAME(table) *b, REAL *sum, REAL *square, int what) {
    for (int64_t j = 0; j < b->rest; j += LANES) {
        const int64_t n = least(LANES, b->rest - j), at = b->rows * b->width + j;
        const V shift = NAME(load_real)(b->shift + j);
        const V u = what & RELU ? NAME(load_real)(b->k.u + j) : shift;
        const V w = what & RELU ? NAME(load_real)(b->k.w + j) : shift;
        V s = NAME(load_real)(sum + j), q = NAME(load_real)(square + j);
        I keep = NAME(numbers)() < (INTEGER)n;
        if (what & MASKED) keep &= NAME(row_mask)(b, b->rows, j, n, what);
        NAME(add_at)(b->g, at, n, shift, u, w, keep, &s, &q, what | PARTIAL);
        NAME(store_real)(sum + j, s);
        NAME(store_real)(square + j, q);
    }
}

/* Moves the sums of columns into the sums of channels. */
static void NAME(fold)(const NAME(table) *b, REAL *columns, double *channels) {
    const int64_t C = b->g->C;
    for (int64_t j = 0; j < b->width; j += C)
        for (int64_t c = 0; c < C; c++) channels[c] += columns[j + c];
    memset(columns, 0, (size_t)b->width * sizeof(REAL));
}

INLINE void NAME(sum_rows_as)(const NAME(table) *b, int64_t part, int what) {
    const int64_t C = b->g->C, width = b->width, stop = NAME(first_row)(b, part + 1);
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
        if (rows == NAME(ROWS))
            NAME(add_rows)(b, row, NAME(ROWS), sum, square, what);
        else
            NAME(add_rows)(b, row, 1, sum, square, what);
    }
    if (part == b->parts - 1) NAME(add_rest)(b, sum, square, what);
    NAME(fold)(b, sum, s);
    NAME(fold)(b, square, q);
}

static void NAME(sum_rows)(int64_t begin, int64_t end, void *context) {
    const NAME(table) *b = context;
    for (int64_t part = begin; part < end; part++) {
        SPECIALIZED(NAME(summed)(b->g), NAME(sum_rows_as), b, part)
    }
}

INLINE void NAME(map_block)(const NAME(table) *b, int64_t row, int rows, int what) {
    const int64_t width = b->width;
    const NAME(group) *g = b->g;
    for (int64_t j = 0; j < width; j += LANES) {
        const NAME(terms) k = NAME(terms_at)(b->k, j, what);
        for (int r = 0; r < rows; r++) {
            const int64_t at = (row + r) * width + j;
            FETCH(NAME(moved)(g->x + at, -NAME(ROWS_BEHIND) * width));
            if (what & PAIRED) FETCH(NAME(moved)(g->dy + at, -NAME(ROWS_BEHIND) * width));
            NAME(map_at)(g, at, LANES, k, NAME(row_mask)(b, row + r, j, LANES, what), what);
        }
    }
}

/* From the last row to the first: the rows that were summed last are still in cache. */
INLINE void NAME(map_rows_as)(const NAME(table) *b, int64_t part, int what) {
    const int64_t start = NAME(first_row)(b, part);
    int64_t row = NAME(first_row)(b, part + 1);
    for (int64_t j = 0; part == b->parts - 1 && j < b->rest; j += LANES) {
        const int64_t n = least(LANES, b->rest - j);
        NAME(map_at)(b->g, b->rows * b->width + j, n, NAME(terms_at)(b->k, j, what),
                     NAME(row_mask)(b, b->rows, j, n, what), what);
    }
    for (; row - start >= 4; row -= 4) NAME(map_block)(b, row - 4, 4, what);
    for (; row > start; row--) NAME(map_block)(b, row - 1, 1, what);
    if (b->g->streams) end_stream();
}

static void NAME(map_rows)(int64_t begin, int64_t end, void *context) {
    const NAME(table) *b = context;
    for (int64_t part = begin; part < end; part++) {
        SPECIALIZED(b->g->what, NAME(map_rows_as), b, part)
    }
}

/* Repeats the C values in front of each array of `width`. */
static void NAME(repeat)(const NAME(table) *b, REAL *values, int arrays) {
    const int64_t C = b->g->C;
    for (int i = 0; i < arrays; i++)
        for (int64_t j = C; j < b->width; j += C)
            memcpy(values + i * b->width + j, values + i * b->width, (size_t)C * sizeof(REAL));
}

/* Sums of all channels about `sums.shift`, the parts added in their order. */
static void NAME(sum_table)(NAME(table) *b, NAME(sums) sums) {
    const int64_t C = b->g->C;
    memcpy(b->shift, sums.shift, (size_t)C * sizeof(REAL));
    NAME(repeat)(b, b->shift, 1);
    in_parallel(b->g->threads, b->parts, NAME(sum_rows), b);
    memcpy(sums.s, b->partial, (size_t)(2 * C) * sizeof(double)); /* q lies behind s in both */
    for (int64_t part = 1; part < b->parts; part++)
        for (int64_t i = 0; i < 2 * C; i++) sums.s[i] += b->partial[2 * part * C + i];
}

/* What the sums are taken about: the mean of the first rows that are data. */
static void NAME(row_shift)(const NAME(group) *g, double *scratch, REAL *shift) {
    const int64_t C = g->C, rows = least(16, g->N * g->S);
    double count = 0;
    memset(scratch, 0, (size_t)C * sizeof(double));
    for (int64_t row = 0; row < rows; row++) {
        if (g->mask && !g->mask[row]) continue;
        count++;
        for (int64_t c = 0; c < C; c += LANES) {
            const int64_t n = least(LANES, C - c);
            V v = NAME(read)(g->x + row * C + c, n);
            for (int64_t l = 0; l < n; l++) scratch[c + l] += v[l];
        }
    }
    for (int64_t c = 0; c < C; c++) shift[c] = (REAL)(scratch[c] / (count < 1 ? 1 : count));
}

static void NAME(row_shifts)(const NAME(table) *b, NAME(sums) sums) {
    const NAME(group) *g = b->g;
    if (!(g->what & PAIRED)) {
        NAME(row_shift)(g, sums.s, sums.shift);
        return;
    }
    for (int64_t i = 0; i < g->C; i += BLOCK)
        NAME(prepare_backward)(g, i, least(BLOCK, g->C - i), sums.shift + i,
                               NAME(coefficients_from)(b->k, i));
    if (g->what & RELU) NAME(repeat)(b, b->k.u, 2); /* w lies behind u */
}

static void NAME(sum_all)(NAME(table) *b, NAME(sums) sums) {
    const NAME(group) *g = b->g;
    NAME(row_shifts)(b, sums);
    NAME(sum_table)(b, sums);
    if (!(g->what & PAIRED) && NAME(shift_is_far)(g, sums, g->C)) {
        NAME(move_shift)(g, sums, g->C);
        NAME(sum_table)(b, sums);
    }
}

static void NAME(run_table)(NAME(table) *b, NAME(sums) sums) {
    const NAME(group) *g = b->g;
    if (!g->given) NAME(sum_all)(b, sums);
    NAME(finish_all)(g, sums, b->k);
    if (!g->out) return;
    NAME(repeat)(b, b->k.m, 4); /* a, b and c lie behind m */
    if (g->given && g->what & RELU) NAME(repeat)(b, b->k.u, 2);
    in_parallel(g->threads, b->parts, NAME(map_rows), b);
}

static void NAME(rows)(NAME(group) *g) {
    const int64_t C = g->C, M = g->N * g->S;
    int64_t together = 1;
    /* four vectors at least, so that additions to one do not wait for those before */
    while (C * together % LANES || C * together < 4 * LANES) together *= 2;
    const int64_t width = C * together;
    NAME(table) b = {.g = g, .together = together, .width = width};
    b.rows = M / together;
    b.rest = M % together * C;
    b.parts = least(g->threads, b.rows > 0 ? b.rows : 1);
    b.lanes = malloc((size_t)((2 * b.parts + 1 + NAME(COEFFICIENTS)) * width + C) * sizeof(REAL));
    b.partial = malloc((size_t)(2 * (b.parts + 1) * C) * sizeof(double));
    if (b.lanes && b.partial) {
        double *totals = b.partial + 2 * b.parts * C;
        b.shift = b.lanes + 2 * b.parts * width;
        b.k = NAME(coefficients_in)(b.shift + width, width);
        NAME(sums) sums = {b.shift + (1 + NAME(COEFFICIENTS)) * width, totals, totals + C};
        NAME(run_table)(&b, sums);
    } else {
        atomic_store(g->out_of_memory, true);
    }
    free(b.lanes);
    free(b.partial);
}
