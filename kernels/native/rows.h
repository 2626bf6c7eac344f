/* Rows as they lie in the shards, of type ROW, and scaled ones: (row - minimum) * scale, computed in SCALING. */
typedef struct {
    const ROW *values;
    const npy_int64 *numbers;          /* which rows, in this order; all of them when NULL */
    const SCALING *minimum, *scale;    /* rows are only cast when NULL */
    const SCALING *low, *high;         /* the range that values are expected in */
    long n_rows, n_inputs;
} Rows;

static const ROW *row_at(const Rows *rows, long i)
{
    return rows->values + (rows->numbers ? rows->numbers[i] : i) * rows->n_inputs;
}

/* Scale a row. Whether all its values lie in their range (what is NaN or infinite does not) is told only to those who ask:
 * while the values are at hand it costs little, and in a pass of its own as much as a product. */
static inline __attribute__((always_inline)) int scale_row(const Rows *rows, long i, float *x, const int is_asked)
{
    const ROW *row = row_at(rows, i);
    const SCALING *minimum = rows->minimum, *scale = rows->scale, *low = rows->low, *high = rows->high;
    int is_outside = 0;
    for (long k = 0; k < rows->n_inputs; k++) {
        SCALING value = (SCALING)row[k];
        if (is_asked)
            is_outside |= !(value >= low[k]) | !(value <= high[k]);
        x[k] = (float)(minimum ? (value - minimum[k]) * scale[k] : value);
    }
    return !is_outside;
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
