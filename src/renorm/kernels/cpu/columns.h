/* Template: (M, C), few rows of channels: 2-D input and small channels-last maps.
 *
 * A block of columns is summed over all rows, in registers, and mapped while it is in cache.
 */

enum { NAME(TOGETHER) = 4, NAME(COLUMN_FLUSH) = 64, NAME(FETCHED_ROWS) = 8 };

/* Rows of a power of two of bytes lie in few sets of a cache: more of them would drive each other out.
 * Measured: with 3,136 rows of 2 KiB the forward took 2.7 times that of the other way, with 392 rows
 * of 4 KiB nine tenths of it. */
enum { NAME(MOST_ROWS) = 1024 };

/* Channels in a block that stays in cache between its passes and leaves no thread idle; 0 if there
 * is none. */
static int64_t NAME(columns_per_block)(const NAME(group) *g) {
    if (g->N * g->S > NAME(MOST_ROWS)) return 0;
    for (int64_t block = BLOCK; block >= BLOCK / 2; block /= 2) {
        const int64_t blocks = (g->C + block - 1) / block;
        const int64_t most = (blocks + g->threads - 1) / g->threads;
        if (g->threads == 1 || 4 * most * g->threads <= 5 * blocks) return block;
    }
    return 0;
}

/* Lanes [j, j + n) of row `row`, all of them data or none. */
INLINE I NAME(column_mask)(const NAME(group) *g, int64_t row, int what) {
    return what & MASKED && !g->mask[row] ? (I){0} : ~(I){0};
}

/* Sums of `vectors` vectors of columns, of which the last may be partial, from column j on. */
INLINE void NAME(sum_columns)(const NAME(group) *g, int64_t j, int64_t n, int vectors,
                              const REAL *shift, const REAL *u, const REAL *w, double *s,
                              double *q, int what) {
    const int64_t M = g->N * g->S;
    V sums[NAME(TOGETHER)] = {{0}}, squares[NAME(TOGETHER)] = {{0}};
    REAL lanes[LANES];
    const int part = n < LANES ? PARTIAL : 0;
    const I some = NAME(numbers)() < (INTEGER)n;
    for (int64_t stop = 0, row = 0; row < M;) {
        stop = least(M, row + NAME(COLUMN_FLUSH));
        for (; row < stop; row++) {
            const I keep = NAME(column_mask)(g, row, what) & some;
            UNROLLED
            for (int i = 0; i < vectors; i++) {
                const int64_t at = row * g->C + j + i * LANES;
                FETCH((uintptr_t)(g->x + at) + (uintptr_t)(NAME(FETCHED_ROWS) * g->C) * sizeof(ELEMENT));
                NAME(add_at)(g, at, n, NAME(load_real)(shift + i * LANES),
                             NAME(load_real)(u + i * LANES), NAME(load_real)(w + i * LANES), keep,
                             sums + i, squares + i, what | part);
            }
        }
        UNROLLED
        for (int i = 0; i < vectors; i++) {
            NAME(store_real)(lanes, sums[i]);
            for (int l = 0; l < (int)LANES; l++) s[i * LANES + l] += lanes[l];
            NAME(store_real)(lanes, squares[i]);
            for (int l = 0; l < (int)LANES; l++) q[i * LANES + l] += lanes[l];
            sums[i] = squares[i] = (V){0};
        }
    }
}

INLINE void NAME(map_columns)(const NAME(group) *g, int64_t j, int64_t n, int vectors,
                              NAME(coefficients) k, int what) {
    NAME(terms) terms[NAME(TOGETHER)];
    UNROLLED
    for (int i = 0; i < vectors; i++) terms[i] = NAME(terms_at)(k, i * LANES, what);
    for (int64_t row = g->N * g->S - 1; row >= 0; row--) {
        const I keep = NAME(column_mask)(g, row, what);
        UNROLLED
        for (int i = 0; i < vectors; i++)
            NAME(map_at)(g, row * g->C + j + i * LANES, n, terms[i], keep, what);
    }
    if (g->streams) end_stream();
}

/* Both passes take four vectors of columns at a time, then single ones, the last one partial. */
INLINE void NAME(sum_block)(const NAME(group) *g, int64_t first, int64_t channels, NAME(sums) sums,
                            NAME(coefficients) k, int what) {
    int64_t j = 0;
    memset(sums.s, 0, BLOCK * sizeof(double));
    memset(sums.q, 0, BLOCK * sizeof(double));
    for (; channels - j >= NAME(TOGETHER) * LANES; j += NAME(TOGETHER) * LANES)
        NAME(sum_columns)(g, first + j, LANES, NAME(TOGETHER), sums.shift + j, k.u + j, k.w + j,
                          sums.s + j, sums.q + j, what);
    for (; channels - j >= LANES; j += LANES)
        NAME(sum_columns)(g, first + j, LANES, 1, sums.shift + j, k.u + j, k.w + j, sums.s + j,
                          sums.q + j, what);
    if (j < channels)
        NAME(sum_columns)(g, first + j, channels - j, 1, sums.shift + j, k.u + j, k.w + j,
                          sums.s + j, sums.q + j, what);
}

INLINE void NAME(map_block_columns)(const NAME(group) *g, int64_t first, int64_t channels,
                                    NAME(coefficients) k, int what) {
    int64_t j = 0;
    for (; channels - j >= NAME(TOGETHER) * LANES; j += NAME(TOGETHER) * LANES)
        NAME(map_columns)(g, first + j, LANES, NAME(TOGETHER), NAME(coefficients_from)(k, j), what);
    for (; channels - j >= LANES; j += LANES)
        NAME(map_columns)(g, first + j, LANES, 1, NAME(coefficients_from)(k, j), what);
    if (j < channels)
        NAME(map_columns)(g, first + j, channels - j, 1, NAME(coefficients_from)(k, j), what);
}

/* What the sums are taken about: the mean of the first rows that are data. */
static void NAME(column_shift)(const NAME(group) *g, int64_t first, int64_t channels, REAL *shift) {
    const int64_t rows = least(8, g->N * g->S);
    for (int64_t j = 0; j < channels; j += LANES) {
        const int64_t n = least(LANES, channels - j);
        REAL count = 0;
        V sum = {0};
        for (int64_t row = 0; row < rows; row++) {
            if (g->mask && !g->mask[row]) continue;
            sum += NAME(read)(g->x + row * g->C + first + j, n);
            count++;
        }
        NAME(store_real)(shift + j, sum / NAME(splat)(count < 1 ? 1 : count));
    }
}

/* All loops of one block with `what` known. */
INLINE void NAME(block_as)(const NAME(group) *g, int64_t first, int64_t channels, int what) {
    REAL shift[BLOCK] = {0}, memory[NAME(COEFFICIENTS) * BLOCK] = {0};
    double s[BLOCK], q[BLOCK];
    NAME(sums) sums = {shift, s, q};
    NAME(coefficients) k = NAME(coefficients_in)(memory, BLOCK);
    if (what & PAIRED)
        NAME(prepare_backward)(g, first, channels, shift, k);
    else
        NAME(column_shift)(g, first, channels, shift);
    NAME(sum_block)(g, first, channels, sums, k, what);
    if (!(what & PAIRED) && NAME(shift_is_far)(g, sums, channels)) {
        NAME(move_shift)(g, sums, channels);
        NAME(sum_block)(g, first, channels, sums, k, what);
    }
    NAME(finish)(g, first, channels, sums, k);
    if (g->out) NAME(map_block_columns)(g, first, channels, k, what);
}

static void NAME(blocks)(int64_t begin, int64_t end, void *context) {
    const NAME(group) *g = context;
    const int64_t block = NAME(columns_per_block)(g);
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i * block, channels = least(block, g->C - first);
        SPECIALIZED(g->what, NAME(block_as), g, first, channels)
    }
}

static void NAME(columns)(NAME(group) *g) {
    const int64_t block = NAME(columns_per_block)(g);
    in_parallel(g->threads, (g->C + block - 1) / block, NAME(blocks), g);
}
