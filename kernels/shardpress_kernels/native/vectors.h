/* Vectors of floats as wide as the processor's registers, and the tile of sums that fills most of the registers.
 *
 * Only gcc's vector extensions are used, so that the same code compiles for AVX-512, AVX2, SSE2 and NEON. Loads and
 * stores are of contiguous floats, which need not be aligned.
 */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_VECTORS 4 /* 6 x 4 sums, 4 factors and a broadcast one: 29 of 32 registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_VECTORS 2 /* 15 of 16 */
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define TILE_VECTORS 4 /* 29 of 32 */
#else
#define VECTOR_BYTES 16
#define TILE_VECTORS 2 /* 15 of 16 */
#endif

#define LANES (VECTOR_BYTES / 4)
#define TILE_HEIGHT 6
#define TILE_WIDTH (TILE_VECTORS * LANES)
#define LINE 16 /* floats in a line of the caches */

/* Number of columns of a strip; arrays are stored strip by strip. The operands of a product, transposed or not, are
 * then in few pages: the TLB of a processor holds some 64 pages, and a row of 1,024 columns takes one. */
#define STRIP (TILE_WIDTH == 64 ? 192 : 48)

typedef float Vector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int IntVector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef unsigned UnsignedVector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

static inline Vector load(const float *from) { return *(const Vector *)from; }

static inline void store(float *to, Vector values) { *(Vector *)to = values; }

/* Store the first `n` lanes, for a row that ends before the vector. */
static inline void store_some(float *to, Vector values, long n)
{
    if (n >= LANES)
        store(to, values);
    else
        memcpy(to, &values, n * sizeof(float));
}

static inline long least(long a, long b) { return a < b ? a : b; }

static inline long pieces(long n, long size) { return (n + size - 1) / size; }

static inline long round_up(long n, long unit) { return pieces(n, unit) * unit; }
