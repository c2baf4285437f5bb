/* Template: everything for one dtype, under names that end in it. */

#define V NAME(lanes)
#define I NAME(bits)
#include "vector.h"
#include "group.h"
#include "channel.h"

/* Finish all channels, whose sums and coefficients are (C,) each. */
static void NAME(finish_all)(const NAME(group) *g, NAME(sums) sums, NAME(coefficients) k) {
    for (int64_t i = 0; i < g->C; i += BLOCK) {
        NAME(sums) s = {sums.shift + i, sums.s + i, sums.q + i};
        NAME(finish)(g, i, least(BLOCK, g->C - i), s, NAME(coefficients_from)(k, i));
    }
}

#include "planes.h"
#include "columns.h"
#include "rows.h"
#include "groups.h"
#if DTYPE_IS_REAL
#include "lags.h"
#endif

#undef V
#undef I
#undef LANES
#undef BLOCK
#undef ELEMENT
#undef DTYPE
