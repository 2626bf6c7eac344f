/* Features of rows and, if requested, which rows are within the expected range. */
typedef struct {
    Rows rows;
    Model model;
    float *out;
    npy_bool *inside; /* whether a row's values are within their range; NULL if not requested */
    long n_threads;
    Tile *sums;
    Folded folded;
    int is_folded; /* whether rows are multiplied without scaling */
    Digits digits;
    npy_uint8 *last_tile;  /* last tile of rows of bytes, padded with zeros because groups extend past rows */
    npy_uint8 *low, *high; /* the range of each column's bytes */
    long n_started;
    Share share;
} Encoding;

/* If the sum of a single layer overflows, a bounded code returns one of its limits, so its features are finite. */
#define IS_ALWAYS_FINITE (N_LAYERS == 1 && CODE_IS_BOUNDED)

static int can_fold(const Encoding *e) { return ROWS_ARE_FLOATS && e->model.layers[0].n_features <= MOST_FOLDED; }

static int can_multiply_bytes(const Encoding *e) { return multiplies_bytes && e->rows.center; }

/* Return the largest number of tiles in a batch of floats or of bytes. */
static long most_tiles(const Encoding *e)
{
    long of_bytes = pieces(BYTES_BATCH * BYTES_HEIGHT, TILE_HEIGHT);
    return can_multiply_bytes(e) && of_bytes > e->model.batch ? of_bytes : e->model.batch;
}

static void lay_out_encoding(void *job, Memory *memory)
{
    Encoding *e = (Encoding *)job;
    Model *m = &e->model;
    lay_out_model(m, memory, 0);
    lay_out_rows(m, memory->n_threads * most_tiles(e) * TILE_HEIGHT);
    for (int l = 0; l < N_LAYERS; l++)
        m->levels[l].in.out = reserve(memory, size_of_level(&m->levels[l]));
    e->sums = reserve_sums(m, most_tiles(e), memory);
    if (can_fold(e))
        lay_out_folded(&e->folded, &m->layers[0], memory);
    if (can_multiply_bytes(e)) {
        lay_out_digits(&e->digits, &m->layers[0], &e->rows, memory);
        e->last_tile = (npy_uint8 *)reserve(memory, BYTES_HEIGHT * e->digits.n_groups);
        e->low = (npy_uint8 *)reserve(memory, e->digits.n_groups);
        e->high = (npy_uint8 *)reserve(memory, e->digits.n_groups);
    }
}

/* -- all layers but the first --------------------------------------------------------------------------------- */

static void finish_features(const Batch *b, int level, long row, long f, Tile sums)
{
    const Weights *w = &b->model->layers[level - 1];
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
        float *out = ((Encoding *)b->job)->out + (b->first + row + i) * w->n_features + f;
        for (long j = 0; j < least(TILE_WIDTH, w->n_features - f); j += LANES) {
            Vector z = load(&sums[i][j]) + load(w->bias_hidden + f + j);
            store_some(out + j, activate(level, z), w->n_features - f - j);
        }
    }
}

static Finish *finish_of(int level) { return level < N_LAYERS ? finish_in : finish_features; }

static int are_finite(const float *values, long n)
{
    int all = 1;
    for (long i = 0; i < n; i++)
        all &= fabsf(values[i]) < INFINITY; /* false for NaN */
    return all;
}

/* Compute all layers after the first one for a batch. */
static void encode_remaining_layers(const Encoding *e, const Batch *b)
{
    const Model *m = b->model;
    long n_features = m->levels[N_LAYERS].width;
    for (int l = 2; l <= N_LAYERS; l++)
        multiply_batch(b, rows_in(b, l - 1, m->levels[l - 1].in.out), &m->layers[l - 1].in, l, -1, finish_of(l));
    for (long i = b->first; e->inside && !IS_ALWAYS_FINITE && i < b->first + b->n_rows; i++)
        e->inside[i] &= are_finite(e->out + i * n_features, n_features);
}

/* Return the batch of one thread, which `set_rows` moves to other rows. */
static Batch batch_of(Encoding *e)
{
    long self = __atomic_fetch_add(&e->n_started, 1, __ATOMIC_RELAXED);
    Batch b = {&e->model, &e->rows, 0, 0, 0, self * most_tiles(e) * TILE_HEIGHT, e->sums + self * e->model.n_sums, e};
    return b;
}

static void set_rows(Batch *b, long first, long n_rows)
{
    b->first = first;
    b->n_rows = least(n_rows, b->rows->n_rows - first);
    b->n_tiles = pieces(b->n_rows, TILE_HEIGHT);
}

/* -- the first layer, in floats ------------------------------------------------------------------------------- */

/* Return the rows of a batch to multiply without scaling. Whole tiles are read, so rows that do not fill the last tile
 * are copied. If requested, check the rows. */
static Matrix unscaled_rows(const Encoding *e, const Batch *b, Matrix x)
{
    Rows unscaled = e->rows;
    unscaled.center = 0;
    if (e->inside)
        check_rows(b->rows, b->first, b->n_rows, e->inside + b->first);
    if (b->n_rows < b->n_tiles * TILE_HEIGHT) {
        scale_rows(&unscaled, b->first, b->n_rows, (float *)x.at, x.row, x.strip);
        return x;
    }
    Matrix rows = {(const float *)row_at(b->rows, b->first), e->rows.n_inputs, 1, STRIP};
    return rows;
}

/* Return the rows of a batch to multiply. If requested, check which of them are within their range. */
static Matrix prepare(const Encoding *e, const Batch *b)
{
    Matrix x = rows_in(b, 0, e->model.levels[0].in.out);
    if (e->is_folded)
        return unscaled_rows(e, b, x);
    if (e->inside)
        for (long i = 0; i < b->n_rows; i++)
            e->inside[b->first + i] = scale_row(b->rows, b->first + i, (float *)x.at + i * x.row, x.strip, 1);
    else
        scale_batch(b);
    return x;
}

static void encode_some(void *job)
{
    Encoding *e = (Encoding *)job;
    Batch b = batch_of(e);
    long start, stop, next, end;
    for (int has_piece = take(&e->share, &next, &end); has_piece;) {
        start = next;
        next = stop = least(start + e->model.batch, end);
        if (stop == end) /* take the next batch early, in order to prefetch it */
            has_piece = take(&e->share, &next, &end);
        set_rows(&b, start * TILE_HEIGHT, (stop - start) * TILE_HEIGHT);
        multiply_batch(&b, prepare(e, &b), &e->model.layers[0].in, 1, next * TILE_HEIGHT, finish_of(1));
        encode_remaining_layers(e, &b);
    }
}

static void encode_floats(Encoding *e)
{
    e->is_folded = can_fold(e) && fold(&e->folded, &e->model.layers[0], &e->rows);
    pack(&e->model, 0, e->n_threads);
    e->share = share_of(pieces(e->rows.n_rows, TILE_HEIGHT), 8 * e->model.batch, e->n_threads);
    run_in_team(e->n_threads, encode_some, e);
}

/* -- the first layer, in bytes -------------------------------------------------------------------------------- */

/* Return a tile of rows, which are `step` bytes apart. */
static const npy_uint8 *rows_of_bytes(const Encoding *e, long tile, long *step)
{
    int is_last = (tile + 1) * BYTES_HEIGHT >= e->rows.n_rows;
    *step = is_last ? e->digits.n_groups * N_BYTES : e->rows.n_inputs;
    return is_last ? e->last_tile : (const npy_uint8 *)e->rows.values + tile * BYTES_HEIGHT * e->rows.n_inputs;
}

static void multiply_batch_of_bytes(const Encoding *e, const Batch *b)
{
    const Level *to = &e->model.levels[1];
    long row = N_LAYERS == 1 ? to->width : to->row, step;
    for (long f = 0; f < to->width; f += LANES) {
        float *out = N_LAYERS == 1 ? e->out + b->first * row : to->in.out + place_of(to, b->place, f) - f;
        for (long i = 0; i < b->n_rows; i += BYTES_HEIGHT) {
            long n_rows = least(BYTES_HEIGHT, b->n_rows - i);
            const npy_uint8 *rows = rows_of_bytes(e, (b->first + i) / BYTES_HEIGHT, &step);
            for (long j = 0; e->inside && f == 0 && j < n_rows; j++)
                e->inside[b->first + i + j] = lie_between(rows + j * step, e->low, e->high, e->rows.n_inputs);
            tile_of_bytes(&e->digits, rows, step, n_rows, f, out + i * row, row);
        }
    }
}

static void encode_some_bytes(void *job)
{
    Encoding *e = (Encoding *)job;
    Batch b = batch_of(e);
    for (long start, stop; take(&e->share, &start, &stop);)
        for (; start < stop; start += BYTES_BATCH) {
            set_rows(&b, start * BYTES_HEIGHT, least(BYTES_BATCH, stop - start) * BYTES_HEIGHT);
            multiply_batch_of_bytes(e, &b);
            encode_remaining_layers(e, &b);
        }
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
        range_of_bytes(e->rows.low[k], e->rows.high[k], &e->low[k], &e->high[k]);
    pack(&e->model, 1, e->n_threads);
    e->share = share_of(pieces(e->rows.n_rows, BYTES_HEIGHT), 2 * BYTES_BATCH, e->n_threads);
    run_in_team(e->n_threads, encode_some_bytes, e);
}

/* -- both ----------------------------------------------------------------------------------------------------- */

/* Encode all rows into `out`; return 0 if there is not enough memory. */
static int encode(Encoding *e, Memory *memory)
{
    e->n_threads = threads_for(2 * e->rows.n_rows * size_of(&e->model), e->n_threads);
    if (!provide(memory, 0, e->n_threads, lay_out_encoding, e))
        return 0;
    if (can_multiply_bytes(e) && pack_digits(&e->digits, e->n_threads))
        encode_bytes(e);
    else
        encode_floats(e);
    return 1;
}

/* Encode NumPy arrays; return 0 if a Python exception is set. */
static int encode_arrays(Memory *memory, PyArrayObject *rows, PyArrayObject *const *parameters, long n_threads,
                         PyArrayObject *out, PyArrayObject *low, PyArrayObject *high, PyArrayObject *inside,
                         PyArrayObject *center, PyArrayObject *scale)
{
    Encoding e;
    int done;
    memset(&e, 0, sizeof e);
    if (!take_rows(&e.rows, rows, 0, center, scale) || !take_model(&e.model, &e.rows, parameters) ||
        !is_as(out, "out", e.rows.n_rows, e.model.layers[N_LAYERS - 1].n_features))
        return 0;
    e.out = (float *)PyArray_DATA(out);
    if (PyArray_DIM(inside, 0) > 0) {
        if (!is_as(low, "low", e.rows.n_inputs, 1) || !is_as(high, "high", e.rows.n_inputs, 1) ||
            !is_as(inside, "inside", e.rows.n_rows, 1))
            return 0;
        e.rows.low = (const SCALING *)PyArray_DATA(low);
        e.rows.high = (const SCALING *)PyArray_DATA(high);
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
