/* The library that libgpuarray opens as `libcuda.so`: it wraps NVIDIA's driver, `libcuda.so.1`, and corrects
 * assumptions of libgpuarray 0.7.6 (2019) that no longer hold.
 *
 * - libgpuarray does not wait for data that it reads back. Until CUDA 12.2 a copy into pageable memory was synchronous;
 *   since then it "might be synchronous". This library makes it synchronous.
 * - libgpuarray frees an array as soon as its copy to the card has been requested. A card that reads pageable memory
 *   itself may not have started to read. With such a card, this library waits. For other cards the driver makes a copy
 *   before it returns.
 * - libgpuarray counts the entries into its context over all threads, without a lock. While one thread is inside, a
 *   second one gets no context. A call that fails for this reason is repeated in the context of this process, if it has
 *   only one.
 *
 * LIBCUDA_LOG=FILE (- for standard error) logs each of these calls: time, thread, name, bytes, result.
 *
 * REAL is the name of the driver's library. Set-up makes it a dependency of this library. dlsym also searches the
 * dependencies of a library, so it finds all other functions there.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_CONTEXT = 201, NOT_FOUND = 500 }; /* results of the driver */
enum { PAGEABLE_MEMORY_ACCESS = 88 };                         /* attribute of a device */

typedef unsigned long long Pointer; /* address in a card's memory */
typedef void *Handle;               /* context, stream, event, module, function or link */

static void *driver;
static Handle context, several = &several; /* the entered context; `several` if it is ambiguous */
static int reads_pageable_memory;          /* whether a card of this process reads pageable memory itself */
static int log_file = -1;

static int enter(void);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("LIBCUDA_LOG");

    driver = dlopen(REAL, RTLD_LAZY | RTLD_NOLOAD);
    if (path && *path)
        log_file = strcmp(path, "-") ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : STDERR_FILENO;
}

static int logged(const char *name, size_t bytes, int result)
{
    struct timespec now;

    if (log_file >= 0) {
        clock_gettime(CLOCK_REALTIME, &now);
        dprintf(log_file, "%ld.%06ld %ld %s %zu %d\n", (long)now.tv_sec, now.tv_nsec / 1000,
                (long)syscall(SYS_gettid), name, bytes, result);
    }
    return result;
}

/* Call and log a function of the driver. */
#define DRIVER(name, parameters, arguments, bytes)                                                                     \
    static int driver_##name parameters                                                                                \
    {                                                                                                                  \
        static int(*real) parameters; /* concurrent threads find the same value */                                     \
                                                                                                                       \
        if (!real)                                                                                                     \
            *(void **)&real = dlsym(driver, #name);                                                                    \
        return logged(#name, bytes, real ? real arguments : NOT_FOUND);                                                \
    }

/* A function that needs no context. */
#define PASS(name, parameters, arguments)                                                                              \
    DRIVER(name, parameters, arguments, (size_t)0)                                                                     \
    int name parameters { return driver_##name arguments; }

/* A function that needs a context, and returns `then` on success. */
#define WRAP(name, parameters, arguments, bytes, then)                                                                 \
    DRIVER(name, parameters, arguments, bytes)                                                                         \
    int name parameters                                                                                                \
    {                                                                                                                  \
        int result = driver_##name arguments;                                                                          \
                                                                                                                       \
        if (result == INVALID_CONTEXT && enter())                                                                      \
            result = driver_##name arguments;                                                                          \
        return result == SUCCESS ? then : result;                                                                      \
    }

#define NEEDS_CONTEXT(name, parameters, arguments) WRAP(name, parameters, arguments, (size_t)0, SUCCESS)

PASS(cuInit, (unsigned flags), (flags))
PASS(cuDriverGetVersion, (int *version), (version))
PASS(cuDeviceGet, (int *device, int ordinal), (device, ordinal))
PASS(cuDeviceGetAttribute, (int *value, int attribute, int device), (value, attribute, device))
PASS(cuCtxPopCurrent_v2, (Handle *left), (left))

DRIVER(cuDevicePrimaryCtxRetain, (Handle *retained, int device), (retained, device), (size_t)0)
int cuDevicePrimaryCtxRetain(Handle *retained, int device)
{
    int reads = 0;

    if (driver_cuDeviceGetAttribute(&reads, PAGEABLE_MEMORY_ACCESS, device) == SUCCESS && reads)
        reads_pageable_memory = 1;
    return driver_cuDevicePrimaryCtxRetain(retained, device);
}

DRIVER(cuCtxPushCurrent_v2, (Handle entered), (entered), (size_t)0)
int cuCtxPushCurrent_v2(Handle entered)
{
    context = context && context != entered ? several : entered;
    return driver_cuCtxPushCurrent_v2(entered);
}

NEEDS_CONTEXT(cuCtxGetDevice, (int *device), (device))

/* Return whether this thread had no context, and now has one. It stays, since later counts can be wrong too. */
static int enter(void)
{
    int device;

    return context && context != several && driver_cuCtxGetDevice(&device) == INVALID_CONTEXT &&
           driver_cuCtxPushCurrent_v2(context) == SUCCESS;
}

NEEDS_CONTEXT(cuStreamCreate, (Handle *stream, unsigned flags), (stream, flags))
NEEDS_CONTEXT(cuStreamDestroy_v2, (Handle stream), (stream))
NEEDS_CONTEXT(cuStreamSynchronize, (Handle stream), (stream))
NEEDS_CONTEXT(cuStreamWaitEvent, (Handle stream, Handle event, unsigned flags), (stream, event, flags))
NEEDS_CONTEXT(cuEventCreate, (Handle *event, unsigned flags), (event, flags))
NEEDS_CONTEXT(cuEventDestroy_v2, (Handle event), (event))
NEEDS_CONTEXT(cuEventRecord, (Handle event, Handle stream), (event, stream))
NEEDS_CONTEXT(cuEventSynchronize, (Handle event), (event))

NEEDS_CONTEXT(cuLinkCreate, (unsigned n, int *options, void **values, Handle *link), (n, options, values, link))
WRAP(cuLinkAddData,
     (Handle link, int type, void *data, size_t size, const char *name, unsigned n, int *options, void **values),
     (link, type, data, size, name, n, options, values), size, SUCCESS)
NEEDS_CONTEXT(cuLinkComplete, (Handle link, void **binary, size_t *size), (link, binary, size))
NEEDS_CONTEXT(cuLinkDestroy, (Handle link), (link))
NEEDS_CONTEXT(cuModuleLoadData, (Handle *module, const void *image), (module, image))
NEEDS_CONTEXT(cuModuleGetFunction, (Handle *function, Handle module, const char *name), (function, module, name))
NEEDS_CONTEXT(cuModuleUnload, (Handle module), (module))
NEEDS_CONTEXT(cuFuncGetAttribute, (int *value, int attribute, Handle function), (value, attribute, function))
NEEDS_CONTEXT(cuLaunchKernel,
              (Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
               unsigned block_z, unsigned shared, Handle stream, void **parameters, void **extra),
              (function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters, extra))

NEEDS_CONTEXT(cuMemGetInfo_v2, (size_t *free, size_t *total), (free, total))
WRAP(cuMemAlloc_v2, (Pointer *pointer, size_t bytes), (pointer, bytes), bytes, SUCCESS)
NEEDS_CONTEXT(cuMemFree_v2, (Pointer pointer), (pointer))
WRAP(cuMemAllocHost_v2, (void **pointer, size_t bytes), (pointer, bytes), bytes, SUCCESS)
NEEDS_CONTEXT(cuMemFreeHost, (void *pointer), (pointer))
WRAP(cuMemsetD8Async, (Pointer to, unsigned char value, size_t bytes, Handle stream), (to, value, bytes, stream),
     bytes, SUCCESS)
WRAP(cuMemcpyHtoD_v2, (Pointer to, const void *from, size_t bytes), (to, from, bytes), bytes, SUCCESS)
WRAP(cuMemcpyDtoDAsync_v2, (Pointer to, Pointer from, size_t bytes, Handle stream), (to, from, bytes, stream),
     bytes, SUCCESS)
WRAP(cuMemcpyDtoHAsync_v2, (void *to, Pointer from, size_t bytes, Handle stream), (to, from, bytes, stream),
     bytes, driver_cuStreamSynchronize(stream))
WRAP(cuMemcpyHtoDAsync_v2, (Pointer to, const void *from, size_t bytes, Handle stream), (to, from, bytes, stream),
     bytes, reads_pageable_memory ? driver_cuStreamSynchronize(stream) : SUCCESS)
WRAP(cuMemcpyPeerAsync, (Pointer to, Handle to_context, Pointer from, Handle from_context, size_t bytes, Handle stream),
     (to, to_context, from, from_context, bytes, stream), bytes, SUCCESS)
