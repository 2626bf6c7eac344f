/* Features of rows: sigmoid(x . W + b_hidden); and, where that is asked for, which rows lie in the range that is expected. */
typedef struct {
    Rows rows;
    Weights weights;
    float *out;
    npy_bool *inside; /* whether a row's values lie in their range; NULL when nobody asks */
    long n_threads;
    float *x; /* a batch for each thread */
    long x_row;
    Tile *sums;
    long n_begun;
    Share share;
} Encoding;

static void lay_out_encoding(void *job, Memory *memory)
{
    Encoding *e = (Encoding *)job;
    lay_out_weights(&e->weights, memory, 0);
    e->x_row = round_up(e->rows.n_inputs, LINE);
    e->x = reserve(memory, memory->n_threads * BATCH * TILE_HEIGHT * e->x_row);
    e->sums = (Tile *)reserve(memory, memory->n_threads * n_sums(&e->weights) * TILE_HEIGHT * TILE_WIDTH);
}

static void finish_features(const Batch *b, long row, long f, Tile sums)
{
    const Weights *w = b->weights;
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
        float *out = ((Encoding *)b->job)->out + (b->first + row + i) * w->n_features + f;
        for (long j = 0; j < least(TILE_WIDTH, w->n_features - f); j += LANES)
            store_some(out + j, sigmoid(load(&sums[i][j]) + load(w->bias_hidden + f + j)), w->n_features - f - j);
    }
}

static void encode_some(void *job)
{
    Encoding *e = (Encoding *)job;
    long self = __atomic_fetch_add(&e->n_begun, 1, __ATOMIC_RELAXED);
    Batch b = {&e->weights, &e->rows, 0, 0, 0, e->x + self * BATCH * TILE_HEIGHT * e->x_row, 0, e->x_row, 0,
               e->sums + self * n_sums(&e->weights), e};
    for (long start, stop; take(&e->share, &start, &stop);)
        for (; start < stop; start += BATCH) {
            b.first = start * TILE_HEIGHT;
            b.n_tiles = least(BATCH, stop - start);
            b.n_rows = least(b.n_tiles * TILE_HEIGHT, e->rows.n_rows - b.first);
            if (e->inside)
                for (long i = 0; i < b.n_rows; i++)
                    e->inside[b.first + i] = scale_row(b.rows, b.first + i, b.x + i * b.x_row, 1);
            else
                scale_batch(&b);
            times_W(&b, b.x, 1, finish_features);
        }
}

/* Fill `out`; 0 when there is not enough memory. */
static int encode(Encoding *e, Memory *memory)
{
    e->n_threads = threads_for(2.0 * e->rows.n_rows * e->rows.n_inputs * e->weights.n_features, e->n_threads);
    if (!provide(memory, 0, e->n_threads, lay_out_encoding, e))
        return 0;
    pack(&e->weights, e->n_threads);
    e->n_begun = 0;
    e->share = share_of(pieces(e->rows.n_rows, TILE_HEIGHT), 8 * BATCH, e->n_threads);
    together(e->n_threads, encode_some, e);
    return 1;
}

/* With NumPy's arrays; 0 when a Python exception is set. */
static int encode_arrays(Memory *memory, PyArrayObject *rows, PyArrayObject *W, PyArrayObject *b_hidden, long n_threads,
                         PyArrayObject *out, PyArrayObject *maximum, PyArrayObject *inside, PyArrayObject *minimum,
                         PyArrayObject *scale)
{
    Encoding e;
    int done;
    memset(&e, 0, sizeof e);
    if (!take_rows(&e.rows, rows, 0, minimum, scale) || !take_weights(&e.weights, &e.rows, W, b_hidden, 0) ||
        !is_as(out, "out", e.rows.n_rows, e.weights.n_features))
        return 0;
    e.out = (float *)PyArray_DATA(out);
    if (maximum) {
        if (!is_as(maximum, "maximum", e.rows.n_inputs, 1) || !is_as(inside, "inside", e.rows.n_rows, 1))
            return 0;
        e.rows.maximum = (const SCALING *)PyArray_DATA(maximum);
        e.inside = (npy_bool *)PyArray_DATA(inside);
    }
    e.n_threads = n_threads;
    Py_BEGIN_ALLOW_THREADS
    done = encode(&e, memory);
    Py_END_ALLOW_THREADS
    if (!done)
        PyErr_NoMemory();
    return done;
}
