/* Transposition of blocks of LANES x LANES floats. */

/* Return alternating lanes of two vectors, a b a b ..., from their lower or upper halves. */
static inline Vector interleave(Vector a, Vector b, const int upper)
{
    IntVector order;
    for (int i = 0; i < LANES; i++)
        order[i] = i / 2 + i % 2 * LANES + upper * (LANES / 2);
    return __builtin_shuffle(a, b, order);
}

/* Transpose a block. Interleaving the first half of the rows with the second half moves one bit of each element's
 * position from its row number to its column number. After one round for each bit, rows and columns are exchanged. */
static inline void transpose(float *to, long to_row, const float *from, long from_row)
{
    Vector rows[LANES], mixed[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        rows[i] = load(from + i * from_row);
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = interleave(rows[i], rows[i + LANES / 2], 0);
            mixed[2 * i + 1] = interleave(rows[i], rows[i + LANES / 2], 1);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            rows[i] = mixed[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        store(to + i * to_row, rows[i]);
}
