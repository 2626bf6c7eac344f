// Run the threads of a block as threads of the machine, for ThreadSanitizer. The sanitizer reports two threads that
// access the same address without a barrier between the accesses, if one of them writes.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace stub {

constexpr bool are_watched = true; // threads may conflict even in kernels without barriers
static thread_local dim3 thread_index;
static std::mutex lock;
static std::condition_variable all_have_arrived;
static int n_running, n_waiting;
static long n_barriers;

static void release_if_all_wait() // the caller holds the lock
{
    if (n_waiting && n_waiting == n_running) {
        n_waiting = 0;
        n_barriers++;
        all_have_arrived.notify_all();
    }
}

static void wait_for_the_others()
{
    std::unique_lock<std::mutex> guard(lock);
    long before = n_barriers;
    n_waiting++;
    release_if_all_wait();
    all_have_arrived.wait(guard, [before] { return n_barriers != before; });
}

static void run_together(int n_threads)
{
    std::vector<std::thread> threads;
    n_running = n_threads;
    for (int i = 0; i < n_threads; i++)
        threads.emplace_back([i] {
            thread_index = place_of(i);
            body(arguments);
            std::lock_guard<std::mutex> guard(lock);
            n_running--; // barriers do not wait for threads that have returned
            release_if_all_wait();
        });
    for (std::thread &thread : threads)
        thread.join();
}

} // namespace stub
