// CUDA C++ for the host: the code that precedes the source of a kernel when g++ compiles it.
//
// Blocks run one after another, and so do the threads of a block. If the source has barriers, each thread is a fiber,
// and a barrier switches to the next fiber.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <utility>

#define STUB_FOUND extern "C" __attribute__((visibility("default")))

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static // one block runs at a time

struct dim3 {
    unsigned x, y, z;
};

// -- threads --

namespace stub {

constexpr int max_threads = 1024, shared_bytes = 48 << 10;

struct Launch {
    dim3 grid, block;
    unsigned shared_bytes;
};

static dim3 block_index, block_size, grid_size;
alignas(64) static char shared[shared_bytes]; // replaces `extern __shared__`, whose declaration the driver rewrites
static void (*body)(void **), **arguments;

// Return the index of a thread in its block, given its number.
static dim3 place_of(unsigned i)
{
    return {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
}

} // namespace stub

#include "fibers.h"

namespace stub {

static void run_block(bool has_barriers)
{
    int n_threads = block_size.x * block_size.y * block_size.z;
    if (has_barriers) {
        run_together(n_threads);
        return;
    }
    for (int i = 0; i < n_threads; i++) {
        thread_index = place_of(i);
        body(arguments);
    }
}

static void run(const Launch &launch, void (*kernel)(void **), void **values, bool has_barriers)
{
    body = kernel;
    arguments = values;
    block_size = launch.block;
    grid_size = launch.grid;
    for (unsigned z = 0; z < grid_size.z; z++)
        for (unsigned y = 0; y < grid_size.y; y++)
            for (unsigned x = 0; x < grid_size.x; x++) {
                block_index = {x, y, z};
                memset(shared, 0xff, launch.shared_bytes); // NaN: code must not rely on uninitialized memory
                run_block(has_barriers);
            }
}

template <auto kernel> struct Of;
template <class... Types, void (*kernel)(Types...)> struct Of<kernel> {
    static constexpr size_t n_arguments = sizeof...(Types);
    static constexpr size_t sizes[] = {sizeof(Types)..., 0};

    template <size_t... i> static void call(void **values, std::index_sequence<i...>)
    {
        kernel(*static_cast<Types *>(values[i])...);
    }
    static void call(void **values) { call(values, std::index_sequence_for<Types...>()); }
};

} // namespace stub

// Define the symbols that the driver looks up for a kernel: the sizes of its arguments, terminated by 0, and the
// function that runs it. All other symbols are hidden, because kernels of other libraries have the same names.
#define STUB_ENTRY(kernel, has_barriers)                                                                               \
    STUB_FOUND const size_t *const stub_sizes_##kernel = stub::Of<kernel>::sizes;                                      \
    STUB_FOUND void stub_run_##kernel(const stub::Launch &launch, void **values)                                       \
    {                                                                                                                  \
        stub::run(launch, stub::Of<kernel>::call, values, has_barriers);                                               \
    }

#define threadIdx stub::thread_index
#define blockIdx stub::block_index
#define blockDim stub::block_size
#define gridDim stub::grid_size
#define warpSize 32
#define __syncthreads stub::wait_for_the_others
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// -- numbers --

extern "C" {
double exp(double), exp2(double), expm1(double), log(double), log2(double), log10(double), log1p(double);
double pow(double, double);
double sqrt(double), fabs(double), floor(double), ceil(double), trunc(double), rint(double), round(double);
double tanh(double), sinh(double), cosh(double), sin(double), cos(double), tan(double), asin(double), acos(double);
double atan(double), atan2(double, double), fmod(double, double), fmin(double, double), fmax(double, double);
double copysign(double, double), erf(double), erfc(double);
}

// NVRTC provides each of these functions for float as well.
#define STUB_FLOAT(name)                                                                                               \
    static inline float name(float x) { return __builtin_##name##f(x); }                                               \
    static inline float name##f(float x) { return __builtin_##name##f(x); }
#define STUB_FLOAT_2(name)                                                                                             \
    static inline float name(float x, float y) { return __builtin_##name##f(x, y); }                                   \
    static inline float name##f(float x, float y) { return __builtin_##name##f(x, y); }
STUB_FLOAT(exp) STUB_FLOAT(exp2) STUB_FLOAT(expm1) STUB_FLOAT(log) STUB_FLOAT(log2) STUB_FLOAT(log10) STUB_FLOAT(log1p)
STUB_FLOAT(sqrt) STUB_FLOAT(fabs) STUB_FLOAT(floor) STUB_FLOAT(ceil) STUB_FLOAT(trunc) STUB_FLOAT(rint)
STUB_FLOAT(round) STUB_FLOAT(tanh) STUB_FLOAT(sinh) STUB_FLOAT(cosh) STUB_FLOAT(sin) STUB_FLOAT(cos) STUB_FLOAT(tan)
STUB_FLOAT(asin) STUB_FLOAT(acos) STUB_FLOAT(atan) STUB_FLOAT(erf) STUB_FLOAT(erfc)
STUB_FLOAT_2(pow) STUB_FLOAT_2(atan2) STUB_FLOAT_2(fmod) STUB_FLOAT_2(fmin) STUB_FLOAT_2(fmax) STUB_FLOAT_2(copysign)

static inline float rsqrtf(float x) { return 1 / __builtin_sqrtf(x); }
static inline float rsqrt(float x) { return 1 / __builtin_sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float __expf(float x) { return __builtin_expf(x); }
template <class T> static inline bool isnan(T x) { return x != x; }
template <class T> static inline bool isinf(T x) { return __builtin_isinf(x); }
template <class T> static inline T abs(T x) { return x < 0 ? -x : x; }
template <class A, class B> static inline auto min(A a, B b) { return a < b ? a : b; }
template <class A, class B> static inline auto max(A a, B b) { return a > b ? a : b; }

namespace stub {
template <class To, class From> static inline To bits(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline float half_to_float(unsigned short data) { return bits<_Float16>(data); }
static inline unsigned short float_to_half(float x) { return bits<unsigned short>(_Float16(x)); }
} // namespace stub

static inline float __int_as_float(int x) { return stub::bits<float>(x); }
static inline int __float_as_int(float x) { return stub::bits<int>(x); }
static inline double __longlong_as_double(long long x) { return stub::bits<double>(x); }
static inline long long __double_as_longlong(double x) { return stub::bits<long long>(x); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t both = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

// -- atomics --

template <class T> static inline T atomicExch(T *address, decltype(T()) value)
{
    T old;
    __atomic_exchange(address, &value, &old, __ATOMIC_RELAXED);
    return old;
}
template <class T> static inline T atomicCAS(T *address, decltype(T()) expected, decltype(T()) value)
{
    __atomic_compare_exchange(address, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T> static inline T atomicAdd(T *address, decltype(T()) value)
{
    T old, sum;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do
        sum = old + value;
    while (!__atomic_compare_exchange(address, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
