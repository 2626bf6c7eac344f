/* Mean squared error of each row's reconstruction: mean((y - x)^2). The reconstruction starts with given features at
 * the level OUTPUT_LEVEL, or with the rows themselves. */
typedef struct {
    Rows rows;
    Model model;
    const float *features; /* NULL if not given */
    float *out;
    long n_threads;
    Tile *sums;
    long n_started;
    Share share;
} Errors;

static void lay_out_errors(void *job, Memory *memory)
{
    Errors *e = (Errors *)job;
    lay_out_model(&e->model, memory, 1);
    lay_out_rows(&e->model, memory->n_threads * e->model.batch * TILE_HEIGHT);
    for (int l = 0; l <= N_LAYERS; l++) {
        Level *level = &e->model.levels[l];
        level->in.out = reserve(memory, size_of_level(level));
        level->back.out = level->in.out; /* the two are never needed at the same time */
    }
    e->sums = reserve_sums(&e->model, e->model.batch, memory);
}

static void finish_error(const Batch *b, int level, long row, long k, Tile sums)
{
    Errors *e = (Errors *)b->job;
    const Level *columns = &b->model->levels[level];
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
        const float *x = columns->in.out + place_of(columns, b->place + row + i, k);
        Vector squares = {0};
        for (long j = 0; j < least(TILE_WIDTH, columns->width - k); j += LANES) {
            Vector r = load(&sums[i][j]) + load(b->model->layers[0].bias_output + k + j) - load(x + j);
            squares += r * r;
        }
        float *out = e->out + b->first + row + i, sum = k == 0 ? 0 : *out;
        for (long j = 0; j < LANES; j++)
            sum += squares[j];
        *out = k + TILE_WIDTH < columns->width ? sum : sum / columns->width;
    }
}

/* Copy the features of a batch to their level, with the gain if they are what the decoder gets. */
static void load_features(const Batch *b)
{
    const Level *level = &b->model->levels[OUTPUT_LEVEL];
    const float *h = ((Errors *)b->job)->features + b->first * level->width;
    for (long i = 0; i < b->n_rows; i++, h += level->width)
        for (long k = 0; k < level->width; k++) {
            float out = HAS_GAIN && OUTPUT_LEVEL == N_LAYERS ? (h[k] - CENTER) * b->model->padded_gain[k] : h[k];
            level->in.out[place_of(level, b->place + i, k)] = out;
        }
}

static void errors_some(void *job)
{
    Errors *e = (Errors *)job;
    long self = __atomic_fetch_add(&e->n_started, 1, __ATOMIC_RELAXED);
    Batch b = {&e->model, &e->rows, 0, 0, 0, self * e->model.batch * TILE_HEIGHT, e->sums + self * e->model.n_sums, e};
    for (long start, stop; take(&e->share, &start, &stop);) {
        b.first = start * TILE_HEIGHT;
        b.n_tiles = stop - start;
        b.n_rows = least(b.n_tiles * TILE_HEIGHT, e->rows.n_rows - b.first);
        scale_batch(&b);
        if (e->features)
            load_features(&b);
        forward_pass(&b, e->features ? OUTPUT_LEVEL : 0, stop * TILE_HEIGHT);
        multiply_batch(&b, rows_in(&b, 1, e->model.levels[1].back.out), &e->model.layers[0].back, 0, -1, finish_error);
    }
}

/* Compute the errors of all rows into `out`; return 0 if there is not enough memory. */
static int errors(Errors *e, Memory *memory)
{
    e->n_threads = threads_for(4 * e->rows.n_rows * size_of(&e->model), e->n_threads);
    if (!provide(memory, 0, e->n_threads, lay_out_errors, e))
        return 0;
    pack(&e->model, 0, e->n_threads);
    e->n_started = 0;
    e->share = share_of(pieces(e->rows.n_rows, TILE_HEIGHT), e->model.batch, e->n_threads);
    run_in_team(e->n_threads, errors_some, e);
    return 1;
}

/* Compute the errors for NumPy arrays; return 0 if a Python exception is set. */
static int errors_arrays(Memory *memory, PyArrayObject *rows, PyArrayObject *features, PyArrayObject *const *parameters,
                         long n_threads, PyArrayObject *out, PyArrayObject *center, PyArrayObject *scale)
{
    Errors e;
    int done;
    memset(&e, 0, sizeof e);
    if (!take_rows(&e.rows, rows, 0, center, scale) || !take_model(&e.model, &e.rows, parameters) ||
        !is_as(out, "out", e.rows.n_rows, 1))
        return 0;
    if (PyArray_DIM(features, 1) > 0) {
        if (!is_as(features, "the array of features", e.rows.n_rows, e.model.layers[OUTPUT_LEVEL - 1].n_features))
            return 0;
        e.features = (const float *)PyArray_DATA(features);
    }
    e.out = (float *)PyArray_DATA(out);
    e.n_threads = n_threads;
    Py_BEGIN_ALLOW_THREADS
    done = errors(&e, memory);
    Py_END_ALLOW_THREADS
    if (!done)
        PyErr_NoMemory();
    return done;
}
