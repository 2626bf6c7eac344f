/* The model: its layers, packed for products, and the activations at each level of units.
 *
 * kernels/shardpress_kernels/network.py lists the equations. Level 0 is the columns, level l is the output of layer l, and level N_LAYERS
 * is the features. A head is one more layer, from the features to the outputs of the head, without a mirror. Macros
 * define the network that is compiled: N_LAYERS, HAS_GAIN, HAS_HEAD and IS_NESTED; HIDDEN_VALUE, HIDDEN_GRADIENT,
 * CODE_VALUE and CODE_GRADIENT, the expressions of kernels/shardpress_kernels/activations.py; CENTER, the code's value at 0; and
 * CODE_IS_BOUNDED.
 */
#define DECODER_INPUT_DIFFERS (HAS_GAIN || IS_NESTED) /* from the features */
#define N_MATRICES (N_LAYERS + HAS_HEAD)
#define FIRST_OF_HEAD (3 * N_LAYERS + HAS_GAIN) /* position of the head among the parameters */

/* Numbers of tiles of rows that go through a panel one after another. A large batch is faster if a layer does not stay
 * in the L2 cache and is fetched for each batch. It is not faster if the layer is so narrow that the batch itself would
 * not stay in the cache. */
#define SMALL_BATCH 4
#define LARGE_BATCH 12
#define IS_LARGE(n_inputs, n_features) ((n_features) > 128 && (n_inputs) * (n_features) > 1 << 17)

/* A matrix as the right side of products, in panels of TILE_WIDTH columns, padded with zeros. */
typedef struct {
    float *at;
    long depth, width; /* numbers of rows and columns */
} Panels;

/* One layer, from n_inputs to n_features units. */
typedef struct {
    const float *W, *b_hidden, *b_output; /* b_output is NULL without a mirror */
    long n_inputs, n_features;
    Panels in, back;                  /* W, and W transposed, which is NULL if it is not needed */
    float *bias_hidden, *bias_output; /* padded with zeros */
    Share share;
} Weights;

/* One of the two passes through a level: outputs of its units, gradients at their inputs, and sums of these gradients
 * over the rows of each tile. */
typedef struct {
    float *out, *gradient, *sums;
} Way;

typedef struct {
    long width, row, strip; /* columns, and distances in floats between rows of a strip and between strips */
    Way in, back;           /* a_l and s_l of kernels/shardpress_kernels/network.py */
} Level;

typedef struct {
    Weights layers[N_MATRICES];
    const float *gain;
    const float *kept;  /* number of the first features of each row that the decoder gets; NULL unless nested */
    float *padded_gain; /* padded with zeros */
    Level levels[N_MATRICES + 1];
    long batch;  /* largest number of tiles of rows in a batch */
    long n_sums; /* number of tiles of sums that a batch needs */
} Model;

/* -- units ---------------------------------------------------------------------------------------------------- */

/* Return the outputs of the units of a level for their inputs. */
static inline Vector activate(int level, Vector z)
{
    if (level < N_LAYERS)
        return HIDDEN_VALUE(z);
    return CODE_VALUE(z);
}

/* Convert a gradient at the outputs of units to one at their inputs. */
static inline Vector times_slope(int level, Vector gradient, Vector out)
{
    if (level < N_LAYERS)
        return HIDDEN_GRADIENT(gradient, out);
    return CODE_GRADIENT(gradient, out);
}

/* -- packing -------------------------------------------------------------------------------------------------- */

static float *panel(const Panels *p, long column) { return p->at + column * round_up(p->depth, LANES); }

static void lay_out_panels(Panels *p, long depth, long width, Memory *memory)
{
    p->at = reserve(memory, round_up(depth, TILE_WIDTH) * round_up(width, TILE_WIDTH));
    p->depth = depth;
    p->width = width;
}

/* Round n up to an odd number of cache lines. Rows at this distance do not all map to the same few cache sets. */
static long odd_lines(long n) { return (pieces(n, LINE) | 1) * LINE; }

/* Return the number of floats of a row of sums. */
static long padded(const Level *level) { return round_up(level->width, LINE); }

/* Return the number of floats of an array of a level. */
static long size_of_level(const Level *level) { return pieces(level->width, STRIP) * level->strip; }

/* Return the position of an element in an array of a level. */
static long place_of(const Level *level, long row, long column)
{
    return column / STRIP * level->strip + row * level->row + column % STRIP;
}

/* Lay out all levels, for arrays of this number of rows. */
static void lay_out_rows(Model *m, long n_rows)
{
    for (int l = 0; l <= N_MATRICES; l++) {
        m->levels[l].row = odd_lines(least(m->levels[l].width, STRIP));
        m->levels[l].strip = n_rows * m->levels[l].row;
    }
}

/* Set up all layers, the widths of all levels, and the batch. */
static void lay_out_model(Model *m, Memory *memory, int with_back)
{
    m->batch = SMALL_BATCH;
    for (int l = 0; l < N_MATRICES; l++) {
        Weights *w = &m->layers[l];
        if (IS_LARGE(w->n_inputs, w->n_features))
            m->batch = LARGE_BATCH;
        lay_out_panels(&w->in, w->n_inputs, w->n_features, memory);
        if (with_back)
            lay_out_panels(&w->back, w->n_features, w->n_inputs, memory);
        w->bias_hidden = reserve(memory, round_up(w->n_features, TILE_WIDTH));
        w->bias_output = reserve(memory, round_up(w->n_inputs, TILE_WIDTH));
    }
    m->padded_gain = reserve(memory, round_up(m->layers[N_LAYERS - 1].n_features, TILE_WIDTH));
    for (int l = 0; l <= N_MATRICES; l++)
        m->levels[l].width = l == 0 ? m->layers[0].n_inputs : m->layers[l - 1].n_features;
}

/* Pack LANES rows of W, from k on. */
static void pack_rows(const Weights *w, long k)
{
    long height = least(LANES, w->n_inputs - k), left = k / TILE_WIDTH * TILE_WIDTH;
    for (long f = 0; f < w->n_features; f += TILE_WIDTH) {
        float *to = panel(&w->in, f) + k * TILE_WIDTH;
        long width = least(TILE_WIDTH, w->n_features - f);
        for (long i = 0; i < height; i++)
            memcpy(to + i * TILE_WIDTH, w->W + (k + i) * w->n_features + f, width * sizeof(float));
        for (long j = 0; w->back.at && j < width; j += LANES)
            transpose(panel(&w->back, left) + (f + j) * TILE_WIDTH + k - left, TILE_WIDTH, to + j, TILE_WIDTH);
    }
}

static void pack_some(void *job)
{
    Weights *w = (Weights *)job;
    for (long start, stop; take(&w->share, &start, &stop);)
        for (; start < stop; start++)
            pack_rows(w, start * LANES);
}

static void pack_layer(Weights *w, long n_threads)
{
    memcpy(w->bias_hidden, w->b_hidden, w->n_features * sizeof(float));
    if (w->b_output)
        memcpy(w->bias_output, w->b_output, w->n_inputs * sizeof(float));
    w->share = share_of(pieces(w->n_inputs, LANES), 8, n_threads);
    run_in_team(n_threads, pack_some, w);
}

/* Pack all layers except the first ones, which are packed already. */
static void pack(Model *m, int first, long n_threads)
{
    for (int l = first; l < N_MATRICES; l++)
        pack_layer(&m->layers[l], n_threads);
    if (HAS_GAIN)
        memcpy(m->padded_gain, m->gain, m->levels[N_LAYERS].width * sizeof(float));
}

/* Return the number of multiplications for the forward pass of one row. */
static double size_of(const Model *m)
{
    double n = 0;
    for (int l = 0; l < N_MATRICES; l++)
        n += (double)m->layers[l].n_inputs * m->layers[l].n_features;
    return n;
}
