/* Rows as they lie in the shards, of type ROW, and scaled ones: (row - minimum) * scale, computed in SCALING. */
typedef struct {
    const ROW *values;
    const npy_int64 *numbers;          /* which rows, in this order; all of them when NULL */
    const SCALING *minimum, *scale;    /* rows are only cast when NULL */
    long n_rows, n_inputs;
} Rows;

static const ROW *row_at(const Rows *rows, long i)
{
    return rows->values + (rows->numbers ? rows->numbers[i] : i) * rows->n_inputs;
}

static void scale_rows(const Rows *rows, long first, long n_rows, float *x, long x_row)
{
    for (long i = 0; i < n_rows; i++, x += x_row) {
        const ROW *row = row_at(rows, first + i);
        const SCALING *minimum = rows->minimum, *scale = rows->scale;
        if (minimum)
            for (long k = 0; k < rows->n_inputs; k++)
                x[k] = (float)(((SCALING)row[k] - minimum[k]) * scale[k]);
        else
            for (long k = 0; k < rows->n_inputs; k++)
                x[k] = (float)row[k];
    }
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
