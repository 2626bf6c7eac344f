/* One step of training: gradients of mean((x - y)^2) with tied weights, and the update.
 *
 * Blocks of rows go through two phases. In the first, threads share the rows:
 *
 *     h = sigmoid(x . W + b_hidden)        r = h . W^T + b_output - x        dh = (r . W) h (1 - h)
 *
 * In the second they share the inputs, which are rows of W:  dW = c (x^T . dh + r^T . h), with c = 2 / (number of
 * entries). No sum is ever split between threads, so the result is the same bits for any number of them.
 */

/* Rows of a block, whole tiles: so many that what the second phase reads of h and dh stays in the second cache. */
#define BLOCK_ROWS (43 * TILE_HEIGHT)
/* Tiles of inputs that go through a panel of dh and h one after another. */
#define INPUTS_BATCH 16

typedef struct {
    float *values, *state[2];
} Parameter;

typedef struct {
    Rows rows;
    Weights weights;
    Parameter W, b_hidden, b_output;
    float rate, decay, cost;
    long n_threads;
    float *x, *r, *h, *dh; /* of the block, rows x_row and h_row floats apart */
    long x_row, h_row;
    float *r_sums, *dh_sums, *squares; /* sums over the rows of each tile; of r^2, LANES for each tile */
    float *dW, *db_hidden, *db_output; /* gradients over the blocks so far, without the factor c */
    Tile *sums;
    long first, n_rows; /* of the block */
    long n_begun;
    Share share;
} Step;

/* Rows an odd number of lines apart do not all compete for the same few places of a cache. */
static long odd_lines(long n) { return (pieces(n, LINE) | 1) * LINE; }

static void lay_out_step(void *job, Memory *memory)
{
    Step *s = (Step *)job;
    long n_inputs = s->weights.n_inputs, n_features = s->weights.n_features;
    long n_tiles = pieces(least(memory->n_rows, BLOCK_ROWS), TILE_HEIGHT), n_rows = n_tiles * TILE_HEIGHT;
    s->x_row = odd_lines(n_inputs);
    s->h_row = odd_lines(n_features);
    lay_out_weights(&s->weights, memory, 1);
    s->x = reserve(memory, n_rows * s->x_row);
    s->r = reserve(memory, n_rows * s->x_row);
    s->h = reserve(memory, n_rows * s->h_row);
    s->dh = reserve(memory, n_rows * s->h_row);
    s->r_sums = reserve(memory, n_tiles * s->x_row);
    s->dh_sums = reserve(memory, n_tiles * s->h_row);
    s->squares = reserve(memory, n_tiles * LANES);
    s->dW = reserve(memory, n_inputs * n_features);
    s->db_hidden = reserve(memory, n_features);
    s->db_output = reserve(memory, n_inputs);
    s->sums = (Tile *)reserve(memory, memory->n_threads * n_sums(&s->weights) * TILE_HEIGHT * TILE_WIDTH);
}

/* -- the first phase ------------------------------------------------------------------------------------------ */

/* The batch's place in its block: its row's number there, and its tile's. */
static long block_row(const Batch *b, long row) { return b->first + row - ((Step *)b->job)->first; }

static long block_tile(const Batch *b, long row) { return block_row(b, row) / TILE_HEIGHT; }

static void finish_r(const Batch *b, long row, long k, Tile sums)
{
    const Step *s = (const Step *)b->job;
    float *r = s->r + block_row(b, row) * s->x_row + k, *r_sums = s->r_sums + block_tile(b, row) * s->x_row + k;
    const float *x = b->x + row * s->x_row + k;
    float *squares = s->squares + block_tile(b, row) * LANES;
    Vector square = k == 0 ? (Vector){0} : load(squares);
    for (long j = 0; j < least(TILE_WIDTH, s->rows.n_inputs - k); j += LANES) {
        Vector bias = load(s->weights.bias_output + k + j), sum = {0};
        for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
            Vector residual = load(&sums[i][j]) + bias - load(x + i * s->x_row + j);
            store(r + i * s->x_row + j, residual);
            sum += residual;
            square += residual * residual;
        }
        store(r_sums + j, sum);
    }
    store(squares, square);
}

static void finish_dh(const Batch *b, long row, long f, Tile sums)
{
    const Step *s = (const Step *)b->job;
    float *dh = s->dh + block_row(b, row) * s->h_row + f, *dh_sums = s->dh_sums + block_tile(b, row) * s->h_row + f;
    for (long j = 0; j < least(TILE_WIDTH, s->weights.n_features - f); j += LANES) {
        Vector sum = {0};
        for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
            Vector h = load(b->h + (row + i) * s->h_row + f + j), slope = load(&sums[i][j]) * h * (1.0f - h);
            store(dh + i * s->h_row + j, slope);
            sum += slope;
        }
        store(dh_sums + j, sum);
    }
}

static void rows_some(void *job)
{
    Step *s = (Step *)job;
    long self = __atomic_fetch_add(&s->n_begun, 1, __ATOMIC_RELAXED);
    for (long start, stop; take(&s->share, &start, &stop);) {
        long row = start * TILE_HEIGHT, n_rows = least((stop - start) * TILE_HEIGHT, s->n_rows - row);
        Batch b = {&s->weights, &s->rows, s->first + row, n_rows, stop - start, s->x + row * s->x_row,
                   s->h + row * s->h_row, s->x_row, s->h_row, s->sums + self * n_sums(&s->weights), s};
        scale_batch(&b);
        times_W(&b, b.x, -1, finish_h);
        times_W_turned(&b, finish_r);
        times_W(&b, s->r + row * s->x_row, s->first + stop * TILE_HEIGHT, finish_dh);
    }
}

/* -- the second phase ----------------------------------------------------------------------------------------- */

/* Add sums to those of the blocks before; after the last block they are the gradients, and used. */
static void add_or_update(const Step *s, const Parameter *parameter, float *before, long at, float *sums, long n)
{
    float c = 2.0f / ((float)s->rows.n_rows * (float)s->rows.n_inputs);
    if (s->first > 0)
        for (long i = 0; i < n; i++)
            sums[i] += before[at + i];
    if (s->first + s->n_rows < s->rows.n_rows) {
        memcpy(before + at, sums, n * sizeof(float));
        return;
    }
    for (long i = 0; i < n; i++)
        sums[i] *= c;
    UPDATE(parameter->values + at, parameter->state[0] + at, parameter->state[1] + at, sums, n, s->rate, s->decay);
}

static void finish_dW(const Step *s, long k, long f, Tile sums)
{
    long n_features = s->weights.n_features;
    for (long i = 0; i < least(TILE_HEIGHT, s->weights.n_inputs - k); i++)
        add_or_update(s, &s->W, s->dW, (k + i) * n_features + f, sums[i], least(TILE_WIDTH, n_features - f));
}

static void inputs_some(void *job)
{
    Step *s = (Step *)job;
    Tile sums;
    for (long start, stop; take(&s->share, &start, &stop);)
        for (long f = 0; f < s->weights.n_features; f += TILE_WIDTH)
            for (long k = start * TILE_HEIGHT; k < stop * TILE_HEIGHT; k += TILE_HEIGHT) {
                Matrix x = {s->x + k, 1, s->x_row}, r = {s->r + k, 1, s->x_row};
                multiply(sums, 1, x, s->dh + f, s->h_row, s->n_rows, 0, s->weights.n_features - f);
                multiply(sums, 0, r, s->h + f, s->h_row, s->n_rows, 0, s->weights.n_features - f);
                finish_dW(s, k, f, sums);
            }
}

/* Sums of n columns over all tiles of the block, in place of the first tile's. */
static float *over_tiles(const Step *s, float *sums, long row, long n)
{
    for (long tile = 1; tile < pieces(s->n_rows, TILE_HEIGHT); tile++)
        for (long j = 0; j < n; j++)
            sums[j] += sums[tile * row + j];
    return sums;
}

/* -- both ----------------------------------------------------------------------------------------------------- */

static void take_block(Step *s, double *cost)
{
    long n_inputs = s->weights.n_inputs, n_features = s->weights.n_features, n_tiles = pieces(s->n_rows, TILE_HEIGHT);
    s->n_begun = 0;
    s->share = share_of(n_tiles, BATCH, s->n_threads);
    together(s->n_threads, rows_some, s);
    s->share = share_of(pieces(n_inputs, TILE_HEIGHT), INPUTS_BATCH, s->n_threads);
    together(s->n_threads, inputs_some, s);
    add_or_update(s, &s->b_hidden, s->db_hidden, 0, over_tiles(s, s->dh_sums, s->h_row, n_features), n_features);
    add_or_update(s, &s->b_output, s->db_output, 0, over_tiles(s, s->r_sums, s->x_row, n_inputs), n_inputs);
    for (long i = 0; i < n_tiles * LANES; i++)
        *cost += s->squares[i];
}

/* Update parameters and state in place, and set the cost before; 0 when there is not enough memory. */
static int take_step(Step *s, Memory *memory)
{
    double cost = 0, n_entries = (double)s->rows.n_rows * s->rows.n_inputs;
    s->n_threads = threads_for(10 * n_entries * s->weights.n_features, s->n_threads);
    if (!provide(memory, s->rows.n_rows, s->n_threads, lay_out_step, s))
        return 0;
    pack(&s->weights, s->n_threads);
    for (s->first = 0; s->first < s->rows.n_rows; s->first += BLOCK_ROWS) {
        s->n_rows = least(BLOCK_ROWS, s->rows.n_rows - s->first);
        take_block(s, &cost);
    }
    s->cost = cost / n_entries;
    return 1;
}

/* A parameter with as many arrays of state as the rule has; the second may be missing. */
static int take_parameter(Parameter *parameter, PyArrayObject *values, PyArrayObject *first, PyArrayObject *second)
{
    npy_intp n = PyArray_DIM(values, 0), m = PyArray_NDIM(values) > 1 ? PyArray_DIM(values, 1) : 1;
    if (!is_as(first, "the state of a parameter", n, m) || !is_as(second ? second : first, "the state", n, m))
        return 0;
    parameter->values = (float *)PyArray_DATA(values);
    parameter->state[0] = (float *)PyArray_DATA(first);
    parameter->state[1] = (float *)PyArray_DATA(second ? second : first);
    return 1;
}

static int step_arrays(Step *s, Memory *memory)
{
    int done;
    if (s->rows.n_rows == 0) {
        PyErr_SetString(PyExc_ValueError, "the minibatch has no rows, expected at least one");
        return 0;
    }
    Py_BEGIN_ALLOW_THREADS
    done = take_step(s, memory);
    Py_END_ALLOW_THREADS
    if (!done)
        PyErr_NoMemory();
    return done;
}
