/* Mean squared error of each row's reconstruction: mean((h . W^T + b_output - x)^2). */
typedef struct {
    Rows rows;
    Weights weights;
    float *out;
    long n_threads;
    float *x, *h, *squares; /* a batch for each thread; of r^2, LANES sums for each of its rows */
    long x_row, h_row;
    Tile *sums;
    long n_begun;
    Share share;
} Errors;

static void lay_out_errors(void *job, Memory *memory)
{
    Errors *e = (Errors *)job;
    long n_rows = memory->n_threads * BATCH * TILE_HEIGHT;
    lay_out_weights(&e->weights, memory, 1);
    e->x_row = round_up(e->rows.n_inputs, LINE);
    e->h_row = round_up(e->weights.n_features, LINE);
    e->x = reserve(memory, n_rows * e->x_row);
    e->h = reserve(memory, n_rows * e->h_row);
    e->sums = (Tile *)reserve(memory, memory->n_threads * n_sums(&e->weights) * TILE_HEIGHT * TILE_WIDTH);
}

static void finish_error(const Batch *b, long row, long k, Tile sums)
{
    Errors *e = (Errors *)b->job;
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
        const float *x = b->x + (row + i) * b->x_row + k;
        Vector squares = {0};
        for (long j = 0; j < least(TILE_WIDTH, e->rows.n_inputs - k); j += LANES) {
            Vector r = load(&sums[i][j]) + load(e->weights.bias_output + k + j) - load(x + j);
            squares += r * r;
        }
        float *out = e->out + b->first + row + i, sum = k == 0 ? 0 : *out;
        for (long j = 0; j < LANES; j++)
            sum += squares[j];
        *out = k + TILE_WIDTH < e->rows.n_inputs ? sum : sum / e->rows.n_inputs;
    }
}

static void errors_some(void *job)
{
    Errors *e = (Errors *)job;
    long self = __atomic_fetch_add(&e->n_begun, 1, __ATOMIC_RELAXED), row = self * BATCH * TILE_HEIGHT;
    Batch b = {&e->weights, &e->rows, 0, 0, 0, e->x + row * e->x_row, e->h + row * e->h_row, e->x_row, e->h_row,
               e->sums + self * n_sums(&e->weights), e};
    for (long start, stop; take(&e->share, &start, &stop);) {
        b.first = start * TILE_HEIGHT;
        b.n_tiles = stop - start;
        b.n_rows = least(b.n_tiles * TILE_HEIGHT, e->rows.n_rows - b.first);
        scale_batch(&b);
        times_W(&b, b.x, stop * TILE_HEIGHT, finish_h);
        times_W_turned(&b, finish_error);
    }
}

/* Fill `out`; 0 when there is not enough memory. */
static int errors(Errors *e, Memory *memory)
{
    e->n_threads = threads_for(4.0 * e->rows.n_rows * e->rows.n_inputs * e->weights.n_features, e->n_threads);
    if (!provide(memory, 0, e->n_threads, lay_out_errors, e))
        return 0;
    pack(&e->weights, e->n_threads);
    e->n_begun = 0;
    e->share = share_of(pieces(e->rows.n_rows, TILE_HEIGHT), BATCH, e->n_threads);
    together(e->n_threads, errors_some, e);
    return 1;
}

/* With NumPy's arrays; 0 when a Python exception is set. */
static int errors_arrays(Memory *memory, PyArrayObject *rows, PyArrayObject *W, PyArrayObject *b_hidden,
                         PyArrayObject *b_output, PyArrayObject *out, long n_threads, PyArrayObject *minimum,
                         PyArrayObject *scale)
{
    Errors e;
    int done;
    memset(&e, 0, sizeof e);
    if (!take_rows(&e.rows, rows, 0, minimum, scale) || !take_weights(&e.weights, &e.rows, W, b_hidden, b_output) ||
        !is_as(out, "out", e.rows.n_rows, 1))
        return 0;
    e.out = (float *)PyArray_DATA(out);
    e.n_threads = n_threads;
    Py_BEGIN_ALLOW_THREADS
    done = errors(&e, memory);
    Py_END_ALLOW_THREADS
    if (!done)
        PyErr_NoMemory();
    return done;
}
