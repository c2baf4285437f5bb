/* Template: from the sums of a block of channels to the coefficients of its elementwise pass, and the
 * running statistics.
 *
 * All arithmetic is in double, written as loops over arrays so that roots and divisions become
 * vector instructions. What the backward computes again must come from the same stored values.
 */

enum { NAME(BLOCK) = 64 };
#define BLOCK NAME(BLOCK)

/* s and q of both passes: of v = x - shift in the forward, (v, v * v); in the backward with
 * shift = mean, (dy, dy * v). */
typedef struct {
    REAL *shift;
    double *s, *q;
} NAME(sums);

/* Squares are summed in the accumulation dtype: float32 and bfloat16 values whose distance from the first
 * ones is beyond 1e18 overflow, and such a batch is not counted.
 *
 * Sums about a shift far from the mean lose the variance: its relative error is about the rounding
 * of a float times gap^2 / var, so with 32 it stays below 4e-6. */
static bool NAME(shift_is_far)(const NAME(group) *g, NAME(sums) sums, int64_t channels) {
    const double n = g->values < 1 ? 1 : g->values;
    bool far = false;
    for (int64_t i = 0; i < channels; i++) {
        double gap = sums.s[i] / n, gap2 = gap * gap;
        double var = sums.q[i] / n - gap2;
        double step_of_x = sums.shift[i] * EPSILON;
        far |= gap2 > 32 * var && gap2 > step_of_x * step_of_x;
    }
    return far;
}

static void NAME(move_shift)(const NAME(group) *g, NAME(sums) sums, int64_t channels) {
    const double n = g->values < 1 ? 1 : g->values;
    for (int64_t i = 0; i < channels; i++) sums.shift[i] = (REAL)(sums.shift[i] + sums.s[i] / n);
}

INLINE double NAME(clipped)(double value, double low, double high) {
    double above = value < low ? low : value; /* NaN passes */
    return above > high ? high : above;
}

/* r and d of `channels` channels from number `first` on. A group without a spread of its own is given
 * the running variance, r = 1 and the d that moves its mean to where the running mean is. */
static void NAME(correct)(const NAME(group) *g, int64_t first, int64_t channels, const double *mean,
                          double *var, double *r, double *d) {
    double running_mean[BLOCK], running_var[BLOCK];
    const call *c = g->call;
    const bool known = g->values > 1;
    const double low = known ? 1 / c->r_max : 1, high = known ? c->r_max : 1;
    const double bound = known ? c->d_max : INFINITY, eps = c->eps;
    read_vector(c->running_mean, first, channels, 0, running_mean);
    read_vector(c->running_var, first, channels, 1, running_var);
    for (int64_t i = 0; i < channels; i++) {
        double sigma = sqrt(running_var[i] + eps);
        var[i] = known ? var[i] : (REAL)running_var[i];
        r[i] = NAME(clipped)(sqrt(var[i] + eps) / sigma, low, high);
        d[i] = NAME(clipped)((mean[i] - running_mean[i]) / sigma, -bound, bound);
    }
}

/* A coefficient; of the NaNs only the one whose rounding to 16 bits cannot carry over. */
INLINE REAL NAME(coefficient)(double value) { return value == value ? (REAL)value : (REAL)NAN; }

/* What the elementwise pass of the forward multiplies x - mean by, and what it adds then. */
static void NAME(forward_map)(const NAME(group) *g, int64_t first, int64_t channels, REAL *scale,
                              REAL *offset) {
    double weight[BLOCK], bias[BLOCK];
    const double eps = g->call->eps;
    read_vector(g->call->weight, first, channels, 1, weight);
    read_vector(g->call->bias, first, channels, 0, bias);
    for (int64_t i = 0; i < channels; i++) {
        const int64_t at = first + i;
        double slope = weight[i] * g->r[at] / sqrt(g->var[at] + eps);
        scale[i] = NAME(coefficient)(slope);
        offset[i] = NAME(coefficient)(weight[i] * g->d[at] + bias[i] - slope * g->lost[at]);
    }
}

/* Store what up to BLOCK channels are normalized by, and map by that. */
static void NAME(store_statistics)(const NAME(group) *g, int64_t first, int64_t channels,
                                   const double *mean, const double *var, const double *r,
                                   const double *d, NAME(coefficients) out) {
    for (int64_t i = 0; i < channels; i++) {
        const int64_t at = first + i;
        g->mean[at] = out.m[i] = NAME(coefficient)(mean[i]);
        g->lost[at] = (REAL)(mean[i] - (REAL)mean[i]);
        g->var[at] = (REAL)var[i];
        g->r[at] = (REAL)r[i];
        g->d[at] = (REAL)d[i];
    }
    if (g->out) NAME(forward_map)(g, first, channels, out.b, out.c);
}

/* From the sums of up to BLOCK channels to their statistics and their map. */
static void NAME(finish_forward)(const NAME(group) *g, int64_t first, int64_t channels,
                                 NAME(sums) sums, NAME(coefficients) out) {
    const double n = g->values < 1 ? 1 : g->values;
    double mean[BLOCK], var[BLOCK], r[BLOCK], d[BLOCK];
    for (int64_t i = 0; i < channels; i++) {
        double gap = sums.s[i] / n, biased = sums.q[i] / n - gap * gap;
        mean[i] = sums.shift[i] + gap;
        var[i] = (REAL)(biased < 0 ? 0 : biased); /* not finite if it overflows that dtype */
        r[i] = 1;
        d[i] = 0;
    }
    if (g->call->renormalizes) NAME(correct)(g, first, channels, mean, var, r, d);
    NAME(store_statistics)(g, first, channels, mean, var, r, d, out);
}

/* From the statistics that are given for up to BLOCK channels to their map. */
static void NAME(finish_given)(const NAME(group) *g, int64_t first, int64_t channels,
                               NAME(coefficients) out) {
    const call *c = g->call;
    double mean[BLOCK], var[BLOCK], r[BLOCK], d[BLOCK];
    read_vector(c->given_mean, first, channels, 0, mean);
    read_vector(c->given_var, first, channels, 1, var);
    read_vector(c->given_r, first, channels, 1, r);
    read_vector(c->given_d, first, channels, 0, d);
    NAME(store_statistics)(g, first, channels, mean, var, r, d, out);
}

/* Whether the mean and var that a group was normalized by are its own. */
static bool NAME(has_moments)(const NAME(group) *g) {
    return g->values > 1 || !g->call->renormalizes;
}

/* dweight and dbias of up to BLOCK channels, and what is removed from dy: its mean, and its slope
 * along z = (x - mean) / sigma, as far as the group's moments depend on x. */
static void NAME(gradients)(const NAME(group) *g, int64_t first, int64_t channels,
                            NAME(sums) sums, double *mean, double *slope) {
    const double n = g->values < 1 ? 1 : g->values;
    const double share = NAME(has_moments)(g) ? g->call->share : 0;
    for (int64_t i = 0; i < channels; i++) {
        const int64_t at = first + i;
        double product = (sums.q[i] - g->lost[at] * sums.s[i]) / sqrt(g->var[at] + g->call->eps);
        g->dweight[at] = g->r[at] * product + g->d[at] * sums.s[i];
        g->dbias[at] = sums.s[i];
        mean[i] = share > 0 ? share * sums.s[i] / n : 0;
        slope[i] = share > 0 ? share * product / n : 0;
    }
}

/* What is removed where that is given. A group without a spread has z = 0, and its slope is along d. */
static void NAME(given_removal)(const NAME(group) *g, int64_t first, int64_t channels, double *mean,
                               double *slope) {
    const bool flat = !NAME(has_moments)(g);
    read_vector(g->call->removed_mean, first, channels, 0, mean);
    read_vector(g->call->removed_slope, first, channels, 0, slope);
    for (int64_t i = 0; i < channels && flat; i++) mean[i] += slope[i] * g->d[first + i];
}

/* The coefficients of dx of up to BLOCK channels. */
static void NAME(finish_backward)(const NAME(group) *g, int64_t first, int64_t channels,
                                  NAME(sums) sums, NAME(coefficients) out) {
    double weight[BLOCK], mean[BLOCK], slope[BLOCK];
    const double eps = g->call->eps;
    read_vector(g->call->weight, first, channels, 1, weight);
    if (g->given)
        NAME(given_removal)(g, first, channels, mean, slope);
    else
        NAME(gradients)(g, first, channels, sums, mean, slope);
    for (int64_t i = 0; i < channels; i++) {
        const int64_t at = first + i;
        double invstd = 1 / sqrt(g->var[at] + eps), scale = weight[i] * g->r[at] * invstd;
        double along = -scale * invstd * slope[i];
        out.m[i] = g->mean[at];
        out.a[i] = NAME(coefficient)(scale);
        out.b[i] = NAME(coefficient)(along);
        out.c[i] = NAME(coefficient)(-scale * mean[i] - along * g->lost[at]);
    }
}

/* Before the sums of the backward: what they are taken about, and where the ReLU let through. */
static void NAME(prepare_backward)(const NAME(group) *g, int64_t first, int64_t channels,
                                   REAL *shift, NAME(coefficients) out) {
    memcpy(shift, g->mean + first, (size_t)channels * sizeof(REAL));
    if (g->what & RELU) NAME(forward_map)(g, first, channels, out.u, out.w);
}

static void NAME(finish)(const NAME(group) *g, int64_t first, int64_t channels, NAME(sums) sums,
                         NAME(coefficients) out) {
    if (g->what & PAIRED) {
        if (g->given) NAME(prepare_backward)(g, first, channels, sums.shift, out);
        NAME(finish_backward)(g, first, channels, sums, out);
    } else if (g->given) {
        NAME(finish_given)(g, first, channels, out);
    } else {
        NAME(finish_forward)(g, first, channels, sums, out);
    }
}
