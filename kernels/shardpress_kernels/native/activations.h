/* Functions of vectors for the C expressions of kernels/shardpress_kernels/activations.py. */
static inline Vector choose(IntVector where, Vector a, Vector b)
{
    return (Vector)((where & (IntVector)a) | (~where & (IntVector)b));
}

/* exp(x) for x clipped to [-87, 88], computed as in Cephes (S. Moshier, expf.c): if n is the integer nearest to
 * x / log(2) and f the remainder, then exp(x) = 2^n exp(f), and exp(f) is approximated by a polynomial.
 *
 * The function is always inlined, so that a sum with its last product is rounded in the same way everywhere. */
static inline __attribute__((always_inline)) Vector exponential(Vector x)
{
    const float shift = 12582912; /* 1.5 * 2^23: after adding it, the lowest bits hold the nearest integer */
    const Vector zero = {0};
    x = choose(x > 88.0f, zero + 88.0f, x); /* all comparisons are false for NaN, so NaN stays NaN */
    x = choose(x < -87.0f, zero - 87.0f, x);
    Vector shifted = x * 1.44269504f + shift;
    Vector n = shifted - shift;
    Vector f = x - n * 0.693359375f + n * 2.12194440e-4f; /* log(2) in two parts, the first exact in few bits */
    Vector p = zero + 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + f + 1.0f;
    Vector power = (Vector)(((IntVector)shifted << 23) + 0x3f800000); /* 2^n: the shift's own bits fall out */
    return p * power;
}

/* 1 / (1 + exp(-z)). On [-87, 30], compared with float64: relative error at most 1.5e-7, absolute error 9e-8. */
static inline Vector sigmoid(Vector z)
{
    const Vector zero = {0};
    Vector x = -z;
    return choose(x > 88.0f, zero, 1.0f / (1.0f + exponential(x)));
}
