/* The kernels compiled for what every processor of the architecture has: SSE2, NEON. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#define VECTOR_BYTES 16
#include "instances.h"

const instructions baseline = {"baseline", ALL_DTYPES, WINDOWS};
