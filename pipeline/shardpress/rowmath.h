/* Functions of rows of one type; rowmath.c includes this file for float and for double. Before each inclusion define
 *
 * VALUE       the type
 * BITS        an unsigned integer of the same size
 * KEY         a signed integer of the same size
 * MANTISSA    bits of the stored mantissa
 * BIAS        bias of the exponent
 * N_TERMS     terms of the series of the logarithm
 * NAME(name)  the name of a function for this type
 */

#define LARGEST_KEY ((KEY)(~(BITS)0 >> 1))

static inline BITS NAME(bits)(VALUE value)
{
    BITS bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline VALUE NAME(value)(BITS bits)
{
    VALUE value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Return log(1 + |x|) with the sign of x. NaN and Inf stay as they are.
 *
 * If 1 + |x| = 2^n (1 + f), with 1 + f from sqrt(1/2) to sqrt(2), then log(1 + |x|) = n log(2) + log(1 + f). With
 * s = f / (2 + f), log(1 + f) = 2 atanh(s) = 2 s + s r = f - s (f - r), where r = 2/3 s^2 + 2/5 s^4 + ... Here, s^2 is
 * at most 0.0295. f is computed from |x|, and not from the rounded 1 + |x|, so that small values keep their digits. */
static inline __attribute__((always_inline)) VALUE NAME(logarithm)(VALUE x)
{
    const BITS one = (BITS)BIAS << MANTISSA;
    const BITS sign = NAME(bits)(x) & (BITS)1 << (8 * sizeof(BITS) - 1);
    const BITS magnitude = NAME(bits)(x) ^ sign;
    const VALUE a = NAME(value)(magnitude);
    const BITS to_exponent = one - NAME(bits)((VALUE)0.70710678118654752);
    const BITS n = ((NAME(bits)(1 + a) + to_exponent) >> MANTISSA) - BIAS;
    const BITS shorter = n < BIAS ? n : BIAS; /* 2^-n would be below all normal numbers; 0 is close enough */
    const VALUE f = NAME(value)(magnitude - (n << MANTISSA)) + (NAME(value)(one - (shorter << MANTISSA)) - 1);
    const VALUE s = f / (2 + f);
    VALUE r = 0;
    for (int k = 2 * N_TERMS + 1; k > 1; k -= 2)
        r = (r + (VALUE)2 / k) * (s * s);
    /* n as a number: the last bits of 2^MANTISSA + n are n */
    const BITS shift = (BITS)(BIAS + MANTISSA) << MANTISSA;
    const VALUE exponent = NAME(value)(shift | n) - NAME(value)(shift);
    const VALUE found = exponent * (VALUE)0.69314718055994531 + (f - s * (f - r));
    return NAME(value)(NAME(bits)(a < (VALUE)INFINITY ? found : a) | sign);
}

/* Add a value to the size of its row. NaN is ignored. */
static inline __attribute__((always_inline)) double NAME(add)(double size, VALUE value, Kind kind)
{
    const double magnitude = value == value ? fabs((double)value) : 0.0;
    if (kind == MAX)
        return magnitude > size ? magnitude : size;
    return size + (kind == NORM ? magnitude * magnitude : magnitude);
}

/* Return the size of a row. Sums have a fixed order, so that vectors of any length give the same bits. */
static inline __attribute__((always_inline)) double NAME(size)(const VALUE *row, Py_ssize_t n, Kind kind)
{
    double lanes[LANES] = {0}, size = 0;
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] = NAME(add)(lanes[j], row[i + j], kind);
    for (int j = 0; i + j < n; j++)
        lanes[j] = NAME(add)(lanes[j], row[i + j], kind);
    for (int j = 0; j < LANES; j++)
        size = kind == MAX ? (lanes[j] > size ? lanes[j] : size) : size + lanes[j];
    return kind == NORM ? sqrt(size) : size;
}

/* Write the keys of a row: integers in the order of the values. Return the number of values that are not NaN; the keys
 * of NaN are the largest. */
static inline __attribute__((always_inline)) Py_ssize_t NAME(find_keys)(const VALUE *row, Py_ssize_t n, KEY *keys)
{
    BITS n_present = 0;
    for (Py_ssize_t k = 0; k < n; k++) {
        const KEY bits = (KEY)NAME(bits)(row[k]);
        const KEY key = bits < 0 ? bits ^ LARGEST_KEY : bits;
        keys[k] = row[k] == row[k] ? key : LARGEST_KEY;
        n_present += row[k] == row[k];
    }
    return (Py_ssize_t)n_present;
}

static inline __attribute__((always_inline)) Py_ssize_t NAME(n_below)(const KEY *keys, Py_ssize_t n, KEY pivot)
{
    BITS found = 0;
    for (Py_ssize_t k = 0; k < n; k++)
        found += keys[k] < pivot;
    return (Py_ssize_t)found;
}

/* Return the largest key below a pivot, which must exist. The distances of other keys wrap around to large numbers. */
static inline __attribute__((always_inline)) KEY NAME(last_below)(const KEY *keys, Py_ssize_t n, KEY pivot)
{
    const BITS last = (BITS)pivot - 1;
    BITS nearest = ~(BITS)0;
    for (Py_ssize_t k = 0; k < n; k++) {
        const BITS distance = last - (BITS)keys[k];
        nearest = distance < nearest ? distance : nearest;
    }
    return (KEY)(last - nearest);
}

/* Return the smallest key that is not below a pivot, which must exist. */
static inline __attribute__((always_inline)) KEY NAME(first_from)(const KEY *keys, Py_ssize_t n, KEY pivot)
{
    BITS nearest = ~(BITS)0;
    for (Py_ssize_t k = 0; k < n; k++) {
        const BITS distance = (BITS)keys[k] - (BITS)pivot;
        nearest = distance < nearest ? distance : nearest;
    }
    return (KEY)((BITS)pivot + nearest);
}

static inline VALUE NAME(value_of_key)(KEY key)
{
    return NAME(value)((BITS)(key < 0 ? key ^ LARGEST_KEY : key));
}

/* Return the absolute value of the median of a row without NaN; 0 if there are only NaN. `keys` is scratch memory.
 *
 * The key of rank `rank` is `low` or between `low` and `high`; `n_low` and `n_high` keys are below these bounds. Each
 * step counts the keys below a pivot, and moves a bound there. Pivots are interpolated, which takes a few steps for most
 * rows, and every other one is the middle, which takes at most two steps per bit for all rows. */
static inline __attribute__((always_inline)) double NAME(median)(const VALUE *row, Py_ssize_t n, KEY *keys)
{
    const Py_ssize_t n_present = NAME(find_keys)(row, n, keys), rank = n_present / 2;
    if (n_present == 0)
        return 0;
    KEY low = NAME(first_from)(keys, n, -LARGEST_KEY - 1);
    KEY high = NAME(last_below)(keys, n, LARGEST_KEY) + 1;
    Py_ssize_t n_low = 0, n_high = n_present;
    for (int step = 0; n_low < rank && (BITS)high - (BITS)low > 1; step++) {
        const BITS width = (BITS)high - (BITS)low;
        BITS distance = width / 2;
        if (step % 2 == 0)
            distance = (BITS)((double)width * (double)(rank - n_low) / (double)(n_high - n_low));
        if (distance == 0 || distance >= width)
            distance = 1;
        const KEY pivot = (KEY)((BITS)low + distance);
        const Py_ssize_t n_below = NAME(n_below)(keys, n, pivot);
        if (n_below > rank) {
            high = pivot;
            n_high = n_below;
        } else {
            low = pivot;
            n_low = n_below;
        }
    }
    const KEY second = NAME(first_from)(keys, n, low);
    KEY first = second;
    if (n_present % 2 == 0 && NAME(n_below)(keys, n, second) == rank)
        first = NAME(last_below)(keys, n, second);
    return fabs((double)NAME(value_of_key)(first) / 2 + (double)NAME(value_of_key)(second) / 2);
}

/* Multiply each row by target / size, unless its size is 0 or not finite or the factor overflows. Then take logarithms
 * if requested. */
CLONES static void NAME(prepare)(VALUE *rows, const Request *request)
{
    const Py_ssize_t n = request->n_columns;
    for (Py_ssize_t i = 0; i < request->n_rows; i++, rows += n) {
        double size = 0;
        switch (request->kind) {
        case NONE: size = request->target; break;
        case MEDIAN: size = NAME(median)(rows, n, request->scratch); break;
        case TOTAL: size = NAME(size)(rows, n, TOTAL); break;
        case NORM: size = NAME(size)(rows, n, NORM); break;
        case MAX: size = NAME(size)(rows, n, MAX); break;
        }
        VALUE factor = (VALUE)(request->target / size);
        if (!(size > 0 && size < INFINITY && factor < (VALUE)INFINITY))
            factor = 1;
        if (request->takes_logarithm)
            for (Py_ssize_t k = 0; k < n; k++)
                rows[k] = NAME(logarithm)(rows[k] * factor);
        else
            for (Py_ssize_t k = 0; k < n; k++)
                rows[k] *= factor;
    }
}

/* Find the last knot that is at most each value, or the first knot. All searches take the same number of steps. */
static inline __attribute__((always_inline)) void NAME(search)(
    const double *x, int64_t *at, const double *knots, int64_t n_knots)
{
    for (int j = 0; j < BLOCK_ROWS; j++)
        at[j] = 0;
    for (int64_t n = n_knots; n > 1; n -= n / 2)
        for (int j = 0; j < BLOCK_ROWS; j++)
            at[j] += knots[at[j] + n / 2] <= x[j] ? n / 2 : 0;
}

/* Return the rank of a value, interpolated between knot `at` and the next one: 0 below the first knot, and 1 above the
 * last. Differences are those of halves, because the difference of two knots could overflow. */
static inline __attribute__((always_inline)) double NAME(rank)(
    double x, int64_t at, const double *knots, const double *ranks, int64_t n_knots)
{
    const int64_t next = at + 1 < n_knots ? at + 1 : at;
    const double slope = (ranks[next] - ranks[at]) / (knots[next] / 2 - knots[at] / 2);
    double rank = slope * (x / 2 - knots[at] / 2) + ranks[at];
    rank = x == knots[at] ? ranks[at] : rank;
    rank = x < knots[0] ? 0 : rank;
    rank = x > knots[n_knots - 1] ? 1 : rank;
    return x == x ? rank : x;
}

/* Replace the values of each column by their ranks. The table of a column stays in the cache for a block of rows. */
CLONES static void NAME(replace_by_ranks)(VALUE *rows, Py_ssize_t n_rows, const Tables *tables)
{
    const Py_ssize_t n_columns = tables->n_columns, n_knots = tables->n_knots;
    for (Py_ssize_t first = 0; first < n_rows; first += BLOCK_ROWS) {
        const int n = n_rows - first < BLOCK_ROWS ? (int)(n_rows - first) : BLOCK_ROWS;
        for (Py_ssize_t k = 0; k < n_columns; k++) {
            const double *knots = tables->knots + k * n_knots, *ranks = tables->ranks + k * n_knots;
            VALUE *column = rows + first * n_columns + k;
            double x[BLOCK_ROWS] = {0};
            int64_t at[BLOCK_ROWS];
            for (int j = 0; j < n; j++)
                x[j] = column[j * n_columns];
            NAME(search)(x, at, knots, n_knots);
            for (int j = 0; j < BLOCK_ROWS; j++)
                x[j] = NAME(rank)(x[j], at[j], knots, ranks, n_knots);
            for (int j = 0; j < n; j++)
                column[j * n_columns] = (VALUE)x[j];
        }
    }
}

#undef VALUE
#undef LARGEST_KEY
#undef BITS
#undef KEY
#undef MANTISSA
#undef BIAS
#undef N_TERMS
#undef NAME
