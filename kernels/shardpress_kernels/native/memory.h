/* Memory that a compiled function keeps between its calls, because new pages would cost as much time as some products.
 *
 * Wide rows of W or of raw data are in different pages, and the TLB of a processor holds few pages. Before activations
 * were stored in strips, huge pages made a step up to 1.35 times as fast, if the system provided them.
 */
#include <sys/mman.h>

#define HUGE_PAGE (1L << 21)

typedef struct {
    float *start;
    long used, n_rows, n_threads; /* numbers of rows and threads of the layout */
} Memory;

/* Return the next `n` floats, at the start of a cache line. Before memory is allocated, only count them. */
static float *reserve(Memory *memory, long n)
{
    float *place = memory->start ? memory->start + memory->used : 0;
    memory->used += round_up(n, LINE);
    return place;
}

/* Let `lay_out(job, memory)` set all pointers of a job with this number of rows; return 0 if memory is insufficient.
 * Padding after rows is 0 in all calls, since the layout does not change as long as it is large enough. */
static int provide(Memory *memory, long n_rows, long n_threads, void (*lay_out)(void *job, Memory *memory), void *job)
{
    void *start;
    if (!memory->start || memory->n_rows < n_rows || memory->n_threads < n_threads) {
        free(memory->start);
        memory->start = 0;
        memory->n_rows = n_rows;
        memory->n_threads = n_threads;
        memory->used = 0;
        lay_out(job, memory);
        long n_bytes = (memory->used + LINE) * sizeof(float); /* the last tile reads slightly past the end */
        if (posix_memalign(&start, n_bytes < HUGE_PAGE ? LINE * sizeof(float) : HUGE_PAGE, n_bytes))
            return 0;
#ifdef MADV_HUGEPAGE
        if (n_bytes >= HUGE_PAGE)
            madvise(start, n_bytes, MADV_HUGEPAGE); /* optional: a failure is ignored */
#endif
        memset(start, 0, n_bytes);
        memory->start = (float *)start;
    }
    memory->used = 0;
    lay_out(job, memory);
    return 1;
}
