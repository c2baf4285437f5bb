/* Template: vectors of the accumulation dtype, loaded from and stored to the dtype of the tensor.
 *
 * Included once a dtype, with DTYPE, ELEMENT, REAL, INTEGER (REAL's width), VECTOR_BYTES defined.
 * They are vector extensions of gcc and clang, so that each instruction set gets vectors of its own
 * width, and sums stay in registers whatever the vectorizer makes of a loop.
 */

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))

typedef REAL V __attribute__((vector_size(VECTOR_BYTES)));
typedef INTEGER I __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t NAME(bytes) __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL))));
typedef ELEMENT NAME(packed) __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL) * sizeof(ELEMENT))));

INLINE V NAME(splat)(REAL value) { return value - (V){0}; }

INLINE I NAME(either)(I mask, I yes, I no) { return (mask & yes) | (~mask & no); }

/* Each lane's number. */
INLINE I NAME(numbers)(void) {
    I result;
    for (int l = 0; l < (int)LANES; l++) result[l] = l;
    return result;
}

/* The value in the lanes of the mask, 0 elsewhere, whatever is there. */
INLINE V NAME(kept)(V value, I mask) { return (V)((I)value & mask); }

/* The sum of all lanes, by halves: a chain of one addition a lane would take longer than a plane. */
INLINE double NAME(total)(V value) {
    double sums[LANES];
    for (int l = 0; l < (int)LANES; l++) sums[l] = value[l];
    for (int half = (int)LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sums[l] += sums[l + half];
    return sums[0];
}

#if DTYPE_IS_BFLOAT16
INLINE V NAME(widened)(NAME(packed) p) { return (V)(WIDENED_16(p) << 16); }

/* Round to nearest, ties to even. A NaN whose upper bits are all ones would carry over into a number:
 * there is none, for those of a tensor end in zeros and those of a coefficient are the plain one. */
INLINE NAME(packed) NAME(narrowed)(V value) {
    I bits = (I)value;
    I rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return NARROWED_16(rounded >> 16);
}
#elif DTYPE_IS_FLOAT16
/* Exponents differ by 112, subnormals included; infinity and NaN have all exponent bits set. */
INLINE V NAME(widened)(NAME(packed) p) {
    I half = WIDENED_16(p);
    I magnitude = half & 0x7fff;
    V value = (V)(magnitude << 13) * 0x1p112f;
    I special = (magnitude >= 0x7c00) & 0x7f800000;
    return (V)((I)value | special | ((half & 0x8000) << 16));
}

/* Round to nearest, ties to even. Adding 0.5 aligns a subnormal result with the last bits. */
INLINE NAME(packed) NAME(narrowed)(V value) {
    I bits = (I)value;
    I magnitude = bits & 0x7fffffff;
    I normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    I subnormal = (I)((V)magnitude + 0.5f) - 0x3f000000;
    I special = NAME(either)(magnitude > 0x7f800000, (I){0} + 0x7e00, (I){0} + 0x7c00);
    I result = NAME(either)(magnitude < 0x38800000, subnormal, normal);
    result = NAME(either)(magnitude >= 0x47800000, special, result);
    return NARROWED_16(result | ((bits >> 16) & 0x8000));
}
#else
INLINE V NAME(widened)(NAME(packed) p) { return p; }
INLINE NAME(packed) NAME(narrowed)(V value) { return value; }
#endif

INLINE V NAME(load)(const ELEMENT *p) {
    NAME(packed) packed;
    memcpy(&packed, p, sizeof packed);
    return NAME(widened)(packed);
}

INLINE void NAME(store)(ELEMENT *p, V value) {
    NAME(packed) packed = NAME(narrowed)(value);
    memcpy(p, &packed, sizeof packed);
}

/* A store past the caches, where the address allows it. */
INLINE void NAME(store_past)(ELEMENT *p, V value) {
    NAME(packed) packed = NAME(narrowed)(value);
    if ((uintptr_t)p % sizeof packed)
        memcpy(p, &packed, sizeof packed);
    else
        stream(p, &packed, sizeof packed);
}

/* The first n < LANES values, then zeros. */
INLINE V NAME(load_part)(const ELEMENT *p, int64_t n) {
    NAME(packed) packed;
    LOAD_SOME(&packed, p, n, sizeof(ELEMENT));
    return NAME(widened)(packed);
}

INLINE void NAME(store_part)(ELEMENT *p, V value, int64_t n) {
    NAME(packed) packed = NAME(narrowed)(value);
    STORE_SOME(p, &packed, n, sizeof(ELEMENT));
}

INLINE V NAME(load_real)(const REAL *p) {
    V value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* The lanes of n values whose bytes are not 0. */
INLINE I NAME(load_mask)(const uint8_t *p, int64_t n) {
    NAME(bytes) packed = {0};
    if (n == LANES)
        memcpy(&packed, p, sizeof packed);
    else
        memcpy(&packed, p, (size_t)n);
    return __builtin_convertvector(packed, I) != 0;
}

INLINE void NAME(store_real)(REAL *p, V value) { memcpy(p, &value, sizeof value); }
