/* Rows as stored in the shards, of type ROW, and scaled rows: (row - center) * scale, computed in SCALING. */
typedef struct {
    const ROW *values;
    const npy_int64 *numbers;          /* numbers of the rows, in this order; NULL for all */
    const SCALING *center, *scale;    /* if NULL, rows are only cast */
    const SCALING *low, *high;         /* the expected range of values */
    long n_rows, n_inputs;
} Rows;

static const ROW *row_at(const Rows *rows, long i)
{
    return rows->values + (rows->numbers ? rows->numbers[i] : i) * rows->n_inputs;
}

/* Return the bits of a number. From +0 to +Inf, the bits are in the order of the numbers; the bits of NaN and negative
 * numbers are larger. */
static inline BITS bits_of(SCALING value)
{
    BITS bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Scale some values of a row, like `scale_row`; return the bits of the worst value so far. */
static inline __attribute__((always_inline)) BITS scale_values(
    const Rows *rows, long i, long start, long n, float *__restrict__ x, BITS worst, const int is_checked)
{
    const ROW *__restrict__ row = row_at(rows, i) + start;
    const SCALING *center = rows->center + start, *scale = rows->scale + start;
    const SCALING *low = rows->low + start, *high = rows->high + start;
    for (long k = 0; k < n; k++) {
        SCALING value = (SCALING)row[k];
        if (is_checked) {
            BITS above = bits_of(value - low[k]), below = bits_of(high[k] - value);
            worst = worst > above ? worst : above;
            worst = worst > below ? worst : below;
        }
        if (x)
            x[k] = (float)(rows->center ? (value - center[k]) * scale[k] : value);
    }
    return worst;
}

/* Scale a row into x, whose strips are `strip` floats apart, unless x is NULL. If requested, return whether all values
 * of the row are between `low` and `high`. NaN and Inf are not; -0 may not be if `low` is 0. A check
 * during scaling costs a thirtieth of the narrowest product; a separate pass would cost as much as the product. Whole
 * strips have separate code, because gcc then knows their length. */
static inline __attribute__((always_inline)) int scale_row(
    const Rows *rows, long i, float *x, long strip, const int is_checked)
{
    BITS worst = 0;
    long start = 0;
    for (; start + STRIP <= rows->n_inputs; start += STRIP, x += x ? strip : 0)
        worst = scale_values(rows, i, start, STRIP, x, worst, is_checked);
    worst = scale_values(rows, i, start, rows->n_inputs - start, x, worst, is_checked);
    return worst < bits_of((SCALING)INFINITY);
}

static void scale_rows(const Rows *rows, long first, long n_rows, float *x, long x_row, long strip)
{
    for (long i = 0; i < n_rows; i++)
        scale_row(rows, first + i, x + i * x_row, strip, 0);
}

/* Return the data to prefetch for scaling the tile that starts at row `first`. */
static Soon soon_read(const Rows *rows, long first, long column)
{
    Soon soon;
    for (int i = 0; i < TILE_HEIGHT; i++)
        soon.rows[i] = (const char *)(row_at(rows, least(first + i, rows->n_rows - 1)) + column);
    soon.bytes = sizeof(ROW);
    return soon;
}
