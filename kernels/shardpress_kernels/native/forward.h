/* The forward pass of batches of tiles of rows through the layers. Every use of the model begins with it. */

/* Number of rows of a right side that are used at a time. In TILE_WIDTH columns, they fill a part of the L2 cache. A
 * tile of the left side has the same number of columns, which fill a part of the L1 cache. */
#define DEPTH (STRIP * pieces(512, STRIP))

/* Some tiles of rows during the forward pass. */
typedef struct {
    Model *model;
    const Rows *rows;
    long first, n_rows, n_tiles; /* number of the first row, numbers of rows and of tiles */
    long place;                  /* position of the first row in the levels' arrays */
    Tile *sums;                  /* array of n_sums tiles, see Model */
    void *job;
} Batch;

/* Process the sums of the tile that starts at a row of the batch and a column of a level. */
typedef void Finish(const Batch *batch, int level, long row, long column, Tile sums);

/* Return how many tiles of sums a batch must keep until the rest of the right side is added. */
static long waiting_sums(const Panels *right, long n_tiles)
{
    return right->depth > DEPTH ? n_tiles * pieces(right->width, TILE_WIDTH) : 1;
}

/* Allocate for each thread the sums that a batch of this number of tiles needs. */
static Tile *reserve_sums(Model *m, long n_tiles, Memory *memory)
{
    m->n_sums = 1;
    for (int l = 0; l < N_MATRICES; l++) {
        long in = waiting_sums(&m->layers[l].in, n_tiles), back = waiting_sums(&m->layers[l].back, n_tiles);
        m->n_sums = in > m->n_sums ? in : m->n_sums;
        m->n_sums = back > m->n_sums ? back : m->n_sums;
    }
    return (Tile *)reserve(memory, memory->n_threads * m->n_sums * TILE_HEIGHT * TILE_WIDTH);
}

/* Return the rows of a batch in an array of a level. */
static Matrix rows_in(const Batch *b, int level, const float *array)
{
    const Level *of = &b->model->levels[level];
    Matrix rows = {array + place_of(of, b->place, 0), of->row, 1, of->strip};
    return rows;
}

static void scale_batch(const Batch *b)
{
    const Level *columns = &b->model->levels[0];
    float *x = columns->in.out + place_of(columns, b->place, 0);
    scale_rows(b->rows, b->first, b->n_rows, x, columns->row, columns->strip);
}

/* Compute left . right, the inputs of a level. Prefetch the rows that are scaled next, from `next` on, unless `next` is
 * negative. They are prefetched as late as possible, because the panels of W would evict them from the L2 cache. */
static void multiply_batch(const Batch *b, Matrix left, const Panels *right, int level, long next, Finish *finish)
{
    for (long k = 0; k < right->depth; k += DEPTH) {
        long depth = least(DEPTH, right->depth - k);
        Tile *sums = b->sums;
        for (long f = 0; f < right->width; f += TILE_WIDTH)
            for (long row = 0; row < b->n_tiles * TILE_HEIGHT; row += TILE_HEIGHT, sums += right->depth > DEPTH) {
                Matrix matrix = {left.at + row * left.row + k / STRIP * left.strip, left.row, 1, left.strip};
                Soon soon = soon_read(b->rows, next + row, k);
                int is_last = f + TILE_WIDTH >= right->width;
                multiply(*sums, k == 0, &matrix, panel(right, f) + k * TILE_WIDTH, TILE_WIDTH, depth,
                         next >= 0 && is_last ? &soon : 0, right->width - f);
                if (k + depth == right->depth)
                    finish(b, level, row, f, *sums);
            }
    }
}

/* Compute a_l = f_l(a_(l-1) . W_l + b_hidden_l) with rows padded to whole vectors and, with a gain, s_n. */
static void finish_in(const Batch *b, int level, long row, long column, Tile sums)
{
    const Level *to = &b->model->levels[level];
    const float *bias = b->model->layers[level - 1].bias_hidden + column, *gain = b->model->padded_gain + column;
    long place = place_of(to, b->place + row, column);
    for (long i = 0; i < TILE_HEIGHT; i++, place += to->row)
        for (long j = 0; j < least(TILE_WIDTH, to->width - column); j += LANES) {
            Vector out = activate(level, load(&sums[i][j]) + load(bias + j));
            store(to->in.out + place + j, out);
            if (HAS_GAIN && level == N_LAYERS)
                store(to->back.out + place + j, (out - CENTER) * load(gain + j));
            else if (DECODER_INPUT_DIFFERS && level == N_LAYERS)
                store(to->back.out + place + j, out);
        }
}

/* Set s_n to 0 after the first features of each row. */
static void drop_last_features(const Batch *b)
{
    const Level *features = &b->model->levels[N_LAYERS];
    for (long row = 0; row < b->n_rows; row++)
        for (long k = (long)b->model->kept[b->first + row]; k < features->width; k++)
            features->back.out[place_of(features, b->place + row, k)] = 0;
}

/* Compute s_(l-1) = g_l(s_l . W_l^T + b_output_l) of a hidden level. */
static void finish_back(const Batch *b, int level, long row, long column, Tile sums)
{
    const Level *to = &b->model->levels[level];
    const float *bias = b->model->layers[level].bias_output + column;
    float *out = to->back.out + place_of(to, b->place + row, column);
    for (long i = 0; i < TILE_HEIGHT; i++, out += to->row)
        for (long j = 0; j < least(TILE_WIDTH, to->width - column); j += LANES)
            store(out + j, activate(level, load(&sums[i][j]) + load(bias + j)));
}

/* Take the outputs of a level through all layers after it, and back to the hidden level next to the columns. Level 0 is
 * the scaled rows. */
static void forward_pass(const Batch *b, int first, long next)
{
    const Model *m = b->model;
    const Level *levels = m->levels;
    for (int l = first + 1; l <= N_LAYERS; l++)
        multiply_batch(b, rows_in(b, l - 1, levels[l - 1].in.out), &m->layers[l - 1].in, l, l == 1 ? next : -1,
                       finish_in);
    if (IS_NESTED)
        drop_last_features(b);
    for (int l = N_LAYERS; l > 1; l--)
        multiply_batch(b, rows_in(b, l, levels[l].back.out), &m->layers[l - 1].back, l - 1, -1, finish_back);
}
