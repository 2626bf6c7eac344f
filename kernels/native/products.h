/* Products of matrices, tile by tile: TILE_HEIGHT rows by TILE_WIDTH columns of sums stay in registers.
 *
 * Each sum runs through the inner dimension in one chain, in ascending order. So an element's bits depend on its own row
 * and column and on nothing else: not on neighbouring rows, nor on the number of threads.
 */
typedef float Tile[TILE_HEIGHT][TILE_WIDTH];

/* The left side of a product: element (i, k) lies at at[i * row + k % STRIP * step + k / STRIP * strip]. */
typedef struct {
    const float *at;
    long row, step, strip;
} Matrix;

/* Rows to prefetch: `bytes` of each row for each element of the inner dimension. */
typedef struct {
    const char *rows[TILE_HEIGHT];
    long bytes;
} Soon;

/* Prefetch a line that is needed after this tile, since the processor cannot predict it. Changes no result. */
static inline void look_ahead(const Soon *soon, long k)
{
    for (int i = 0; i < TILE_HEIGHT; i++)
        __builtin_prefetch(soon->rows[i] + k * soon->bytes);
}

/* Narrow tiles have few instructions, so loop counting shows (with AVX2 a step is 1.01 to 1.03 times as fast by 4, with
 * AVX-512 0.97 to 0.99). */
enum { UNROLLED = TILE_VECTORS == 2 ? 4 : 2 };

/* sums += left . right, or sums = left . right. The rows of the right side are `step` floats apart.
 *
 * The left side is passed by address. As a value it would be read at once just after being written in four parts, and
 * the processor would wait until all earlier stores, of the previous tile, are in the cache. */
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

/* The same for the remaining columns, in as few vectors as possible. */
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

/* Separate code without prefetching: a test for each line costs a tenth of a product with AVX2. */
static void multiply(
    Tile sums, int anew, const Matrix *left, const float *right, long step, long depth, const Soon *soon, long n_columns)
{
    if (soon)
        multiply_columns(sums, anew, left, right, step, depth, soon, n_columns);
    else
        multiply_columns(sums, anew, left, right, step, depth, 0, n_columns);
}
