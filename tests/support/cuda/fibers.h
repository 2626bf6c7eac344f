// Run the threads of a block as fibers. Each fiber has its own stack, and a barrier switches to the stack of the next
// fiber.
//
// Between barriers the fibers alternately run in ascending and in descending order. If a barrier is missing, one of the
// two orders gives a wrong result.
#pragma once

namespace stub {

constexpr int stack_bytes = 32 << 10;

struct Fiber {
    void *stack_top;
    dim3 index;
    bool is_done;
};

static dim3 thread_index;
static Fiber fibers[max_threads], *running;
static void *scheduler;

// Switch to another stack and store the top of the current one in `*from`. Only the registers that a function must
// preserve are saved.
extern "C" __attribute__((visibility("hidden"))) void stub_switch(void **from, void *to);
asm(R"(
    .text
    .hidden stub_switch
    .globl stub_switch
stub_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

static void wait_for_the_others()
{
    stub_switch(&running->stack_top, scheduler);
}

static void start()
{
    body(arguments);
    running->is_done = true;
    wait_for_the_others(); // never returns
}

// Return a new stack on which `stub_switch` finds six registers and `start`, aligned as after a call.
static void *fresh_stack(char *end)
{
    void **top = reinterpret_cast<void **>(end) - 2;
    *top = reinterpret_cast<void *>(start);
    return top - 6;
}

static void run_together(int n_threads)
{
    static char *stacks = new char[max_threads * stack_bytes];
    for (int i = 0; i < n_threads; i++) {
        auto end = reinterpret_cast<uintptr_t>(stacks + (i + 1) * stack_bytes) & ~uintptr_t(63);
        fibers[i] = {fresh_stack(reinterpret_cast<char *>(end)), place_of(i), false};
    }
    int n_left = n_threads;
    for (bool upwards = true; n_left; upwards = !upwards)
        for (int i = 0; i < n_threads; i++) {
            running = &fibers[upwards ? i : n_threads - 1 - i];
            if (running->is_done) // barriers do not wait for threads that have returned
                continue;
            thread_index = running->index;
            stub_switch(&scheduler, running->stack_top);
            n_left -= running->is_done;
        }
}

} // namespace stub
