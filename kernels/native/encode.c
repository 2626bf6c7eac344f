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
    Folded folded;
    int is_folded; /* whether rows are multiplied as they are */
    Digits digits;
    npy_uint8 *last_tile;  /* of rows of bytes, with zeros behind: groups end beyond rows, in the next one elsewhere */
    npy_uint8 *low, *high; /* the range of each column's bytes */
    long n_begun;
    Share share;
} Encoding;

static int may_fold(const Encoding *e) { return ROWS_ARE_FLOATS && e->weights.n_features <= MOST_FOLDED; }

static int may_multiply_bytes(const Encoding *e) { return multiplies_bytes && e->rows.minimum; }

static void lay_out_encoding(void *job, Memory *memory)
{
    Encoding *e = (Encoding *)job;
    lay_out_weights(&e->weights, memory, 0);
    e->x_row = round_up(e->rows.n_inputs, LINE);
    e->x = reserve(memory, memory->n_threads * BATCH * TILE_HEIGHT * e->x_row);
    e->sums = (Tile *)reserve(memory, memory->n_threads * n_sums(&e->weights) * TILE_HEIGHT * TILE_WIDTH);
    if (may_fold(e))
        lay_out_folded(&e->folded, &e->weights, memory);
    if (may_multiply_bytes(e)) {
        lay_out_digits(&e->digits, &e->weights, &e->rows, memory);
        e->last_tile = (npy_uint8 *)reserve(memory, BYTES_HEIGHT * e->digits.n_groups);
        e->low = (npy_uint8 *)reserve(memory, e->digits.n_groups);
        e->high = (npy_uint8 *)reserve(memory, e->digits.n_groups);
    }
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

/* Let a batch's rows be multiplied where they lie, or copied if they do not fill its tiles, which are read whole. */
static void take_as_they_are(const Encoding *e, Batch *b)
{
    Rows unscaled = e->rows;
    unscaled.minimum = 0;
    if (e->inside)
        check_rows(b->rows, b->first, b->n_rows, e->inside + b->first);
    if (b->n_rows < b->n_tiles * TILE_HEIGHT) {
        scale_rows(&unscaled, b->first, b->n_rows, b->x, b->x_row);
        return;
    }
    b->x = (float *)row_at(b->rows, b->first);
    b->x_row = e->rows.n_inputs;
}

/* What of a batch is multiplied; and which of its rows lie in their range, for those who ask. */
static void prepare(const Encoding *e, Batch *b, float *x)
{
    b->x = x;
    b->x_row = e->x_row;
    if (e->is_folded)
        take_as_they_are(e, b);
    else if (e->inside)
        for (long i = 0; i < b->n_rows; i++)
            e->inside[b->first + i] = scale_row(b->rows, b->first + i, b->x + i * b->x_row, 1);
    else
        scale_batch(b);
}

static void encode_some(void *job)
{
    Encoding *e = (Encoding *)job;
    long self = __atomic_fetch_add(&e->n_begun, 1, __ATOMIC_RELAXED);
    Batch b = {&e->weights, &e->rows, 0, 0, 0, 0, 0, 0, 0, e->sums + self * n_sums(&e->weights), e};
    long start, stop, next, end;
    for (int there = take(&e->share, &next, &end); there;) {
        start = next;
        next = stop = least(start + BATCH, end);
        if (stop == end) /* taken before it is needed, to look ahead to it */
            there = take(&e->share, &next, &end);
        b.first = start * TILE_HEIGHT;
        b.n_tiles = stop - start;
        b.n_rows = least(b.n_tiles * TILE_HEIGHT, e->rows.n_rows - b.first);
        prepare(e, &b, e->x + self * BATCH * TILE_HEIGHT * e->x_row);
        times_W(&b, b.x, next * TILE_HEIGHT, finish_features);
    }
}

/* A tile of rows, which are `step` bytes apart. */
static const npy_uint8 *rows_of_bytes(const Encoding *e, long tile, long *step)
{
    int is_last = (tile + 1) * BYTES_HEIGHT >= e->rows.n_rows;
    *step = is_last ? e->digits.n_groups * N_BYTES : e->rows.n_inputs;
    return is_last ? e->last_tile : (const npy_uint8 *)e->rows.values + tile * BYTES_HEIGHT * e->rows.n_inputs;
}

static void encode_tiles_of_bytes(const Encoding *e, long start, long stop)
{
    long n_inputs = e->rows.n_inputs, n_features = e->weights.n_features, step;
    for (long f = 0; f < n_features; f += LANES)
        for (long tile = start; tile < stop; tile++) {
            long first = tile * BYTES_HEIGHT, n_rows = least(BYTES_HEIGHT, e->rows.n_rows - first);
            const npy_uint8 *rows = rows_of_bytes(e, tile, &step);
            for (long i = 0; e->inside && f == 0 && i < n_rows; i++)
                e->inside[first + i] = lie_between(rows + i * step, e->low, e->high, n_inputs);
            tile_of_bytes(&e->digits, rows, step, n_rows, f, e->out + first * n_features);
        }
}

static void encode_some_bytes(void *job)
{
    Encoding *e = (Encoding *)job;
    for (long start, stop; take(&e->share, &start, &stop);)
        for (; start < stop; start += BYTES_BATCH)
            encode_tiles_of_bytes(e, start, least(start + BYTES_BATCH, stop));
}

static void copy_last_tile(Encoding *e)
{
    long n_rows = e->rows.n_rows, n_inputs = e->rows.n_inputs, first = round_up(n_rows, BYTES_HEIGHT) - BYTES_HEIGHT;
    for (long i = first; n_rows > 0 && i < n_rows; i++)
        memcpy(e->last_tile + (i - first) * e->digits.n_groups * N_BYTES, e->rows.values + i * n_inputs, n_inputs);
}

static void encode_bytes(Encoding *e)
{
    copy_last_tile(e);
    for (long k = 0; e->inside && k < e->rows.n_inputs; k++)
        range_of_bytes(e->rows.minimum[k], e->rows.maximum[k], &e->low[k], &e->high[k]);
    e->share = share_of(pieces(e->rows.n_rows, BYTES_HEIGHT), 2 * BYTES_BATCH, e->n_threads);
    together(e->n_threads, encode_some_bytes, e);
}

static void encode_floats(Encoding *e)
{
    e->is_folded = may_fold(e) && fold(&e->folded, &e->weights, &e->rows);
    pack(&e->weights, e->n_threads);
    e->n_begun = 0;
    e->share = share_of(pieces(e->rows.n_rows, TILE_HEIGHT), 8 * BATCH, e->n_threads);
    together(e->n_threads, encode_some, e);
}

/* Fill `out`; 0 when there is not enough memory. */
static int encode(Encoding *e, Memory *memory)
{
    e->n_threads = threads_for(2.0 * e->rows.n_rows * e->rows.n_inputs * e->weights.n_features, e->n_threads);
    if (!provide(memory, 0, e->n_threads, lay_out_encoding, e))
        return 0;
    if (may_multiply_bytes(e) && pack_digits(&e->digits, e->n_threads))
        encode_bytes(e);
    else
        encode_floats(e);
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
