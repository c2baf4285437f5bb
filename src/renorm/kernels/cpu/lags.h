/* Template: what a window of iterations is made of, for one dtype of tensors and statistics. */

/* The sum of a[i] * b[i]. Four chains: one would wait for each addition; of less than a vector, the
 * sum over its lanes would take longest. */
INLINE REAL NAME(dot)(const REAL *a, const REAL *b, int64_t n) {
    if (n < LANES) {
        REAL sum = 0;
        for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
        return sum;
    }
    V sums[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLLED
        for (int j = 0; j < 4; j++)
            sums[j] += NAME(load)(a + i + j * LANES) * NAME(load)(b + i + j * LANES);
    for (; i < n; i += LANES) {
        const int64_t some = least(LANES, n - i);
        sums[0] += NAME(load_part)(a + i, some) * NAME(load_part)(b + i, some);
    }
    return (REAL)NAME(total)((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* E[p] of some channels: the mean over examples, then the part that each input has at each place. */
static void NAME(mean_patch_of)(int64_t first, int64_t end, void *context) {
    const boxes *b = context;
    const int64_t S = b->S, k = b->k, apart = b->channels * S, per_group = b->channels / b->G;
    for (int64_t i = first; i < end; i++) {
        const REAL *x = (const REAL *)b->x + i * S, *shares = b->shares;
        REAL *mean = (REAL *)b->means + i * S;
        REAL *out = (REAL *)b->out + (i / per_group) * b->out_apart + (i % per_group) * k;
        for (int64_t j = 0; j < S; j++) mean[j] = x[j];
        for (int64_t n = 1; n < b->N; n++)
            for (int64_t j = 0; j < S; j++) mean[j] += x[n * apart + j];
        for (int64_t e = 0; e < k; e++)
            out[e] = NAME(dot)(mean, shares + e * S, S) / (REAL)b->N;
    }
}

static void NAME(mean_patch)(boxes *b) {
    in_parallel(b->threads, b->channels, NAME(mean_patch_of), b);
}

/* sigma is what is expanded: (cov + rest)^2 / var. */
INLINE REAL NAME(expanded)(REAL covariance, REAL rest, REAL inverse_var) {
    const REAL sum = covariance + rest;
    return sum * sum * inverse_var;
}

/* Of some channels, by a product with what each lag left of its own. */
static void NAME(derived_of)(int64_t first, int64_t end, void *context) {
    const lags *a = context;
    const int64_t K = a->K, L = a->L, per_group = a->C / a->G;
    for (int64_t c = first; c < end; c++) {
        const REAL *W = (const REAL *)a->W + c * K;
        const REAL *patch = (const REAL *)a->mean_patch + c / per_group * (L + 1) * K;
        const REAL *derivative = (const REAL *)a->derivative + c * L * K;
        const REAL *offset = (const REAL *)a->offset + c * (L + 1);
        const REAL *rest = (const REAL *)a->rest + c * L;
        const REAL *inverse_var = (const REAL *)a->inverse_var + c * L;
        const REAL bias = a->bias ? ((const REAL *)a->bias)[c] : 0;
        REAL *mean = (REAL *)a->mean + c * (L + 1), *var = (REAL *)a->var + c * L;
        for (int64_t l = 0; l < L; l++)
            var[l] = NAME(expanded)(NAME(dot)(W, derivative + l * K, K), rest[l], inverse_var[l]);
        for (int64_t l = 0; l <= L; l++)
            mean[l] = NAME(dot)(W, patch + l * K, K) + offset[l] + bias;
    }
}

static void NAME(derived)(lags *a) { in_parallel(a->threads, a->C, NAME(derived_of), a); }

/* From products (C, L + 1 + L s) of the weights with the mean patches, and with those of a sample. */
static void NAME(sampled)(lags *a) {
    const int64_t L = a->L, s = a->s;
    for (int64_t c = 0; c < a->C; c++) {
        const REAL *product = (const REAL *)a->products + c * (L + 1 + L * s);
        const REAL *offset = (const REAL *)a->offset + c * (L + 1);
        const REAL *rest = (const REAL *)a->rest + c * L;
        const REAL bias = a->bias ? ((const REAL *)a->bias)[c] : 0;
        REAL *mean = (REAL *)a->mean + c * (L + 1), *var = (REAL *)a->var + c * L;
        for (int64_t l = 0; l <= L; l++) mean[l] = product[l] + offset[l] + bias;
        for (int64_t l = 0; l < L; l++) {
            const REAL *now = product + L + 1 + l * s;
            if (a->outputs) {
                const REAL *then = (const REAL *)a->outputs + (c * L + l) * s;
                const REAL inverse_var = ((const REAL *)a->inverse_var)[c * L + l];
                var[l] = NAME(expanded)(NAME(dot)(now, then, s), rest[l], inverse_var);
            } else {
                const REAL sum = NAME(dot)(now, now, s) + rest[l];
                var[l] = sum < 0 ? 0 : sum; /* a NaN stays one */
            }
        }
    }
}

/* The mean of means, and the mean of variances and of squared distances from it. */
static bool NAME(combined)(const window *w) {
    const REAL *weights = w->weights;
    bool finite = true;
    for (int64_t c = 0; c < w->C; c++) {
        const REAL mean = ((const REAL *)w->mean)[c], var = ((const REAL *)w->var)[c];
        const REAL *means = (const REAL *)w->lag_mean + c * w->mean_apart;
        const REAL *variances = (const REAL *)w->lag_var + c * w->var_apart;
        REAL centre = mean, sum = var;
        if (weights) {
            centre = weights[w->L] * mean;
            for (int64_t l = 0; l < w->L; l++) centre += weights[l] * means[l];
            sum = weights[w->L] * (var + (mean - centre) * (mean - centre));
            for (int64_t l = 0; l < w->L; l++)
                sum += weights[l] * (variances[l] + (means[l] - centre) * (means[l] - centre));
        }
        ((REAL *)w->out)[c] = centre;
        ((REAL *)w->out)[w->C + c] = sum;
        finite = finite && isfinite(centre + sum);
    }
    return finite;
}

/* Put the statistics of an iteration in the place of a lag. */
static void NAME(keep)(const place *p) {
    const int64_t L = p->L;
    for (int64_t c = 0; c < p->C; c++) {
        const REAL mean = ((const REAL *)p->mean)[c], var = ((const REAL *)p->var)[c];
        const REAL inverse = 1 / var;
        const REAL of_patches = p->own_mean ? ((const REAL *)p->own_mean)[c * (L + 1)] : 0;
        ((REAL *)p->offset)[c * (L + 1) + p->slot] = mean - of_patches;
        ((REAL *)p->rest)[c * L + p->slot] = p->no_rest ? 0 : var;
        if (p->inverse_var)
            ((REAL *)p->inverse_var)[c * L + p->slot] = isinf(inverse) ? 0 : inverse;
    }
    ((REAL *)p->valid)[p->slot] = 1;
}

/* Write the patch of position j in a group, about a mean unless there is none, times a factor. */
INLINE void NAME(write_patch)(const positions *p, int64_t group, int64_t j, const REAL *mean,
                              REAL scale, REAL *out) {
    const int64_t k = p->k, per_group = p->channels / p->G, *read = p->read + j * k;
    const REAL *x = (const REAL *)p->x + (p->example[j] * p->channels + group * per_group) * p->S;
    for (int64_t i = 0; i < per_group; i++)
        for (int64_t e = 0; e < k; e++) {
            const REAL value = read[e] < 0 ? 0 : x[i * p->S + read[e]];
            out[i * k + e] = (value - (mean ? mean[i * k + e] : 0)) * scale;
        }
}

/* Patches as they are, (G, n, K). */
static void NAME(gather)(const positions *p) {
    for (int64_t group = 0; group < p->G; group++)
        for (int64_t j = 0; j < p->n; j++) {
            REAL *out = (REAL *)p->patches + (group * p->n + j) * p->K;
            NAME(write_patch)(p, group, j, NULL, 1, out);
        }
}

/* Keep the patches of some positions, and what the outputs there were. */
static void NAME(sample)(const positions *p) {
    const int64_t L = p->L, s = p->s, K = p->K;
    const REAL scale = 1 / (REAL)sqrt((double)p->n);
    for (int64_t group = 0; group < p->G; group++) {
        REAL *rows = (REAL *)p->patches + group * p->R * K;
        const REAL *now = rows + L * K;
        memcpy(rows + p->slot * K, now, (size_t)K * sizeof(REAL));
        rows += (L + 1 + p->slot * s) * K;
        for (int64_t j = 0; j < p->n; j++)
            NAME(write_patch)(p, group, j, now, scale, rows + j * K);
        memset(rows + p->n * K, 0, (size_t)((s - p->n) * K) * sizeof(REAL));
    }
    for (int64_t c = 0; c < p->C; c++) {
        const REAL mean = ((const REAL *)p->mean)[c];
        REAL *then = p->outputs ? (REAL *)p->outputs + (c * L + p->slot) * s : NULL;
        REAL squares = 0;
        for (int64_t j = 0; j < p->n; j++) {
            const int64_t at = (p->example[j] * p->C + c) * p->out + p->output[j];
            const REAL y = (((const REAL *)p->y)[at] - mean) * scale;
            squares += y * y;
            if (then) then[j] = y;
        }
        for (int64_t j = p->n; then && j < s; j++) then[j] = 0;
        ((REAL *)p->rest)[c * L + p->slot] -= squares;
    }
}

/* Move the running statistics as torch.lerp does. */
INLINE REAL NAME(lerped)(REAL from, REAL to, REAL rate) {
    return rate < (REAL)0.5 ? from + rate * (to - from) : to - (to - from) * (1 - rate);
}

static void NAME(track)(const averages *a) {
    for (int64_t c = 0; c < a->C; c++) {
        REAL *mean = (REAL *)a->running_mean + c, *var = (REAL *)a->running_var + c;
        const REAL new_var = ((const REAL *)a->var)[c] * (REAL)a->unbiased;
        *mean = NAME(lerped)(*mean, ((const REAL *)a->mean)[c], (REAL)a->rate);
        *var = NAME(lerped)(*var, new_var, (REAL)a->rate);
    }
    if (a->counter) ++*a->counter;
}
