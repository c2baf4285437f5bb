/* Template: from the sums of a block of channels to the coefficients of its elementwise pass.
 *
 * All arithmetic is in double, written as loops over arrays so that roots and divisions become
 * vector instructions.
 */

enum { NAME(BLOCK) = 64 };
#define BLOCK NAME(BLOCK)

/* out = a * dy + b * (x - m) + c, with a == 0 and no dy in the forward. */
typedef struct {
    REAL *m, *a, *b, *c;
} NAME(coefficients);

/* s and q of both passes: of v = x - shift in the forward, (v, v * v); in the backward with
 * shift = mean, (dy, dy * v). */
typedef struct {
    REAL *shift;
    double *s, *q;
} NAME(sums);

/* Sums about a shift far from the mean lose the variance: its relative error is about the rounding
 * of a float times gap^2 / var, so with 32 it stays below 4e-6. */
static bool NAME(shift_is_far)(const step *t, NAME(sums) sums, int64_t channels) {
    const double n = (double)t->N * (double)t->S;
    bool far = false;
    for (int64_t i = 0; i < channels; i++) {
        double gap = sums.s[i] / n, gap2 = gap * gap;
        double var = sums.q[i] / n - gap2;
        double step_of_x = sums.shift[i] * EPSILON;
        far |= gap2 > 32 * var && gap2 > step_of_x * step_of_x;
    }
    return far;
}

static void NAME(move_shift)(const step *t, NAME(sums) sums, int64_t channels) {
    const double n = (double)t->N * (double)t->S;
    for (int64_t i = 0; i < channels; i++) sums.shift[i] = (REAL)(sums.shift[i] + sums.s[i] / n);
}

INLINE double NAME(clipped)(double value, double low, double high) {
    double above = value < low ? low : value; /* NaN passes */
    return above > high ? high : above;
}

/* r, d and the new running statistics of `channels` channels from number `first` on. */
static void NAME(renormalized)(step *t, int64_t first, int64_t channels, const double *mean,
                               const double *var, double *r, double *d) {
    double running_mean[BLOCK], running_var[BLOCK];
    const double low = 1 / t->r_max, high = t->r_max, bound = t->d_max;
    const double momentum = t->momentum, eps = t->eps;
    REAL *new_mean = (REAL *)t->new_mean + first, *new_var = (REAL *)t->new_var + first;
    int rejected = 0;
    read_vector(t->running_mean, first, channels, 0, running_mean);
    read_vector(t->running_var, first, channels, 1, running_var);
    for (int64_t i = 0; i < channels; i++) {
        double sigma = sqrt(running_var[i] + eps), batch_sigma = sqrt(var[i] + eps);
        double mean_step = mean[i] - running_mean[i];
        double sigma_step = (var[i] - running_var[i]) / (batch_sigma + sigma);
        double move = momentum * sigma_step;
        double stored = running_var[i] + move * (2 * sigma + move);
        r[i] = NAME(clipped)(batch_sigma / sigma, low, high);
        d[i] = NAME(clipped)(mean_step / sigma, -bound, bound);
        new_mean[i] = (REAL)(running_mean[i] + momentum * mean_step);
        new_var[i] = (REAL)(stored < 0 ? 0 : stored);
        rejected |= !(REAL_ABS((REAL)mean_step) <= LARGEST);
        rejected |= !(REAL_ABS((REAL)sigma_step) <= LARGEST);
    }
    if (rejected) atomic_store_explicit(&t->rejected, true, memory_order_relaxed);
}

/* Finish the statistics of up to BLOCK channels. */
static void NAME(finish_forward)(step *t, int64_t first, int64_t channels, NAME(sums) sums,
                                 NAME(coefficients) out) {
    const double n = (double)t->N * (double)t->S, eps = t->eps;
    double mean[BLOCK], var[BLOCK], r[BLOCK], d[BLOCK], weight[BLOCK], bias[BLOCK];
    for (int64_t i = 0; i < channels; i++) {
        double gap = sums.s[i] / n, biased = sums.q[i] / n - gap * gap;
        mean[i] = sums.shift[i] + gap;
        var[i] = (REAL)(biased < 0 ? 0 : biased); /* not finite if it overflows that dtype */
        r[i] = 1;
        d[i] = 0;
    }
    if (t->running_mean.values) NAME(renormalized)(t, first, channels, mean, var, r, d);
    read_vector(t->weight, first, channels, 1, weight);
    read_vector(t->bias, first, channels, 0, bias);
    for (int64_t i = 0; i < channels; i++) {
        double invstd = 1 / sqrt(var[i] + eps), lost = mean[i] - (REAL)mean[i];
        double scale = weight[i] * r[i] * invstd;
        ((REAL *)t->mean)[first + i] = (REAL)mean[i];
        ((REAL *)t->lost)[first + i] = (REAL)lost;
        ((REAL *)t->invstd)[first + i] = (REAL)invstd;
        ((REAL *)t->r)[first + i] = (REAL)r[i];
        ((REAL *)t->d)[first + i] = (REAL)d[i];
        out.m[i] = (REAL)mean[i];
        out.a[i] = 0;
        out.b[i] = (REAL)scale;
        out.c[i] = (REAL)(weight[i] * d[i] + bias[i] - scale * lost);
    }
}

/* dweight, dbias and the coefficients of dx of up to BLOCK channels. */
static void NAME(finish_backward)(step *t, int64_t first, int64_t channels, NAME(sums) sums,
                                  NAME(coefficients) out) {
    const double n = (double)t->N * (double)t->S;
    const REAL *mean = (const REAL *)t->mean + first, *inverse = (const REAL *)t->invstd + first;
    const REAL *r = (const REAL *)t->r + first, *d = (const REAL *)t->d + first;
    const REAL *lost = (const REAL *)t->lost + first;
    REAL *dweight = (REAL *)t->dweight + first, *dbias = (REAL *)t->dbias + first;
    double weight[BLOCK];
    read_vector(t->weight, first, channels, 1, weight);
    for (int64_t i = 0; i < channels; i++) {
        double invstd = inverse[i], scale = weight[i] * r[i] * invstd;
        double product = sums.q[i] - lost[i] * sums.s[i];
        double slope = -scale * invstd * invstd * product / n;
        dweight[i] = (REAL)(r[i] * product * invstd + d[i] * sums.s[i]);
        dbias[i] = (REAL)sums.s[i];
        out.m[i] = mean[i];
        out.a[i] = (REAL)scale;
        out.b[i] = (REAL)slope;
        out.c[i] = (REAL)(-scale * sums.s[i] / n - slope * lost[i]);
    }
}

static void NAME(finish)(step *t, int64_t first, int64_t channels, NAME(sums) sums,
                         NAME(coefficients) out) {
    if (t->dy)
        NAME(finish_backward)(t, first, channels, sums, out);
    else
        NAME(finish_forward)(t, first, channels, sums, out);
}

/* A batch that was not counted leaves the statistics as they were. */
static void NAME(restore_if_rejected)(step *t) {
    double old[BLOCK];
    if (!t->running_mean.values || !atomic_load(&t->rejected)) return;
    for (int64_t first = 0; first < t->C; first += BLOCK) {
        int64_t channels = least(BLOCK, t->C - first);
        read_vector(t->running_mean, first, channels, 0, old);
        for (int64_t i = 0; i < channels; i++) ((REAL *)t->new_mean)[first + i] = (REAL)old[i];
        read_vector(t->running_var, first, channels, 1, old);
        for (int64_t i = 0; i < channels; i++) ((REAL *)t->new_var)[first + i] = (REAL)old[i];
    }
}
