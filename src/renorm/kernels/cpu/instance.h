/* Template: everything for one dtype, under names that end in it. */

#define V NAME(lanes)
#define I NAME(bits)
#include "vector.h"
#include "channel.h"

/* Finish all channels, whose sums and coefficients are (C,) each. */
static void NAME(finish_all)(step *t, NAME(sums) sums, NAME(coefficients) k) {
    for (int64_t i = 0; i < t->C; i += BLOCK) {
        NAME(sums) s = {sums.shift + i, sums.s + i, sums.q + i};
        NAME(coefficients) out = {k.m + i, k.a + i, k.b + i, k.c + i};
        NAME(finish)(t, i, least(BLOCK, t->C - i), s, out);
    }
}

#include "planes.h"
#include "rows.h"

static void NAME(run)(step *t) {
    if (t->S == 1)
        NAME(rows)(t);
    else
        NAME(planes)(t);
    if (!t->dy) NAME(restore_if_rejected)(t);
}

#undef V
#undef I
#undef LANES
#undef BLOCK
#undef ELEMENT
#undef DTYPE
