/* Template: the groups of a call, one after another or side by side, and what is made of all of them:
 * the new running statistics, or the gradients of weight and bias. */

/* Outputs of this size are written past the caches. Measured with a ReLU behind the layer, forward and
 * backward, which then reads them from memory: the whole took 11 to 18 % less at 26 MB, 9 % less at
 * 19 MB, and 40 % more at 6 MB. */
enum { NAME(STREAMED) = 16 << 20 };

typedef struct {
    call *call;
    int64_t groups;
    int threads;       /* of each group */
    double *values;    /* (groups,) */
    double *gradients; /* (groups, 2, C): dweight and dbias */
} NAME(batch);

static double NAME(count)(const uint8_t *mask, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) count += mask[i] != 0;
    return (double)count;
}

static NAME(group) NAME(group_of)(const NAME(batch) *b, int64_t index) {
    call *c = b->call;
    const int64_t first = index * c->microbatch, N = least(c->microbatch, c->N - first);
    const int64_t C = c->C, S = c->S, at = first * C * S;
    NAME(group) g = {.call = c, .N = N, .C = C, .S = S, .rows = c->rows || S == 1};
    if (C == 1) { /* one plane, however it is laid out */
        g.N = 1;
        g.S = N * S;
        g.rows = false;
    }
    g.x = (const ELEMENT *)c->x + at;
    if (c->dy) g.dy = (const ELEMENT *)c->dy + at;
    if (c->y) g.y = (const ELEMENT *)c->y + at;
    if (c->residual) g.residual = (const ELEMENT *)c->residual + at;
    if (c->mask) g.mask = c->mask + first * S;
    if (c->out) g.out = (ELEMENT *)c->out + at;
    if (c->dresidual) g.dresidual = (ELEMENT *)c->dresidual + at;
    g.mean = (REAL *)c->mean + index * C;
    g.lost = (REAL *)c->lost + index * C;
    g.var = (REAL *)c->var + index * C;
    g.r = (REAL *)c->r + index * C;
    g.d = (REAL *)c->d + index * C;
    g.dweight = b->gradients + 2 * index * C;
    g.dbias = g.dweight + C;
    g.values = c->mask ? NAME(count)(g.mask, N * S) : (double)(N * S);
    g.threads = b->threads;
    g.given = c->given_mean.values || c->removed_mean.values;
    g.streams = c->N * C * S * (int64_t)sizeof(ELEMENT) >= NAME(STREAMED);
    g.what = c->mask ? MASKED : 0;
    if (c->dy)
        g.what |= PAIRED | (!c->relu ? 0 : c->y ? SIGNED : RELU);
    else
        g.what |= (c->residual ? ADDED : 0) | (c->relu ? RELU : 0);
    g.out_of_memory = &c->out_of_memory;
    return g;
}

static void NAME(run_groups)(int64_t begin, int64_t end, void *context) {
    const NAME(batch) *b = context;
    for (int64_t index = begin; index < end; index++) {
        NAME(group) g = NAME(group_of)(b, index);
        b->values[index] = g.values;
        if (!g.rows)
            NAME(planes)(&g);
        else if (!g.given && NAME(columns_per_block)(&g)) /* one pass has no use for blocks */
            NAME(columns)(&g);
        else
            NAME(rows)(&g);
    }
}

/* The steps of mean and sigma from their running values, averaged over groups by their values;
 * returns whether all of them are finite. */
static bool NAME(steps)(const NAME(batch) *b, double total, int64_t first, int64_t channels,
                        const double *running_mean, const double *running_var,
                        double *mean_step, double *sigma_step) {
    const call *c = b->call;
    int rejected = 0;
    memset(mean_step, 0, (size_t)channels * sizeof(double));
    memset(sigma_step, 0, (size_t)channels * sizeof(double));
    for (int64_t g = 0; g < b->groups; g++) {
        const REAL *mean = (const REAL *)c->mean + g * c->C + first;
        const REAL *lost = (const REAL *)c->lost + g * c->C + first;
        const REAL *var = (const REAL *)c->var + g * c->C + first;
        const double share = b->values[g] > 1 ? b->values[g] / total : 0;
        for (int64_t i = 0; i < channels; i++) {
            double sigmas = sqrt(var[i] + c->eps) + sqrt(running_var[i] + c->eps);
            double move = (double)mean[i] + lost[i] - running_mean[i];
            double widen = (var[i] - running_var[i]) / sigmas;
            mean_step[i] += share * move;
            sigma_step[i] += share * widen;
            rejected |= !(REAL_ABS((REAL)move) <= LARGEST) | !(REAL_ABS((REAL)widen) <= LARGEST);
        }
    }
    return !rejected;
}

/* The new running statistics; a batch that is not counted leaves them as they were. */
static void NAME(update)(NAME(batch) *b) {
    call *c = b->call;
    double total = 0, mean[BLOCK], var[BLOCK], mean_step[BLOCK], sigma_step[BLOCK];
    REAL *moved = malloc((size_t)(2 * c->C) * sizeof(REAL));
    if (!moved) {
        atomic_store(&c->out_of_memory, true);
        return;
    }
    for (int64_t g = 0; g < b->groups; g++) total += b->values[g] > 1 ? b->values[g] : 0;
    c->counted = total > 0;
    for (int64_t first = 0; first < c->C && c->counted; first += BLOCK) {
        const int64_t channels = least(BLOCK, c->C - first);
        read_vector(c->running_mean, first, channels, 0, mean);
        read_vector(c->running_var, first, channels, 1, var);
        c->counted = NAME(steps)(b, total, first, channels, mean, var, mean_step, sigma_step);
        for (int64_t i = 0; i < channels; i++) {
            double sigma = sqrt(var[i] + c->eps), move = c->momentum * sigma_step[i];
            double stored = var[i] + move * (2 * sigma + move);
            moved[first + i] = (REAL)(mean[i] + c->momentum * mean_step[i]);
            moved[c->C + first + i] = (REAL)(stored < 0 ? 0 : stored);
        }
    }
    for (int64_t first = 0; first < c->C && !c->counted; first += BLOCK) {
        const int64_t channels = least(BLOCK, c->C - first);
        read_vector(c->running_mean, first, channels, 0, mean);
        read_vector(c->running_var, first, channels, 1, var);
        for (int64_t i = 0; i < channels; i++) {
            moved[first + i] = (REAL)mean[i];
            moved[c->C + first + i] = (REAL)var[i];
        }
    }
    memcpy(c->new_mean, moved, (size_t)c->C * sizeof(REAL));
    memcpy(c->new_var, moved + c->C, (size_t)c->C * sizeof(REAL));
    if (c->counter) *c->counter += c->counted;
    free(moved);
}

static void NAME(gather_gradients)(const NAME(batch) *b) {
    const call *c = b->call;
    for (int64_t i = 0; i < c->C; i++) {
        double dweight = 0, dbias = 0;
        for (int64_t g = 0; g < b->groups; g++) {
            dweight += b->gradients[2 * g * c->C + i];
            dbias += b->gradients[(2 * g + 1) * c->C + i];
        }
        if (c->dweight) ((REAL *)c->dweight)[i] = (REAL)dweight;
        if (c->dbias) ((REAL *)c->dbias)[i] = (REAL)dbias;
    }
}

static void NAME(run)(call *c) {
    const int64_t groups = groups_of(c);
    const bool side_by_side = c->threads > 1 && groups >= c->threads;
    const int64_t gradients = c->dy ? 2 * groups * c->C : 0;
    double *memory = malloc((size_t)(groups + gradients) * sizeof(double));
    if (!memory) {
        atomic_store(&c->out_of_memory, true);
        return;
    }
    NAME(batch) b = {c, groups, side_by_side ? 1 : c->threads, memory, memory + groups};
    in_parallel(side_by_side ? c->threads : 1, groups, NAME(run_groups), &b);
    if (!atomic_load(&c->out_of_memory)) {
        if (c->dweight || c->dbias)
            NAME(gather_gradients)(&b);
        else if (!c->dy && c->renormalizes)
            NAME(update)(&b);
    }
    free(memory);
}
