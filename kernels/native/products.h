/* Products of matrices, tile by tile: TILE_HEIGHT rows by TILE_WIDTH columns of sums stay in registers.
 *
 * Each sum runs through the inner dimension in one chain, in ascending order. So an element's bits depend on its own row
 * and column and on nothing else: not on the rows beside it, nor on the number of threads.
 */
typedef float Tile[TILE_HEIGHT][TILE_WIDTH];

/* The left side of a product: element (i, k) lies at at[i * row + k % STRIP * step + k / STRIP * strip]. */
typedef struct {
    const float *at;
    long row, step, strip;
} Matrix;

/* Rows that will be wanted soon: of each, `bytes` more for each element of the inner dimension. */
typedef struct {
    const char *rows[TILE_HEIGHT];
    long bytes;
} Soon;

/* Fetch a line of what comes after this tile: the processor does not see it coming. Changes no result. */
static inline void look_ahead(const Soon *soon, long k)
{
    for (int i = 0; i < TILE_HEIGHT; i++)
        __builtin_prefetch(soon->rows[i] + k * soon->bytes);
}

/* Narrow tiles leave few instructions to spare for counting (with AVX2 a step is 1.01 to 1.03 times as fast by 4, with
 * AVX-512 0.97 to 0.99). */
enum { UNROLLED = TILE_VECTORS == 2 ? 4 : 2 };

/* sums += left . right, or anew: sums = left . right. The right side's rows are `step` floats apart.
 *
 * The left side by its place: as a value it would be read in one piece just after it has been written in four, for which
 * a processor waits until all it has stored before, of the last tile, is in the cache. */
static inline __attribute__((always_inline)) void multiply_vectors(
    Tile sums, int anew, const Matrix *left, const float *right, long step, long depth, const Soon *soon, const int n_vectors)
{
    Vector kept[TILE_HEIGHT][TILE_VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < TILE_HEIGHT; i++)
#pragma GCC unroll 4
        for (int j = 0; j < n_vectors; j++)
            kept[i][j] = anew ? (Vector){0} : load(&sums[i][j * LANES]);
    const float *strip = left->at;
    const long row = left->row, left_step = left->step;
    for (long start = 0; start < depth; start += STRIP, strip += left->strip) {
        const float *at = strip;
        long n = least(STRIP, depth - start);
#pragma GCC unroll UNROLLED
        for (long k = 0; k < n; k++, at += left_step, right += step) {
            Vector factors[TILE_VECTORS];
            if (soon && k % LINE == 0)
                look_ahead(soon, start + k);
#pragma GCC unroll 4
            for (int j = 0; j < n_vectors; j++)
                factors[j] = load(right + j * LANES);
#pragma GCC unroll 6
            for (int i = 0; i < TILE_HEIGHT; i++)
#pragma GCC unroll 4
                for (int j = 0; j < n_vectors; j++)
                    kept[i][j] += at[i * row] * factors[j];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < TILE_HEIGHT; i++)
#pragma GCC unroll 4
        for (int j = 0; j < n_vectors; j++)
            store(&sums[i][j * LANES], kept[i][j]);
}

/* The same for the columns that are left, in as few vectors as they need. */
static inline __attribute__((always_inline)) void multiply_columns(
    Tile sums, int anew, const Matrix *left, const float *right, long step, long depth, const Soon *soon, long n_columns)
{
    long n_vectors = least(TILE_VECTORS, pieces(n_columns, LANES));
    if (n_vectors == 1)
        multiply_vectors(sums, anew, left, right, step, depth, soon, 1);
    else if (n_vectors == 2)
        multiply_vectors(sums, anew, left, right, step, depth, soon, 2);
    else if (n_vectors == 3)
        multiply_vectors(sums, anew, left, right, step, depth, soon, least(3, TILE_VECTORS));
    else
        multiply_vectors(sums, anew, left, right, step, depth, soon, TILE_VECTORS);
}

/* Code of its own for where nothing is wanted soon: to ask for each line takes AVX2 a tenth of a product. */
static void multiply(
    Tile sums, int anew, const Matrix *left, const float *right, long step, long depth, const Soon *soon, long n_columns)
{
    if (soon)
        multiply_columns(sums, anew, left, right, step, depth, soon, n_columns);
    else
        multiply_columns(sums, anew, left, right, step, depth, 0, n_columns);
}
