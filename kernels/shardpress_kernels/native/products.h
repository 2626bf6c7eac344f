/* Products of matrices, tile by tile: TILE_HEIGHT rows by TILE_WIDTH columns of sums stay in registers.
 *
 * Each sum runs through the inner dimension in one chain, in ascending order. Therefore the bits of an element depend
 * only on its own row and column, not on neighbouring rows or on the number of threads.
 */
typedef float Tile[TILE_HEIGHT][TILE_WIDTH];

/* The left side of a product: element (i, k) is at[i * row + k % STRIP * step + k / STRIP * strip]. */
typedef struct {
    const float *at;
    long row, step, strip;
} Matrix;

/* Rows to prefetch: `bytes` of each row for each element of the inner dimension. */
typedef struct {
    const char *rows[TILE_HEIGHT];
    long bytes;
} Soon;

/* Prefetch a line that is needed after this tile, since the processor cannot predict it. Results do not change. */
static inline void look_ahead(const Soon *soon, long k)
{
    for (int i = 0; i < TILE_HEIGHT; i++)
        __builtin_prefetch(soon->rows[i] + k * soon->bytes);
}

/* Narrow tiles have few instructions, so the cost of loop counting is visible: unrolled by 4, a step is 1.01 to 1.03
 * times as fast with AVX2, and 0.97 to 0.99 times with AVX-512. */
enum { UNROLLED = TILE_VECTORS == 2 ? 4 : 2 };

/* Compute sums += left . right, or sums = left . right. The rows of the right side are `step` floats apart.
 *
 * The left side is passed by address. A value would be read in one piece just after it was written in four parts. The
 * processor would then wait until all stores of the previous tile are in the cache. */
static inline __attribute__((always_inline)) void multiply_vectors(
    Tile sums, int zero, const Matrix *left, const float *right, long step, long depth, const Soon *soon, const int n_vectors)
{
    Vector kept[TILE_HEIGHT][TILE_VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < TILE_HEIGHT; i++)
#pragma GCC unroll 4
        for (int j = 0; j < n_vectors; j++)
            kept[i][j] = zero ? (Vector){0} : load(&sums[i][j * LANES]);
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

/* Multiply the remaining columns, in as few vectors as possible. */
static inline __attribute__((always_inline)) void multiply_columns(
    Tile sums, int zero, const Matrix *left, const float *right, long step, long depth, const Soon *soon, long n_columns)
{
    long n_vectors = least(TILE_VECTORS, pieces(n_columns, LANES));
    if (n_vectors == 1)
        multiply_vectors(sums, zero, left, right, step, depth, soon, 1);
    else if (n_vectors == 2)
        multiply_vectors(sums, zero, left, right, step, depth, soon, 2);
    else if (n_vectors == 3)
        multiply_vectors(sums, zero, left, right, step, depth, soon, least(3, TILE_VECTORS));
    else
        multiply_vectors(sums, zero, left, right, step, depth, soon, TILE_VECTORS);
}

/* Code without prefetching is separate, because a test for each line costs a tenth of a product with AVX2. */
static void multiply(
    Tile sums, int zero, const Matrix *left, const float *right, long step, long depth, const Soon *soon, long n_columns)
{
    if (soon)
        multiply_columns(sums, zero, left, right, step, depth, soon, n_columns);
    else
        multiply_columns(sums, zero, left, right, step, depth, 0, n_columns);
}
