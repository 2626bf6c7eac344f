/* One step of training: gradients of mean((y - x)^2) with tied weights, and the update.
 *
 * Blocks of rows go through two phases. In the first phase, threads share the rows, which go through the encoder and
 * the decoder (a, s and y of kernels/shardpress_kernels/network.py). Gradients with respect to the inputs of units go from r = y - x
 * through the decoder (q) and then through the encoder (d):
 *
 *     q_0 = r                             q_l = (q_(l-1) . W_l) g'(s_l)
 *     d_n = (q_(n-1) . W_n) gain f'(h)    d_l = (d_(l+1) . W_(l+1)^T) f'(a_l)
 *
 * A head with outputs z and weights V adds e . V^T to the gradient with respect to h, where e is the derivative of the
 * loss with respect to z times a factor that cancels c. Its own gradient is dV = c h^T . e.
 *
 * In the second phase, threads share the rows of each W:  dW_l = c (a_(l-1)^T . d_l + q_(l-1)^T . s_l), with
 * c = 2 / (number of entries). No sum is split between threads, so all bits of the result are the same for any number
 * of threads.
 */

/* Number of rows of a block, in whole tiles. The parts of d and s that the second phase reads have to stay in the L2
 * cache. */
#define BLOCK_ROWS (43 * TILE_HEIGHT)
/* Number of tiles of rows of W that go through a panel of d and s one after another. */
#define INPUTS_BATCH 8
/* Largest number of rows that such tiles go through at a time. Each row uses a cache line of the left and of the right
 * side, and these lines have to stay in the L1 cache from one tile to the next. */
#define CHUNK 132
#define N_PARAMETERS (FIRST_OF_HEAD + 2 * HAS_HEAD)

typedef struct {
    float *values, *state[2];
    float *before; /* the gradient over the blocks so far, without the factor c */
    long n;
} Parameter;

typedef struct {
    Rows rows;
    const npy_uint8 *noise; /* a byte for each entry of the minibatch; NULL without corruption */
    int threshold;          /* entries with smaller noise bytes are hidden */
    const float *targets;   /* the target of each row of the minibatch; NULL without a head */
    float target_factor, target_scale;
    Model model;
    Parameter parameters[N_PARAMETERS];
    float rate, cost;
    long n_threads;
    float *x;                   /* scaled rows of the block */
    float *squares, *gain_sums; /* sums over the rows of each tile: of r^2 in LANES columns, of the gain's gradient */
    Tile *sums;
    float *dW; /* n_dW floats for each thread: room for some rows of the gradient of the widest W */
    long n_dW;
    long first, n_rows; /* first row and number of rows of the block */
    int layer;          /* layer whose gradient is next */
    long n_started;
    Share share;
} Step;

static void lay_out_gradient(Way *way, Memory *memory, long n_tiles, const Level *level)
{
    way->gradient = reserve(memory, size_of_level(level));
    way->sums = reserve(memory, n_tiles * padded(level));
}

/* Lay out both passes through each level. The inputs have no gradient, and y is not stored. Without a gain, and unless
 * the network is nested, the features of both passes are the same. A head stores z and then e in the gradient of its
 * outputs, and e . V^T in the other gradient of the features. */
static void lay_out_levels(Step *s, Memory *memory, long n_tiles)
{
    if (HAS_HEAD) {
        lay_out_gradient(&s->model.levels[N_MATRICES].in, memory, n_tiles, &s->model.levels[N_MATRICES]);
        lay_out_gradient(&s->model.levels[N_LAYERS].back, memory, n_tiles, &s->model.levels[N_LAYERS]);
    }
    for (int l = 0; l <= N_LAYERS; l++) {
        Level *level = &s->model.levels[l];
        long n = size_of_level(level);
        level->in.out = l > 0 || s->noise ? reserve(memory, n) : s->x;
        if (l > 0)
            level->back.out = l < N_LAYERS || DECODER_INPUT_DIFFERS ? reserve(memory, n) : level->in.out;
        if (l > 0)
            lay_out_gradient(&level->in, memory, n_tiles, level);
        if (l < N_LAYERS)
            lay_out_gradient(&level->back, memory, n_tiles, level);
    }
}

static void lay_out_step(void *job, Memory *memory)
{
    Step *s = (Step *)job;
    long n_tiles = pieces(least(memory->n_rows, BLOCK_ROWS), TILE_HEIGHT);
    lay_out_model(&s->model, memory, 1);
    lay_out_rows(&s->model, n_tiles * TILE_HEIGHT);
    s->x = reserve(memory, size_of_level(&s->model.levels[0]));
    lay_out_levels(s, memory, n_tiles);
    s->squares = reserve(memory, n_tiles * LANES);
    s->gain_sums = reserve(memory, n_tiles * padded(&s->model.levels[N_LAYERS]));
    for (int i = 0; i < N_PARAMETERS; i++)
        s->parameters[i].before = reserve(memory, s->parameters[i].n);
    s->sums = reserve_sums(&s->model, s->model.batch, memory);
    s->n_dW = 0;
    for (int l = 1; l <= N_MATRICES; l++) {
        long n = INPUTS_BATCH * TILE_HEIGHT * s->model.levels[l].width;
        s->n_dW = n > s->n_dW ? n : s->n_dW;
    }
    s->dW = reserve(memory, memory->n_threads * s->n_dW);
}

/* -- the first phase ------------------------------------------------------------------------------------------ */

/* Set the input of the network to 0 where the noise is low, and to x elsewhere. */
static void mask_batch(const Step *s, const Batch *b)
{
    const Level *columns = &s->model.levels[0];
    for (long i = 0; i < b->n_rows; i++) {
        const npy_uint8 *noise = s->noise + (b->first + i) * columns->width;
        for (long start = 0; start < columns->width; start += STRIP) {
            const float *x = s->x + place_of(columns, b->place + i, start);
            float *seen = columns->in.out + place_of(columns, b->place + i, start);
            for (long k = 0; k < least(STRIP, columns->width - start); k++)
                seen[k] = noise[start + k] < s->threshold ? 0 : x[k];
        }
    }
}

static void finish_r(const Batch *b, int level, long row, long k, Tile sums)
{
    const Step *s = (const Step *)b->job;
    const Level *columns = &b->model->levels[level];
    long place = b->place + row, tile = place / TILE_HEIGHT;
    float *r = columns->back.gradient + place_of(columns, place, k);
    float *r_sums = columns->back.sums + tile * padded(columns) + k;
    const float *x = s->x + place_of(columns, place, k);
    float *squares = s->squares + tile * LANES;
    Vector square = k == 0 ? (Vector){0} : load(squares);
    for (long j = 0; j < least(TILE_WIDTH, columns->width - k); j += LANES) {
        Vector bias = load(b->model->layers[0].bias_output + k + j), sum = {0};
        for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
            Vector residual = load(&sums[i][j]) + bias - load(x + i * columns->row + j);
            store(r + i * columns->row + j, residual);
            sum += residual;
            square += residual * residual;
        }
        store(r_sums + j, sum);
    }
    store(squares, square);
}

/* Convert a gradient at the outputs of a level in one of the passes to one at its inputs. */
static void finish_gradient(const Batch *b, int level, const Way *way, long row, long column, Tile sums)
{
    const Level *on = &b->model->levels[level];
    long place = b->place + row, tile = place / TILE_HEIGHT;
    const float *out = way->out + place_of(on, place, column);
    float *gradient = way->gradient + place_of(on, place, column), *to = way->sums + tile * padded(on) + column;
    for (long j = 0; j < least(TILE_WIDTH, on->width - column); j += LANES) {
        Vector sum = {0};
        for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
            Vector inner = times_slope(level, load(&sums[i][j]), load(out + i * on->row + j));
            store(gradient + i * on->row + j, inner);
            sum += inner;
        }
        store(to + j, sum);
    }
}

/* Store z in place of e. */
static void finish_z(const Batch *b, int level, long row, long column, Tile sums)
{
    const Step *s = (const Step *)b->job;
    const Level *outputs = &b->model->levels[level];
    const float *bias = b->model->layers[level - 1].bias_hidden + column;
    float *z = outputs->in.gradient + place_of(outputs, b->place + row, column);
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++, z += outputs->row)
        for (long j = 0; j < least(TILE_WIDTH, outputs->width - column); j += LANES)
            store(z + j, (load(&sums[i][j]) + load(bias + j)) * s->target_scale);
}

/* Convert the outputs of a row to factor * (softmax(z) - the class as 0 and 1). Each sum has a fixed order. */
static void find_errors_of_class(float *z, const Level *outputs, long target, float factor)
{
    float largest = -INFINITY, sum = 0;
    for (long j = 0; j < outputs->width; j++) {
        float output = z[place_of(outputs, 0, j)];
        largest = output > largest ? output : largest;
    }
    for (long start = 0; start < outputs->width; start += STRIP) {
        float *strip = z + place_of(outputs, 0, start);
        long n = least(STRIP, outputs->width - start);
        for (long j = 0; j < n; j += LANES)
            store(strip + j, exponential(load(strip + j) - largest));
        for (long j = 0; j < n; j++)
            sum += strip[j];
    }
    for (long j = 0; j < outputs->width; j++)
        z[place_of(outputs, 0, j)] *= factor / sum;
    z[place_of(outputs, 0, target)] -= factor;
}

/* Convert z of a row to e, which is 0 without a target. */
static void find_errors_of_head(const Batch *b, long row)
{
    const Step *s = (const Step *)b->job;
    const Level *outputs = &b->model->levels[N_MATRICES];
    float *z = outputs->in.gradient + place_of(outputs, b->place + row, 0), target = s->targets[b->first + row];
    if (TARGETS_ARE_CLASSES && target >= 0)
        find_errors_of_class(z, outputs, (long)target, s->target_factor);
    else if (!TARGETS_ARE_CLASSES && target == target)
        z[0] = s->target_factor * (z[0] - target);
    else
        for (long j = 0; j < outputs->width; j++)
            z[place_of(outputs, 0, j)] = 0;
}

/* Add e over the rows of each tile. */
static void add_errors_of_head(const Batch *b)
{
    const Level *outputs = &b->model->levels[N_MATRICES];
    for (long row = 0; row < b->n_rows; row += TILE_HEIGHT) {
        float *sums = outputs->in.sums + (b->place + row) / TILE_HEIGHT * padded(outputs);
        for (long j = 0; j < outputs->width; j++) {
            float sum = 0;
            for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++)
                sum += outputs->in.gradient[place_of(outputs, b->place + row + i, j)];
            sums[j] = sum;
        }
    }
}

static void keep_gradient_of_head(const Batch *b, int level, long row, long column, Tile sums)
{
    const Level *features = &b->model->levels[level];
    float *gradient = features->back.gradient + place_of(features, b->place + row, column);
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++, gradient += features->row)
        for (long j = 0; j < least(TILE_WIDTH, features->width - column); j += LANES)
            store(gradient + j, load(&sums[i][j]));
}

static void add_gradient_of_head(const Batch *b, long row, long column, Tile sums)
{
    const Level *features = &b->model->levels[N_LAYERS];
    const float *gradient = features->back.gradient + place_of(features, b->place + row, column);
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++, gradient += features->row)
        for (long j = 0; j < least(TILE_WIDTH, features->width - column); j += LANES)
            store(&sums[i][j], load(&sums[i][j]) + load(gradient + j));
}

/* Compute q of a hidden level. */
static void finish_q(const Batch *b, int level, long row, long column, Tile sums)
{
    finish_gradient(b, level, &b->model->levels[level].back, row, column, sums);
}

/* Convert a gradient at (h - center) * gain to one at h, and store the gradient of the gain. */
static void through_gain(const Batch *b, long row, long column, Tile sums)
{
    const Step *s = (const Step *)b->job;
    const Level *features = &b->model->levels[N_LAYERS];
    long place = b->place + row;
    const float *h = features->in.out + place_of(features, place, column);
    const float *gain = b->model->padded_gain + column;
    float *to = s->gain_sums + place / TILE_HEIGHT * padded(features) + column;
    for (long j = 0; j < least(TILE_WIDTH, features->width - column); j += LANES) {
        Vector sum = {0};
        for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
            Vector gradient = load(&sums[i][j]);
            sum += gradient * (load(h + i * features->row + j) - CENTER);
            store(&sums[i][j], gradient * load(gain + j));
        }
        store(to + j, sum);
    }
}

/* Set gradients at s_n to 0 after the first features of each row. */
static void drop_last_gradients(const Batch *b, long row, long column, Tile sums)
{
    for (long i = 0; i < least(TILE_HEIGHT, b->n_rows - row); i++) {
        long n_kept = (long)b->model->kept[b->first + row + i] - column;
        for (long j = n_kept > 0 ? n_kept : 0; j < TILE_WIDTH; j++)
            sums[i][j] = 0;
    }
}

/* Compute d of any level. */
static void finish_d(const Batch *b, int level, long row, long column, Tile sums)
{
    if (IS_NESTED && level == N_LAYERS)
        drop_last_gradients(b, row, column, sums);
    if (HAS_GAIN && level == N_LAYERS)
        through_gain(b, row, column, sums);
    if (HAS_HEAD && level == N_LAYERS)
        add_gradient_of_head(b, row, column, sums);
    finish_gradient(b, level, &b->model->levels[level].in, row, column, sums);
}

/* Compute e, and the gradient of the head with respect to the features. */
static void pass_through_head(const Batch *b)
{
    const Model *m = b->model;
    const Weights *head = &m->layers[N_MATRICES - 1];
    const Level *features = &m->levels[N_LAYERS], *outputs = &m->levels[N_MATRICES];
    multiply_batch(b, rows_in(b, N_LAYERS, features->in.out), &head->in, N_MATRICES, -1, finish_z);
    for (long row = 0; row < b->n_rows; row++)
        find_errors_of_head(b, row);
    add_errors_of_head(b);
    multiply_batch(b, rows_in(b, N_MATRICES, outputs->in.gradient), &head->back, N_LAYERS, -1, keep_gradient_of_head);
}

/* Compute gradients from r on, through the decoder and then through the encoder. */
static void backward_pass(const Batch *b, long next)
{
    const Model *m = b->model;
    const Level *levels = m->levels;
    for (int l = 1; l <= N_LAYERS; l++)
        multiply_batch(b, rows_in(b, l - 1, levels[l - 1].back.gradient), &m->layers[l - 1].in, l, l == 1 ? next : -1,
                       l < N_LAYERS ? finish_q : finish_d);
    for (int l = N_LAYERS; l > 1; l--)
        multiply_batch(b, rows_in(b, l, levels[l].in.gradient), &m->layers[l - 1].back, l - 1, -1, finish_d);
}

static void rows_some(void *job)
{
    Step *s = (Step *)job;
    Model *m = &s->model;
    long self = __atomic_fetch_add(&s->n_started, 1, __ATOMIC_RELAXED), x_row = m->levels[0].row;
    for (long start, stop; take(&s->share, &start, &stop);) {
        long place = start * TILE_HEIGHT, n_rows = least((stop - start) * TILE_HEIGHT, s->n_rows - place);
        Batch b = {m, &s->rows, s->first + place, n_rows, stop - start, place, s->sums + self * m->n_sums, s};
        scale_rows(&s->rows, b.first, n_rows, s->x + place * x_row, x_row, m->levels[0].strip);
        if (s->noise)
            mask_batch(s, &b);
        forward_pass(&b, 0, -1);
        if (HAS_HEAD)
            pass_through_head(&b);
        multiply_batch(&b, rows_in(&b, 1, m->levels[1].back.out), &m->layers[0].back, 0, -1, finish_r);
        backward_pass(&b, s->first + stop * TILE_HEIGHT);
    }
}

/* -- the second phase ----------------------------------------------------------------------------------------- */

/* a * b + c, rounded once if the processor can do this. Where an expression adds two products, the compiler could
 * otherwise fuse the one in a vectorized loop and the other one in the remaining elements, which depend on the number of
 * threads. g++ 16 does so. */
static inline __attribute__((always_inline)) float fused(float a, float b, float c)
{
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* Update n elements of a parameter and of its states, whose names are STATE_0 and STATE_1. UPDATE contains the
 * statements of the rule in kernels/shardpress_kernels/rules.py. A missing state is NULL. */
static inline void update(float *__restrict p, float *__restrict STATE_0, float *__restrict STATE_1,
                          const float *__restrict g, long n, float rate)
{
    for (long i = 0; i < n; i++) {
        UPDATE
    }
}

/* Add sums to the sums of earlier blocks. After the last block, they are the gradients, and are applied. */
static void add_or_update(const Step *s, const Parameter *parameter, long at, float *sums, long n)
{
    float c = 2.0f / ((float)s->rows.n_rows * (float)s->rows.n_inputs);
    float *before = parameter->before + at;
    if (s->first > 0)
        for (long i = 0; i < n; i++)
            sums[i] += before[i];
    if (s->first + s->n_rows < s->rows.n_rows) {
        memcpy(before, sums, n * sizeof(float));
        return;
    }
    for (long i = 0; i < n; i++)
        sums[i] *= c;
    update(parameter->values + at, parameter->state[0] + at, parameter->state[1] + at, sums, n, s->rate);
}

/* Tiles of rows of W, at TILE_WIDTH of its columns. */
typedef struct {
    long start, stop, column;
} Tiles;

/* Compute sums += left^T . right, or sums = left^T . right. */
static void multiply_transposed(const Step *s, Tile *sums, int zero, const float *left, const float *right, Tiles tiles)
{
    const Level *from = &s->model.levels[s->layer], *to = from + 1;
    long chunk = pieces(s->n_rows, pieces(s->n_rows, CHUNK));
    for (long row = 0; row < s->n_rows; row += chunk)
        for (long tile = tiles.start; tile < tiles.stop; tile++) {
            Matrix transposed = {left + place_of(from, row, tile * TILE_HEIGHT), 1, from->row, STRIP * from->row};
            const float *lines = right + place_of(to, row, tiles.column);
            multiply(sums[tile - tiles.start], zero && row == 0, &transposed, lines, to->row,
                     least(chunk, s->n_rows - row), 0, to->width - tiles.column);
        }
}

/* Store a tile of dW in the layout of W. */
static void keep_tile(float *to, long row, long n_rows, long n_columns, Tile sums)
{
    for (long i = 0; i < n_rows; i++)
        memcpy(to + i * row, sums[i], n_columns * sizeof(float));
}

/* Return the position of the weights of a layer, or of the head, among the parameters. */
static int first_parameter_of(int layer) { return layer < N_LAYERS ? 3 * layer : FIRST_OF_HEAD; }

/* Compute some rows of dW completely, then update the same rows of W and its state in order. Updates tile by tile would
 * defeat the hardware prefetcher. */
static void inputs_some(void *job)
{
    Step *s = (Step *)job;
    const Level *from = &s->model.levels[s->layer], *to = from + 1;
    float *dW = s->dW + __atomic_fetch_add(&s->n_started, 1, __ATOMIC_RELAXED) * s->n_dW;
    Tile sums[INPUTS_BATCH];
    for (long start, stop; take(&s->share, &start, &stop);) {
        for (long f = 0; f < to->width; f += TILE_WIDTH) {
            Tiles tiles = {start, stop, f};
            multiply_transposed(s, sums, 1, from->in.out, to->in.gradient, tiles);
            if (s->layer < N_LAYERS)
                multiply_transposed(s, sums, 0, from->back.gradient, to->back.out, tiles);
            for (long tile = start; tile < stop; tile++)
                keep_tile(dW + (tile - start) * TILE_HEIGHT * to->width + f, to->width,
                          least(TILE_HEIGHT, from->width - tile * TILE_HEIGHT), least(TILE_WIDTH, to->width - f),
                          sums[tile - start]);
        }
        long first = start * TILE_HEIGHT, n_rows = least(stop * TILE_HEIGHT, from->width) - first;
        add_or_update(s, &s->parameters[first_parameter_of(s->layer)], first * to->width, dW, n_rows * to->width);
    }
}

/* Add the sums of all tiles to the gradient of a parameter that is a sum over rows, and update the parameter. */
static void add_tiles(const Step *s, int parameter, float *sums, const Level *level)
{
    for (long tile = 1; tile < pieces(s->n_rows, TILE_HEIGHT); tile++)
        for (long j = 0; j < level->width; j++)
            sums[j] += sums[tile * padded(level) + j];
    add_or_update(s, &s->parameters[parameter], 0, sums, level->width);
}

/* -- both ----------------------------------------------------------------------------------------------------- */

static void take_layer_of_block(Step *s)
{
    const Level *from = &s->model.levels[s->layer], *to = from + 1;
    s->share = share_of(pieces(from->width, TILE_HEIGHT), INPUTS_BATCH, s->n_threads);
    s->n_started = 0;
    run_in_team(s->n_threads, inputs_some, s);
    add_tiles(s, first_parameter_of(s->layer) + 1, to->in.sums, to);
    if (s->layer < N_LAYERS)
        add_tiles(s, 3 * s->layer + 2, from->back.sums, from);
}

static void take_block(Step *s, double *cost)
{
    long n_tiles = pieces(s->n_rows, TILE_HEIGHT);
    s->n_started = 0;
    s->share = (s->model.batch == LARGE_BATCH ? equal_share_of : share_of)(n_tiles, s->model.batch, s->n_threads);
    run_in_team(s->n_threads, rows_some, s);
    for (s->layer = 0; s->layer < N_MATRICES; s->layer++)
        take_layer_of_block(s);
    if (HAS_GAIN)
        add_tiles(s, 3 * N_LAYERS, s->gain_sums, &s->model.levels[N_LAYERS]);
    for (long i = 0; i < n_tiles * LANES; i++)
        *cost += s->squares[i];
}

/* Update parameters and state in place, and store the cost before the update; return 0 if memory is insufficient. */
static int take_step(Step *s, Memory *memory)
{
    double cost = 0, n_rows = s->rows.n_rows;
    s->n_threads = threads_for(10 * n_rows * size_of(&s->model), s->n_threads);
    if (!provide(memory, s->rows.n_rows, s->n_threads, lay_out_step, s))
        return 0;
    pack(&s->model, 0, s->n_threads);
    for (s->first = 0; s->first < s->rows.n_rows; s->first += BLOCK_ROWS) {
        s->n_rows = least(BLOCK_ROWS, s->rows.n_rows - s->first);
        take_block(s, &cost);
    }
    s->cost = cost / (n_rows * s->rows.n_inputs);
    return 1;
}

/* Set a parameter and its state arrays; a rule has one or two. */
static int take_parameter(Parameter *parameter, PyArrayObject *values, PyArrayObject *const *state, int n_states)
{
    npy_intp n = PyArray_DIM(values, 0), m = PyArray_NDIM(values) > 1 ? PyArray_DIM(values, 1) : 1;
    for (int i = 0; i < 2; i++) {
        PyArrayObject *own = state[i < n_states ? i : 0];
        if (!is_as(own, "the state of a parameter", n, m))
            return 0;
        parameter->state[i] = (float *)PyArray_DATA(own);
    }
    parameter->values = (float *)PyArray_DATA(values);
    parameter->n = n * m;
    return 1;
}

/* Set all parameters, in the order of NAMES, and the states of each. */
static int take_parameters(Step *s, PyArrayObject *const *parameters, PyArrayObject *const *states, int n_states)
{
    if (!take_model(&s->model, &s->rows, parameters))
        return 0;
    for (int i = 0; i < N_PARAMETERS; i++)
        if (!take_parameter(&s->parameters[i], parameters[i], states + i * n_states, n_states))
            return 0;
    return 1;
}

static int take_noise(Step *s, PyArrayObject *noise, int threshold)
{
    if (!is_as(noise, "the noise", s->rows.n_rows, s->rows.n_inputs))
        return 0;
    s->noise = (const npy_uint8 *)PyArray_DATA(noise);
    s->threshold = threshold;
    return 1;
}

static int take_targets(Step *s, PyArrayObject *targets, float factor, float scale)
{
    const Weights *head = &s->model.layers[N_MATRICES - 1];
    if (!is_as(targets, "the targets", s->rows.n_rows, 1))
        return 0;
    s->targets = (const float *)PyArray_DATA(targets);
    s->target_factor = factor;
    s->target_scale = scale;
    for (long i = 0; TARGETS_ARE_CLASSES && i < s->rows.n_rows; i++)
        if (!(s->targets[i] < head->n_features)) {
            PyErr_Format(PyExc_ValueError, "the target of row %ld of the minibatch, expected a class below %ld", i,
                         head->n_features);
            return 0;
        }
    return 1;
}

static int take_kept(Step *s, PyArrayObject *kept)
{
    if (!is_as(kept, "the numbers of kept features", s->rows.n_rows, 1))
        return 0;
    s->model.kept = (const float *)PyArray_DATA(kept);
    for (long i = 0; i < s->rows.n_rows; i++)
        if (!(s->model.kept[i] >= 0)) {
            PyErr_Format(PyExc_ValueError, "row %ld of the minibatch keeps fewer than 0 features", i);
            return 0;
        }
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
