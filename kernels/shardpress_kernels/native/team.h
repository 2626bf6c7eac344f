/* A team of threads that share the work of one call.
 *
 * A free thread takes the next piece of a share, so a core that another process keeps busy delays only its own piece.
 * Members without work spin for SPIN_NS, which covers the time between two phases and, in training, between two steps.
 * Then they sleep. The caller works as well, and does not wait for members that have not started.
 */
#include <pthread.h>
#include <signal.h>
#include <time.h>

#define SPIN_NS 50000
/* For less than 10 us of work, notifying other threads takes longer than the time they save. */
#define FLOPS_WORTH_A_THREAD 1000000

typedef void Work(void *job);

static struct {
    pthread_mutex_t in_use; /* held by the caller that runs the job */
    pthread_mutex_t lock;   /* protects all following fields */
    pthread_cond_t wake, done;
    int n_members, n_wanted, n_working, n_asleep;
    unsigned number; /* number of the job; spinning threads watch it */
    Work *work;
    void *job;
} team = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER,
          0, 0, 0, 0, 0, 0, 0};

static long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* Pause the core, and return whether to keep spinning. */
static int keeps_spinning(long since)
{
    for (int i = 0; i < 8; i++)
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#else
        ;
#endif
    return nanoseconds() - since < SPIN_NS;
}

static void *member(void *nothing)
{
    for (unsigned seen = 0;;) {
        for (long since = nanoseconds();
             __atomic_load_n(&team.number, __ATOMIC_ACQUIRE) == seen && keeps_spinning(since);)
            ;
        pthread_mutex_lock(&team.lock);
        team.n_asleep++;
        while (team.number == seen)
            pthread_cond_wait(&team.wake, &team.lock);
        team.n_asleep--;
        seen = team.number;
        if (team.n_wanted > 0) {
            Work *work = team.work;
            void *job = team.job;
            team.n_wanted--;
            team.n_working++;
            pthread_mutex_unlock(&team.lock);
            work(job);
            pthread_mutex_lock(&team.lock);
            __atomic_store_n(&team.n_working, team.n_working - 1, __ATOMIC_RELEASE);
            if (team.n_working == 0)
                pthread_cond_signal(&team.done);
        }
        pthread_mutex_unlock(&team.lock);
    }
    return nothing;
}

/* Reset the team in the child of a fork, which has only the thread that forked. */
static void reset_after_fork(void)
{
    pthread_mutex_init(&team.in_use, 0);
    pthread_mutex_init(&team.lock, 0);
    pthread_cond_init(&team.wake, 0);
    pthread_cond_init(&team.done, 0);
    team.n_members = team.n_wanted = team.n_working = team.n_asleep = 0;
    team.number = 0;
}

/* Start threads until the team has this number of members, if the system allows. They block all signals, which Python's
 * own threads handle. */
static void grow(int n_members)
{
    static int is_registered = 0;
    sigset_t all, before;
    if (team.n_members >= n_members)
        return;
    if (!is_registered)
        is_registered = pthread_atfork(0, 0, reset_after_fork) == 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t thread; team.n_members < n_members && pthread_create(&thread, 0, member, 0) == 0; team.n_members++)
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

/* Run `work(job)` in up to `n_threads` threads at once, including the caller. */
static void run_in_team(long n_threads, Work *work, void *job)
{
    if (n_threads < 2 || pthread_mutex_trylock(&team.in_use) != 0) {
        work(job);
        return;
    }
    grow(n_threads - 1);
    pthread_mutex_lock(&team.lock);
    team.work = work;
    team.job = job;
    team.n_wanted = n_threads - 1;
    __atomic_store_n(&team.number, team.number + 1, __ATOMIC_RELEASE);
    if (team.n_asleep > 0)
        pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.lock);
    work(job);
    for (long since = nanoseconds(); __atomic_load_n(&team.n_working, __ATOMIC_ACQUIRE) > 0 && keeps_spinning(since);)
        ;
    pthread_mutex_lock(&team.lock);
    team.n_wanted = 0;
    while (team.n_working > 0)
        pthread_cond_wait(&team.done, &team.lock);
    pthread_mutex_unlock(&team.lock);
    pthread_mutex_unlock(&team.in_use);
}

static long threads_for(double flops, long n_threads)
{
    return flops / FLOPS_WORTH_A_THREAD < n_threads ? 1 + (long)(flops / FLOPS_WORTH_A_THREAD) : n_threads;
}

/* Remaining work, counted in units. */
typedef struct {
    long next, end, smallest, largest, n_threads;
} Share;

/* Return a share with large pieces first and single units at the end. */
static Share share_of(long n, long largest, long n_threads)
{
    Share share = {0, n, 1, largest, n_threads};
    return share;
}

/* Return a share of equal pieces, the same number for each thread, for pieces with a fixed cost. */
static Share equal_share_of(long n, long largest, long n_threads)
{
    long size = pieces(n, round_up(pieces(n, largest), n_threads));
    Share share = {0, n, size, size, n_threads};
    return share;
}

static int take(Share *share, long *start, long *stop)
{
    long first = __atomic_load_n(&share->next, __ATOMIC_RELAXED), n;
    do {
        if (first >= share->end)
            return 0;
        n = least(share->largest, pieces(share->end - first, 2 * share->n_threads));
        n = least(n > share->smallest ? n : share->smallest, share->end - first);
    } while (!__atomic_compare_exchange_n(&share->next, &first, first + n, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    *start = first;
    *stop = first + n;
    return 1;
}
