/* W and the scaling as integers, for products with rows of bytes.
 *
 *     ((r - center) * scale) . W + b_hidden  =  r . V + (b_hidden - center . V)        V = scale * W
 *
 * Each column of V is rounded to integer multiples q of its own unit, and q is written in digits of 8 bits, from -128
 * to 127:  q = d0 + 2^8 d1 + 2^16 d2 + 2^24 d3. Sums of bytes times digits are exact, in any order, so the rounding of
 * V is the only error. Three digits represent nearly all of V; the fourth is stored, and multiplied, only where it is
 * not 0.
 *
 * Choice of the unit u. Rounding to multiples of u has an error between -u/2 and u/2. The rounded values are multiplied
 * by r and by center, so the rms error of the sum is
 *
 *     u / sqrt(12) * sqrt(sum over k of (r_k - center_k)^2).
 *
 * Floats are rounded after every product: a sum S = m 2^e, 1 <= m < 2, to multiples of 2^(e - 23), with an rms error of
 * 2^(e - 23) / sqrt(12). If sizes are distributed evenly on a logarithmic scale, 1 / m^2 is 3 / (8 log 2), or 0.54, on
 * average. With 1/2 as this average, the square of the error is 2^-46 S^2 / 24. If terms have both signs, S^2 is about
 * the sum of their squares. The term of column k of n is part of n - k sums, and its scaled value x_k was rounded
 * before. The rms error is
 *
 *     2^-23 / sqrt(24) * sqrt(sum over k of (n - k + 1) (x_k W_k)^2).
 *
 * Both errors grow with the row. They are compared for a row at the upper end of its range, where x_k is 1 and r_k -
 * center_k is 1 / scale_k. A few large weights can dominate the sum of squares, and rows may be near 0 in just these
 * columns. Therefore the mean of |W_k|, weighted by n - k + 1, replaces each |W_k|, which makes the sum smaller. The
 * largest unit is the one for which both errors are equal. It is too small for three digits if there are few inputs,
 * and for columns whose range is much narrower than that of the others. If too many fourth digits would be needed, or a
 * number is not finite, the product is computed with floats.
 */
#define N_BYTES 4  /* inner elements that are multiplied at once */
#define N_DIGITS 3 /* of every element */
#define LARGEST_OF_3 8355711.0    /* 127 * (2^16 + 2^8 + 1) */
#define LARGEST_OF_4 2130706432.0 /* 127 * 2^24, and a little less than four digits hold */
/* Largest fraction of V that can have fourth digits. At this fraction, integers still save half of the time that they
 * save without fourth digits. */
#define MOST_FOURTH 0.5
/* With more inputs, a sum of bytes times digits could exceed 2^31. */
#define MOST_INPUTS 65536

/* Results of earlier calls; all 0 in new memory. */
typedef struct {
    int is_filled, in_integers;
} Packed;

typedef struct {
    const Weights *weights;
    const Rows *rows;
    npy_int8 *digits;      /* blocks of LANES columns; in each, groups of N_BYTES rows of V */
    npy_int8 *fourth;      /* the same, without groups that are all 0 */
    int *n_fourth, *where; /* for each block of columns, the number and the positions of these groups */
    double *unit, *bias;
    long n_groups;
    double ranges;  /* sum of the squares of the columns' ranges */
    int are_enough; /* whether digits can represent all of V */
    Packed *packed;
    float *W, *b_hidden; /* copies of the packed values */
    SCALING *center, *scale;
    Share share;
} Digits;

static npy_int8 *digits_of(const Digits *d, long f) { return d->digits + f * d->n_groups * N_DIGITS * N_BYTES; }

static npy_int8 *fourth_of(const Digits *d, long f) { return d->fourth + f * d->n_groups * N_BYTES; }

static int *where_of(const Digits *d, long f) { return d->where + f / LANES * d->n_groups; }

static void lay_out_digits(Digits *d, const Weights *w, const Rows *rows, Memory *memory)
{
    long n_panels = pieces(w->n_features, LANES), n_columns = n_panels * LANES;
    long n_scaling = w->n_inputs * sizeof(SCALING) / sizeof(float);
    d->weights = w;
    d->rows = rows;
    d->n_groups = pieces(w->n_inputs, N_BYTES);
    d->digits = (npy_int8 *)reserve(memory, n_columns * d->n_groups * N_DIGITS);
    d->fourth = (npy_int8 *)reserve(memory, n_columns * d->n_groups);
    d->n_fourth = (int *)reserve(memory, n_panels);
    d->where = (int *)reserve(memory, n_panels * d->n_groups);
    d->unit = (double *)reserve(memory, 2 * n_columns);
    d->bias = (double *)reserve(memory, 2 * n_columns);
    d->packed = (Packed *)reserve(memory, LINE);
    d->W = reserve(memory, w->n_inputs * w->n_features);
    d->b_hidden = reserve(memory, w->n_features);
    d->center = (SCALING *)reserve(memory, n_scaling);
    d->scale = (SCALING *)reserve(memory, n_scaling);
}

/* Return an element of V; 0 past its end. */
static inline double element(const Digits *d, long k, long f)
{
    const Weights *w = d->weights;
    return k < w->n_inputs && f < w->n_features ? (double)d->rows->scale[k] * w->W[k * w->n_features + f] : 0;
}

/* Return the unit of a column: the smaller of the largest unit and the smallest one for three digits; 0 if four digits
 * are too few. */
static double unit_of(const Digits *d, long f)
{
    const Weights *w = d->weights;
    double largest = 0, size = 0, chain = 0, n_sums = 0;
    for (long k = 0; k < w->n_inputs; k++) {
        double v = fabs(element(d, k, f)), weight = fabs(w->W[k * w->n_features + f]);
        largest = v > largest ? v : largest;
        size += v;
        n_sums += w->n_inputs - k + 1;
        chain += (w->n_inputs - k + 1) * weight;
    }
    if (!(size + chain + d->ranges < INFINITY)) /* also for NaN */
        return 0;
    if (largest == 0)
        return 1;
    double unit = chain / sqrt(2 * n_sums * d->ranges) / 8388608;
    if (unit > largest / LARGEST_OF_3)
        unit = largest / LARGEST_OF_3;
    return largest <= unit * LARGEST_OF_4 ? unit : 0;
}

/* Write the first digits of q N_BYTES * LANES apart, and return the last one. */
static inline npy_int8 split(long q, npy_int8 *to)
{
    for (int digit = 0; digit < N_DIGITS; digit++) {
        to[digit * N_BYTES * LANES] = (npy_int8)q;
        q = (q - (npy_int8)q) / 256;
    }
    return (npy_int8)q;
}

/* Write the digits of a group, in LANES columns from f on. Return whether any has a fourth digit. */
static int split_group(const Digits *d, long group, long f, npy_int8 *fourth)
{
    npy_int8 *to = digits_of(d, f) + group * N_DIGITS * N_BYTES * LANES;
    int any = 0;
    for (long i = 0; i < N_BYTES * LANES; i++) {
        long k = group * N_BYTES + i % N_BYTES, column = f + i / N_BYTES;
        long q = lrint(element(d, k, column) / d->unit[column]);
        if (k < d->weights->n_inputs)
            d->bias[column] -= d->rows->center[k] * (q * d->unit[column]);
        fourth[i] = split(q, to + i);
        any |= fourth[i] != 0;
    }
    return any;
}

/* Pack LANES columns from f on; return 0 if digits cannot represent them. */
static int pack_columns(const Digits *d, long f)
{
    const Weights *w = d->weights;
    int n_fourth = 0;
    for (long j = f; j < f + LANES; j++) {
        d->unit[j] = j < w->n_features ? unit_of(d, j) : 1;
        d->bias[j] = j < w->n_features ? w->b_hidden[j] : 0;
        if (d->unit[j] == 0)
            return 0;
    }
    for (long group = 0; group < d->n_groups; group++)
        if (split_group(d, group, f, fourth_of(d, f) + n_fourth * N_BYTES * LANES))
            where_of(d, f)[n_fourth++] = group;
    d->n_fourth[f / LANES] = n_fourth;
    for (long j = f; j < f + LANES; j++)
        if (!(fabs(d->bias[j]) < INFINITY))
            return 0;
    return 1;
}

static void pack_digits_some(void *job)
{
    Digits *d = (Digits *)job;
    for (long start, stop; take(&d->share, &start, &stop);)
        for (; start < stop; start++)
            if (!pack_columns(d, start * LANES))
                __atomic_store_n(&d->are_enough, 0, __ATOMIC_RELAXED);
}

/* Write V in digits; return 0 if floats must be used for the product. */
static int repack(Digits *d, long n_threads)
{
    const Weights *w = d->weights;
    long n_panels = pieces(w->n_features, LANES), n_fourth = 0;
    d->ranges = 0;
    for (long k = 0; k < w->n_inputs; k++)
        if (d->rows->scale[k] != 0)
            d->ranges += 1 / ((double)d->rows->scale[k] * d->rows->scale[k]);
    d->are_enough = w->n_inputs <= MOST_INPUTS;
    d->share = share_of(d->are_enough ? n_panels : 0, 1, n_threads);
    run_in_team(n_threads, pack_digits_some, d);
    for (long i = 0; i < n_panels; i++)
        n_fourth += d->n_fourth[i];
    return d->are_enough && n_fourth <= MOST_FOURTH * n_panels * d->n_groups;
}

/* Return whether values equal the copy, and update the copy. */
static int is_copy(void *copy, const void *values, long n_bytes)
{
    if (memcmp(copy, values, n_bytes) == 0)
        return 1;
    memcpy(copy, values, n_bytes);
    return 0;
}

/* Write V in digits, unless it is unchanged since the previous call. The comparison costs a hundredth of writing.
 * Return 0 if floats must be used for the product. */
static int pack_digits(Digits *d, long n_threads)
{
    const Weights *w = d->weights;
    int is_same = d->packed->is_filled;
    is_same &= is_copy(d->W, w->W, w->n_inputs * w->n_features * sizeof(float));
    is_same &= is_copy(d->b_hidden, w->b_hidden, w->n_features * sizeof(float));
    is_same &= is_copy(d->center, d->rows->center, w->n_inputs * sizeof(SCALING));
    is_same &= is_copy(d->scale, d->rows->scale, w->n_inputs * sizeof(SCALING));
    if (!is_same)
        d->packed->in_integers = repack(d, n_threads);
    d->packed->is_filled = 1;
    return d->packed->in_integers;
}
