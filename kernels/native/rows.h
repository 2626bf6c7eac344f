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

/* Scale a row into x, if that is not NULL. Whether all its values lie between `minimum` and `maximum` (which NaN and Inf
 * do not; and -0 where the minimum is 0 may not) is told to those who ask: asked while the values are at hand it costs a
 * thirtieth of the narrowest product, in a pass of its own as much as the product. */
static inline __attribute__((always_inline)) int scale_row(const Rows *rows, long i, float *x, const int is_asked)
{
    const ROW *row = row_at(rows, i);
    const SCALING *minimum = rows->minimum, *scale = rows->scale, *maximum = rows->maximum;
    BITS worst = 0;
    for (long k = 0; k < rows->n_inputs; k++) {
        SCALING value = (SCALING)row[k], above = minimum ? value - minimum[k] : value;
        if (is_asked) {
            BITS low = bits_of(above), high = bits_of(maximum[k] - value);
            worst = worst > low ? worst : low;
            worst = worst > high ? worst : high;
        }
        if (x)
            x[k] = (float)(minimum ? above * scale[k] : value);
    }
    return worst < bits_of((SCALING)INFINITY);
}

static void scale_rows(const Rows *rows, long first, long n_rows, float *x, long x_row)
{
    for (long i = 0; i < n_rows; i++)
        scale_row(rows, first + i, x + i * x_row, 0);
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
