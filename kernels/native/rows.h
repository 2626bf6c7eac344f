/* Rows as they lie in the shards, of type ROW, and scaled ones: (row - minimum) * scale, computed in SCALING. */
typedef struct {
    const ROW *values;
    const npy_int64 *numbers;          /* which rows, in this order; all of them when NULL */
    const SCALING *minimum, *scale;    /* rows are only cast when NULL */
    const SCALING *maximum;            /* with the minimum, the range that values are expected in */
    long n_rows, n_inputs;
} Rows;

static const ROW *row_at(const Rows *rows, long i)
{
    return rows->values + (rows->numbers ? rows->numbers[i] : i) * rows->n_inputs;
}

/* The bits of a number, which are in the order of the numbers from +0 to +Inf; beyond that lie NaN and all below +0. */
static inline BITS bits_of(SCALING value)
{
    BITS bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Some values of a row, as `scale_row`; the worst so far comes back as bits. */
static inline __attribute__((always_inline)) BITS scale_values(
    const Rows *rows, long i, long start, long n, float *__restrict__ x, BITS worst, const int is_asked)
{
    const ROW *__restrict__ row = row_at(rows, i) + start;
    const SCALING *minimum = rows->minimum + start, *scale = rows->scale + start, *maximum = rows->maximum + start;
    for (long k = 0; k < n; k++) {
        SCALING value = (SCALING)row[k], above = rows->minimum ? value - minimum[k] : value;
        if (is_asked) {
            BITS low = bits_of(above), high = bits_of(maximum[k] - value);
            worst = worst > low ? worst : low;
            worst = worst > high ? worst : high;
        }
        if (x)
            x[k] = (float)(rows->minimum ? above * scale[k] : value);
    }
    return worst;
}

/* Scale a row into x, whose strips are `strip` floats apart, if that is not NULL. Whether all its values lie between
 * `minimum` and `maximum` (which NaN and Inf do not; and -0 where the minimum is 0 may not) is told to those who ask:
 * asked while the values are at hand it costs a thirtieth of the narrowest product, in a pass of its own as much as the
 * product. Whole strips have code of their own: gcc then knows how long they are. */
static inline __attribute__((always_inline)) int scale_row(
    const Rows *rows, long i, float *x, long strip, const int is_asked)
{
    BITS worst = 0;
    long start = 0;
    for (; start + STRIP <= rows->n_inputs; start += STRIP, x += x ? strip : 0)
        worst = scale_values(rows, i, start, STRIP, x, worst, is_asked);
    worst = scale_values(rows, i, start, rows->n_inputs - start, x, worst, is_asked);
    return worst < bits_of((SCALING)INFINITY);
}

static void scale_rows(const Rows *rows, long first, long n_rows, float *x, long x_row, long strip)
{
    for (long i = 0; i < n_rows; i++)
        scale_row(rows, first + i, x + i * x_row, strip, 0);
}

/* What will be read when the rows of a tile that starts at row `first` are scaled. */
static Soon soon_read(const Rows *rows, long first, long column)
{
    Soon soon;
    for (int i = 0; i < TILE_HEIGHT; i++)
        soon.rows[i] = (const char *)(row_at(rows, least(first + i, rows->n_rows - 1)) + column);
    soon.bytes = sizeof(ROW);
    return soon;
}
