/* Replacement of values by ranks, for columns of one type; rowmath.c includes this file for float and for double.
 * Before each inclusion define
 *
 * VALUE       the type
 * NAME(name)  the name of a function for this type
 */

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
            search(x, at, knots, n_knots);
            for (int j = 0; j < BLOCK_ROWS; j++)
                x[j] = rank(x[j], at[j], knots, ranks, n_knots);
            for (int j = 0; j < n; j++)
                column[j * n_columns] = (VALUE)x[j];
        }
    }
}

#undef VALUE
#undef NAME
