/* Rows of bytes: their products with the digits of V, and checks of their range.
 *
 * An instruction multiplies four bytes by four digits in each lane; with floats it computes one product. With three
 * digits for a weight, the rate is four thirds of the rate of floats. Only this file uses an instruction that some
 * processors lack. On such processors, and for rows of another dtype, no function of this file is called.
 */
#if ROWS_ARE_BYTES && VECTOR_BYTES == 64 && defined(__AVX512VNNI__)
#define ADD_PRODUCTS "vpdpbusd %2, %1, %0"
#define BYTES_HEIGHT 6 /* 6 x 3 sums, 3 factors and a broadcast one: 22 of 32 registers */
#elif ROWS_ARE_BYTES && VECTOR_BYTES == 32 && defined(__AVXVNNI__)
#define ADD_PRODUCTS "%{vex%} vpdpbusd %2, %1, %0"
#define BYTES_HEIGHT 3 /* 13 of 16 */
#else
#define BYTES_HEIGHT 1
#endif

/* Number of tiles of rows that are multiplied with LANES columns of digits one after another. */
#define BYTES_BATCH (96 / BYTES_HEIGHT)

/* In each lane, add the products of four bytes and four digits. With gcc's built-in function, sums move between
 * registers, and these copies cost as much as the products. */
#ifdef ADD_PRODUCTS
static const int multiplies_bytes = 1;
static inline void add_products(IntVector *sums, IntVector bytes, IntVector digits)
{
    __asm__(ADD_PRODUCTS : "+v"(*sums) : "v"(bytes), "v"(digits));
}
#else
static const int multiplies_bytes = 0;
static inline void add_products(IntVector *sums, IntVector bytes, IntVector digits) {}
#endif

/* Sums of a row, for each digit. */
typedef int ByteSums[N_DIGITS + 1][LANES];

static inline IntVector four_bytes(const npy_uint8 *from)
{
    int bytes;
    memcpy(&bytes, from, sizeof bytes);
    return (IntVector){0} + bytes;
}

static inline IntVector factors_at(const npy_int8 *digits) { return *(const IntVector *)digits; }

/* Compute rows . digits for BYTES_HEIGHT rows that are `step` bytes apart. */
static void multiply_bytes(ByteSums *sums, const npy_uint8 *rows, long step, const npy_int8 *digits, long n_groups)
{
    IntVector kept[BYTES_HEIGHT][N_DIGITS] = {{{0}}};
#pragma GCC unroll 1 /* if gcc unrolled this loop, it would move sums to memory and back */
    for (long group = 0; group < n_groups; group++, rows += N_BYTES, digits += N_DIGITS * N_BYTES * LANES) {
        IntVector factors[N_DIGITS];
#pragma GCC unroll 3
        for (int j = 0; j < N_DIGITS; j++)
            factors[j] = factors_at(digits + j * N_BYTES * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < BYTES_HEIGHT; i++)
#pragma GCC unroll 3
            for (int j = 0; j < N_DIGITS; j++)
                add_products(&kept[i][j], four_bytes(rows + i * step), factors[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < BYTES_HEIGHT; i++)
#pragma GCC unroll 3
        for (int j = 0; j < N_DIGITS; j++)
            *(IntVector *)sums[i][j] = kept[i][j];
}

/* Compute the products with fourth digits, for the groups that have any. */
static void multiply_fourth(ByteSums *sums, const npy_uint8 *rows, long step, const npy_int8 *digits, const int *where,
                            int n)
{
    IntVector kept[BYTES_HEIGHT] = {{0}};
    for (int group = 0; group < n; group++)
#pragma GCC unroll 6
        for (int i = 0; i < BYTES_HEIGHT; i++)
            add_products(&kept[i], four_bytes(rows + i * step + where[group] * N_BYTES),
                         factors_at(digits + group * N_BYTES * LANES));
#pragma GCC unroll 6
    for (int i = 0; i < BYTES_HEIGHT; i++)
        *(IntVector *)sums[i][N_DIGITS] = kept[i];
}

/* Compute the output of the first layer for a row, in LANES columns from f on. */
static inline void finish_bytes(const Digits *d, ByteSums sums, long f, float *out)
{
    float z[LANES];
    for (long j = 0; j < LANES; j++)
        z[j] = (float)(d->bias[f + j] + d->unit[f + j] * (sums[0][j] + 256.0 * sums[1][j] + 65536.0 * sums[2][j] +
                                                          16777216.0 * sums[3][j]));
    store_some(out + f, activate(1, load(z)), d->weights->n_features - f);
}

/* Compute the output of the first layer for a tile of rows, `step` bytes apart; outputs are `out_row` floats apart. */
static void tile_of_bytes(
    const Digits *d, const npy_uint8 *rows, long step, long n_rows, long f, float *out, long out_row)
{
    ByteSums sums[BYTES_HEIGHT];
    multiply_bytes(sums, rows, step, digits_of(d, f), d->n_groups);
    multiply_fourth(sums, rows, step, fourth_of(d, f), where_of(d, f), d->n_fourth[f / LANES]);
    for (long i = 0; i < n_rows; i++)
        finish_bytes(d, sums[i], f, out + i * out_row);
}

/* Find the smallest and largest byte in the range of a column, whose ends need not be whole numbers. No byte is in the
 * range if an end is NaN. */
static void range_of_bytes(SCALING minimum, SCALING maximum, npy_uint8 *low, npy_uint8 *high)
{
    double first = ceil(minimum), last = floor(maximum);
    int any = first <= 255 && last >= 0;
    *low = !any ? 255 : first > 0 ? (npy_uint8)first : 0;
    *high = !any ? 0 : last < 255 ? (npy_uint8)last : 255;
}

static int lie_between(const npy_uint8 *row, const npy_uint8 *low, const npy_uint8 *high, long n)
{
    npy_uint8 outside = 0;
    for (long k = 0; k < n; k++)
        outside |= (row[k] < low[k]) | (row[k] > high[k]);
    return !outside;
}
