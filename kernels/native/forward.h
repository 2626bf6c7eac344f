/* What every use of the model begins with: its parameters packed for products, and rows taken through them in batches. */

/* Rows of W that are used at a time: TILE_WIDTH columns of them fill a part of the second cache, and as many columns of
 * a tile of rows a part of the first. */
#define DEPTH 512
/* Tiles of rows that go through a panel of W one after another. */
#define BATCH 4

typedef struct {
    const float *W, *b_hidden, *b_output;
    long n_inputs, n_features;
    float *panels;                    /* W, TILE_WIDTH columns after TILE_WIDTH columns, with zeros behind */
    float *turned;                    /* W transposed, in the same way; NULL where nobody needs it */
    float *bias_hidden, *bias_output; /* with zeros behind */
    Share share;
} Weights;

static float *panel(const Weights *w, long f) { return w->panels + f * round_up(w->n_inputs, LANES); }

static float *turned_panel(const Weights *w, long k) { return w->turned + k * round_up(w->n_features, LANES); }

static void lay_out_weights(Weights *w, Memory *memory, int with_turned)
{
    long n = round_up(w->n_inputs, TILE_WIDTH), m = round_up(w->n_features, TILE_WIDTH);
    w->panels = reserve(memory, n * m);
    w->turned = with_turned ? reserve(memory, n * m) : 0;
    w->bias_hidden = reserve(memory, m);
    w->bias_output = reserve(memory, n);
}

/* LANES rows of W, from k on. */
static void pack_rows(const Weights *w, long k)
{
    long height = least(LANES, w->n_inputs - k), left = k / TILE_WIDTH * TILE_WIDTH;
    for (long f = 0; f < w->n_features; f += TILE_WIDTH) {
        float *to = panel(w, f) + k * TILE_WIDTH;
        long width = least(TILE_WIDTH, w->n_features - f);
        for (long i = 0; i < height; i++)
            memcpy(to + i * TILE_WIDTH, w->W + (k + i) * w->n_features + f, width * sizeof(float));
        for (long j = 0; w->turned && j < width; j += LANES)
            transpose(turned_panel(w, left) + (f + j) * TILE_WIDTH + k - left, TILE_WIDTH, to + j, TILE_WIDTH);
    }
}

static void pack_some(void *job)
{
    Weights *w = (Weights *)job;
    for (long start, stop; take(&w->share, &start, &stop);)
        for (; start < stop; start++)
            pack_rows(w, start * LANES);
}

static void pack(Weights *w, long n_threads)
{
    memcpy(w->bias_hidden, w->b_hidden, w->n_features * sizeof(float));
    if (w->turned)
        memcpy(w->bias_output, w->b_output, w->n_inputs * sizeof(float));
    w->share = share_of(pieces(w->n_inputs, LANES), 8, n_threads);
    together(n_threads, pack_some, w);
}

/* Some tiles of rows on their way through the model. */
typedef struct {
    const Weights *weights;
    const Rows *rows;
    long first, n_rows, n_tiles; /* the first row's number, how many there are, and the tiles they fill */
    float *x, *h;                /* scaled rows and features, x_row and h_row floats apart */
    long x_row, h_row;
    Tile *sums; /* n_sums of them */
    void *job;
} Batch;

static long n_sums(const Weights *w) { return BATCH * pieces(w->n_features, TILE_WIDTH); }

static void scale_batch(const Batch *b) { scale_rows(b->rows, b->first, b->n_rows, b->x, b->x_row); }

/* What becomes of the sums of the tile that starts at this row of the batch, and at this column. */
typedef void Finish(const Batch *batch, long row, long column, Tile sums);

/* left . W. Look ahead to the rows from `next` on, which will be scaled next; not where it is negative. As late as
 * possible, or the panels of W push them out of the second cache again. */
static void times_W(const Batch *b, const float *left, long next, Finish *finish)
{
    const Weights *w = b->weights;
    for (long k = 0; k < w->n_inputs; k += DEPTH) {
        long depth = least(DEPTH, w->n_inputs - k);
        Tile *sums = b->sums;
        for (long f = 0; f < w->n_features; f += TILE_WIDTH)
            for (long row = 0; row < b->n_tiles * TILE_HEIGHT; row += TILE_HEIGHT, sums++) {
                Matrix matrix = {left + row * b->x_row + k, b->x_row, 1};
                Soon soon = soon_read(b->rows, next + row, k);
                int is_last = f + TILE_WIDTH >= w->n_features;
                multiply(*sums, k == 0, matrix, panel(w, f) + k * TILE_WIDTH, TILE_WIDTH, depth,
                         next >= 0 && is_last ? &soon : 0, w->n_features - f);
                if (k + depth == w->n_inputs)
                    finish(b, row, f, *sums);
            }
    }
}

/* h . W^T */
static void times_W_turned(const Batch *b, Finish *finish)
{
    const Weights *w = b->weights;
    Tile sums;
    for (long k = 0; k < w->n_inputs; k += TILE_WIDTH)
        for (long row = 0; row < b->n_tiles * TILE_HEIGHT; row += TILE_HEIGHT) {
            Matrix matrix = {b->h + row * b->h_row, b->h_row, 1};
            multiply(sums, 1, matrix, turned_panel(w, k), TILE_WIDTH, w->n_features, 0, w->n_inputs - k);
            finish(b, row, k, sums);
        }
}

/* h = sigmoid(x . W + b_hidden), whose rows are padded to whole vectors. */
static void finish_h(const Batch *b, long row, long f, Tile sums)
{
    const Weights *w = b->weights;
    for (long i = 0; i < TILE_HEIGHT; i++)
        for (long j = 0; j < least(TILE_WIDTH, w->n_features - f); j += LANES)
            store(b->h + (row + i) * b->h_row + f + j, sigmoid(load(&sums[i][j]) + load(w->bias_hidden + f + j)));
}
