// libcuda: the functions of the driver that libgpuarray loads, with host memory as device memory.
//
// These environment variables describe the card. Each has a default:
//     STUB_CAPABILITY=9.0           compute capability
//     STUB_MEMORY=8192              memory in MiB
//     STUB_DRIVER=12.9              CUDA version of the driver
//     STUB_CARDS=1                  number of cards; CUDA_VISIBLE_DEVICES may hide some of them
//     STUB_HOLD=downloads,uploads   copies between device and pageable memory are delayed until a call waits for the
//                                   stream, as CUDA allows since 12.2; a card with delayed uploads reports that it
//                                   can read pageable memory
//     STUB_OOM_AT=N                 the Nth allocation, counted from 1, fails because memory is exhausted
//     STUB_LOST_AT=N                the Nth launch fails when it is executed, and so do all later calls, as if the
//                                   card were lost
//     STUB_LOG=FILE                 file to which each call is logged
//     STUB_BLIND=1                  launches do nothing, and no kernel is compiled for the host
// Launches are always asynchronous.

#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <thread>

#include "modules.h"

namespace {

// -- the card --

long number(const char *name, long otherwise)
{
    const char *text = variable(name);
    return text ? atol(text) : otherwise;
}

Version version(const char *name, Version otherwise)
{
    const char *text = variable(name);
    if (text)
        sscanf(text, "%d.%d", &otherwise.first, &otherwise.second);
    return otherwise;
}

bool holds(const char *copies)
{
    const char *text = variable("STUB_HOLD");
    return text && strstr(text, copies);
}

// Return the numbers of the visible cards in CUDA_VISIBLE_DEVICES, up to the first invalid one.
std::vector<int> visible_cards()
{
    int n_cards = number("STUB_CARDS", 1);
    std::vector<int> found;
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    if (!text) {
        for (int i = 0; i < n_cards; i++)
            found.push_back(i);
        return found;
    }
    for (char *end; *text; text = *end ? end + 1 : end) {
        long card = strtol(text, &end, 10);
        if (end == text || card < 0 || card >= n_cards)
            break;
        found.push_back(card);
    }
    return found;
}

struct Context {
    int device;
    unsigned flags = 0;
    int n_retained = 0;
};

struct Stream {
    std::deque<std::function<void()>> queue;
    unsigned long n_queued = 0, n_done = 0;
};

struct Event {
    Stream *stream = nullptr;
    unsigned long n = 0; // the event has occurred when this many operations of the stream are done
};

struct State {
    std::recursive_mutex lock; // one call at a time
    bool is_initialized = false;
    std::vector<int> cards = visible_cards();
    std::map<int, Context> primary;
    std::map<std::uintptr_t, size_t> memory, pinned;
    size_t n_bytes = 0;
    std::vector<Stream *> streams;
    Stream legacy;
    long n_allocations = 0, n_launches = 0;
    Result lost = SUCCESS;
};

// The state is never destroyed, because Python's shutdown has no fixed order.
State &state = *new State;
thread_local std::vector<Context *> contexts;

// -- start of a call --

enum Needs { NOTHING, DRIVER, CONTEXT };

Result entered(const char *name, Needs needs)
{
    Result result = SUCCESS;
    if (needs > NOTHING && !state.is_initialized)
        result = NOT_INITIALIZED;
    else if (needs == CONTEXT && contexts.empty())
        result = INVALID_CONTEXT;
    else if (needs == CONTEXT && state.lost)
        result = state.lost;
    note("%s%s\n", name, result == SUCCESS ? "" : result == INVALID_CONTEXT ? " without a context" : " failed");
    return result;
}

#define ENTER(needs)                                                                                                   \
    std::lock_guard<std::recursive_mutex> guard(state.lock);                                                           \
    if (Result refused = entered(__func__, needs))                                                                     \
        return refused;

// -- streams --

Stream *stream_of(void *handle)
{
    return handle < reinterpret_cast<void *>(3) ? &state.legacy : static_cast<Stream *>(handle);
}

// Execute a stream's operations up to number `n`.
Result run(Stream *stream, unsigned long n)
{
    while (stream->n_done < n && !stream->queue.empty() && !state.lost) {
        auto work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->n_done++;
        work();
    }
    return state.lost;
}

Result run(Stream *stream) { return run(stream, stream->n_queued); }

Result run_all()
{
    for (Stream *stream : state.streams)
        run(stream);
    return run(&state.legacy);
}

Result push(void *handle, std::function<void()> work)
{
    Stream *stream = stream_of(handle);
    if (stream == &state.legacy) // the legacy stream waits for all other streams
        run_all();
    stream->queue.push_back(std::move(work));
    stream->n_queued++;
    return state.lost;
}

// -- memory --

// Return whether a range of bytes is inside one allocation.
bool lies_in(const std::map<std::uintptr_t, size_t> &allocations, std::uintptr_t start, size_t n_bytes)
{
    auto next = allocations.upper_bound(start);
    return next != allocations.begin() && start + n_bytes <= std::prev(next)->first + std::prev(next)->second;
}

bool lies_in(const std::map<std::uintptr_t, size_t> &allocations, const void *start, size_t n_bytes)
{
    return lies_in(allocations, reinterpret_cast<std::uintptr_t>(start), n_bytes);
}

size_t total_memory() { return size_t(number("STUB_MEMORY", 8192)) << 20; }

Result allocate(std::map<std::uintptr_t, size_t> &where, std::uintptr_t *place, size_t n_bytes)
{
    void *found = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED)
        return OUT_OF_MEMORY;
    *place = reinterpret_cast<std::uintptr_t>(found);
    where[*place] = n_bytes;
    return SUCCESS;
}

Result release(std::map<std::uintptr_t, size_t> &where, std::uintptr_t place)
{
    auto found = where.find(place);
    if (found == where.end())
        return INVALID_VALUE;
    run_all(); // the driver also waits for the device before it frees memory
    munmap(reinterpret_cast<void *>(place), found->second);
    where.erase(found);
    return SUCCESS;
}

} // namespace

Result enqueue(void *stream, bool is_launch, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> guard(state.lock);
    bool is_last = is_launch && ++state.n_launches == number("STUB_LOST_AT", 0);
    return push(stream, [is_last, work] {
        if (is_last) {
            state.lost = ECC_UNCORRECTABLE;
            note("the card is lost\n");
        } else
            work();
    });
}

// -- the driver and its cards --

STUB_API Result cuInit(int)
{
    ENTER(NOTHING)
    if (state.cards.empty())
        return NO_DEVICE;
    state.is_initialized = true;
    return SUCCESS;
}

STUB_API Result cuDriverGetVersion(int *found)
{
    ENTER(NOTHING)
    auto [major, minor] = version("STUB_DRIVER", {12, 9});
    *found = 1000 * major + 10 * minor;
    return SUCCESS;
}

// NVRTC requests a table and works without one.
STUB_API Result cuGetExportTable(const void **, const void *) { return NOT_FOUND; }

STUB_API Result cuGetErrorName(Result error, const char **name)
{
    static const std::map<Result, const char *> names{
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
        {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
        {ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE"},
        {INVALID_PTX, "CUDA_ERROR_INVALID_PTX"},
        {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
        {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
        {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
    };
    auto found = names.find(error);
    *name = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
    return SUCCESS;
}

STUB_API Result cuGetErrorString(Result error, const char **text)
{
    switch (error) {
    case OUT_OF_MEMORY:
        *text = "out of memory";
        break;
    case NO_DEVICE:
        *text = "no CUDA-capable device is detected";
        break;
    case INVALID_CONTEXT:
        *text = "invalid device context";
        break;
    case ECC_UNCORRECTABLE:
        *text = "uncorrectable ECC error encountered";
        break;
    case UNSUPPORTED_PTX_VERSION:
        *text = "the provided PTX was compiled with an unsupported toolchain.";
        break;
    default:
        cuGetErrorName(error, text);
    }
    return SUCCESS;
}

STUB_API Result cuDeviceGetCount(int *n)
{
    ENTER(DRIVER)
    *n = state.cards.size();
    return SUCCESS;
}

STUB_API Result cuDeviceGet(int *device, int i)
{
    ENTER(DRIVER)
    if (i < 0 || i >= int(state.cards.size()))
        return INVALID_DEVICE;
    *device = i;
    return SUCCESS;
}

STUB_API Result cuDeviceGetName(char *name, int length, int device)
{
    ENTER(DRIVER)
    snprintf(name, length, "Stub %d", state.cards.at(device));
    return SUCCESS;
}

STUB_API Result cuDeviceGetPCIBusId(char *id, int length, int device)
{
    ENTER(DRIVER)
    snprintf(id, length, "0000:%02X:00.0", state.cards.at(device) + 1);
    return SUCCESS;
}

STUB_API Result cuDeviceTotalMem_v2(size_t *n_bytes, int)
{
    ENTER(DRIVER)
    *n_bytes = total_memory();
    return SUCCESS;
}

STUB_API Result cuDeviceGetAttribute(int *value, int attribute, int)
{
    ENTER(DRIVER)
    static const std::map<int, int> values{
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, // threads of a block, and along each of its sides
        {5, 2147483647}, {6, 65535}, {7, 65535},  // blocks of a grid
        {8, 48 << 10},                            // shared memory of a block, in bytes
        {10, 32},                                 // threads of a warp
        {16, 2},                                  // multiprocessors: few, because each block takes time here
        {41, 1},                                  // unified addressing
    };
    auto [major, minor] = version("STUB_CAPABILITY", {9, 0});
    auto found = values.find(attribute);
    if (attribute == 88) {
        *value = holds("uploads");
        return SUCCESS;
    }
    *value = attribute == 75 ? major : attribute == 76 ? minor : found == values.end() ? 0 : found->second;
    return SUCCESS;
}

// -- contexts --

STUB_API Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active)
{
    ENTER(DRIVER)
    *flags = state.primary[device].flags;
    *is_active = state.primary[device].n_retained > 0;
    return SUCCESS;
}

STUB_API Result cuDevicePrimaryCtxSetFlags(int device, unsigned flags)
{
    ENTER(DRIVER)
    state.primary[device].flags = flags;
    return SUCCESS;
}

STUB_API Result cuDevicePrimaryCtxRetain(Context **context, int device)
{
    ENTER(DRIVER)
    *context = &state.primary[device];
    (*context)->device = device;
    (*context)->n_retained++;
    return SUCCESS;
}

STUB_API Result cuDevicePrimaryCtxRelease(int device)
{
    ENTER(DRIVER)
    state.primary[device].n_retained--;
    return SUCCESS;
}

STUB_API Result cuCtxPushCurrent_v2(Context *context)
{
    ENTER(DRIVER)
    contexts.push_back(context);
    return SUCCESS;
}

STUB_API Result cuCtxPopCurrent_v2(Context **context)
{
    ENTER(DRIVER) // also works with a lost card
    if (contexts.empty())
        return INVALID_CONTEXT;
    if (context)
        *context = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}

STUB_API Result cuCtxGetCurrent(Context **context)
{
    ENTER(DRIVER)
    *context = contexts.empty() ? nullptr : contexts.back();
    return SUCCESS;
}

STUB_API Result cuCtxSetCurrent(Context *context)
{
    ENTER(DRIVER)
    if (!contexts.empty())
        contexts.pop_back();
    if (context)
        contexts.push_back(context);
    return SUCCESS;
}

STUB_API Result cuCtxGetDevice(int *device)
{
    ENTER(CONTEXT)
    *device = contexts.back()->device;
    return SUCCESS;
}

STUB_API Result cuCtxSynchronize()
{
    ENTER(CONTEXT)
    return run_all();
}

// -- modules --

STUB_API Result cuLinkCreate(unsigned, void *, void *, std::string **link)
{
    ENTER(CONTEXT)
    *link = new std::string;
    return SUCCESS;
}

STUB_API Result cuLinkAddData(std::string *link, int type, const char *data, size_t size, const char *, unsigned,
                              void *, void *)
{
    ENTER(CONTEXT)
    if (type != 1) // PTX
        return NOT_SUPPORTED;
    link->assign(data, strnlen(data, size));
    return refusal(*link, version("STUB_DRIVER", {12, 9}), version("STUB_CAPABILITY", {9, 0}));
}

// The image is the PTX itself.
STUB_API Result cuLinkComplete(std::string *link, const void **image, size_t *size)
{
    ENTER(CONTEXT)
    *image = link->c_str();
    *size = link->size() + 1;
    return SUCCESS;
}

STUB_API Result cuLinkDestroy(std::string *link)
{
    ENTER(CONTEXT)
    delete link;
    return SUCCESS;
}

STUB_API Result cuModuleLoadDataEx(Module **module, const char *image, unsigned, void *, void *)
{
    ENTER(CONTEXT)
    if (Result refused = refusal(image, version("STUB_DRIVER", {12, 9}), version("STUB_CAPABILITY", {9, 0})))
        return refused;
    *module = load(image);
    return *module ? SUCCESS : INVALID_PTX;
}

STUB_API Result cuModuleLoadData(Module **module, const char *image)
{
    return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr);
}

STUB_API Result cuModuleUnload(Module *module)
{
    ENTER(CONTEXT)
    run_all();
    unload(module);
    return SUCCESS;
}

STUB_API Result cuModuleGetFunction(Kernel **kernel, Module *module, const char *name)
{
    ENTER(CONTEXT)
    for (Kernel *each : module->kernels)
        if (each->name == name) {
            *kernel = each;
            return SUCCESS;
        }
    return NOT_FOUND;
}

STUB_API Result cuFuncGetAttribute(int *value, int attribute, Kernel *)
{
    ENTER(CONTEXT)
    *value = attribute == 0 ? 1024 : 0; // threads of a block
    return SUCCESS;
}

STUB_API Result cuLaunchKernel(
    Kernel *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared_bytes, void *stream, void **values, void **extra)
{
    ENTER(CONTEXT)
    struct {
        unsigned grid[3], block[3], shared_bytes;
    } launch{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
    note("launch %s %u %u %u, %u %u %u\n", kernel->name.c_str(), grid_x, grid_y, grid_z, block_x, block_y, block_z);
    size_t n_threads = size_t(block_x) * block_y * block_z;
    if (extra || !n_threads || n_threads > 1024 || block_z > 64 || shared_bytes > 48 << 10 ||
        !(grid_x && grid_y && grid_z) || grid_x > 2147483647 || grid_y > 65535 || grid_z > 65535)
        return INVALID_VALUE;
    std::vector<std::vector<char>> copies; // the caller's memory may be freed before the launch is executed
    for (const size_t *size = kernel->sizes; *size; size++) {
        const char *value = static_cast<const char *>(values[copies.size()]);
        copies.emplace_back(value, value + *size);
    }
    return enqueue(stream, true, [=]() mutable {
        std::vector<void *> places;
        for (auto &copy : copies)
            places.push_back(copy.data());
        kernel->run(&launch, places.data());
    });
}

// -- memory --

STUB_API Result cuMemGetInfo_v2(size_t *free, size_t *total)
{
    ENTER(CONTEXT)
    *total = total_memory();
    *free = *total - state.n_bytes;
    return SUCCESS;
}

STUB_API Result cuMemAlloc_v2(std::uintptr_t *place, size_t n_bytes)
{
    ENTER(CONTEXT)
    note("allocate %zu\n", n_bytes);
    if (!n_bytes)
        return INVALID_VALUE;
    if (++state.n_allocations == number("STUB_OOM_AT", 0) || state.n_bytes + n_bytes > total_memory())
        return OUT_OF_MEMORY;
    if (Result failed = allocate(state.memory, place, n_bytes))
        return failed;
    memset(reinterpret_cast<void *>(*place), 0xff, n_bytes); // NaN: code must not rely on uninitialized memory
    state.n_bytes += n_bytes;
    return SUCCESS;
}

STUB_API Result cuMemFree_v2(std::uintptr_t place)
{
    ENTER(CONTEXT)
    size_t n_bytes = state.memory.count(place) ? state.memory[place] : 0;
    Result result = release(state.memory, place);
    state.n_bytes -= result ? 0 : n_bytes;
    return result;
}

STUB_API Result cuMemAllocHost_v2(std::uintptr_t *place, size_t n_bytes)
{
    ENTER(CONTEXT)
    return allocate(state.pinned, place, n_bytes);
}

STUB_API Result cuMemFreeHost(std::uintptr_t place)
{
    ENTER(CONTEXT)
    return release(state.pinned, place);
}

STUB_API Result cuMemcpyHtoDAsync_v2(std::uintptr_t to, const void *from, size_t n_bytes, void *stream)
{
    ENTER(CONTEXT)
    note("upload %zu\n", n_bytes);
    if (!lies_in(state.memory, to, n_bytes))
        return INVALID_VALUE;
    if (holds("uploads") || lies_in(state.pinned, from, n_bytes))
        return push(stream, [=] { memcpy(reinterpret_cast<void *>(to), from, n_bytes); });
    auto *bytes = static_cast<const char *>(from); // copied now, because the caller may change its memory afterwards
    return push(stream, [to, staged = std::vector<char>(bytes, bytes + n_bytes)] {
        memcpy(reinterpret_cast<void *>(to), staged.data(), staged.size());
    });
}

STUB_API Result cuMemcpyHtoD_v2(std::uintptr_t to, const void *from, size_t n_bytes)
{
    ENTER(CONTEXT)
    note("upload %zu\n", n_bytes);
    if (!lies_in(state.memory, to, n_bytes))
        return INVALID_VALUE;
    if (Result failed = run_all())
        return failed;
    memcpy(reinterpret_cast<void *>(to), from, n_bytes);
    return SUCCESS;
}

STUB_API Result cuMemcpyDtoHAsync_v2(void *to, std::uintptr_t from, size_t n_bytes, void *stream)
{
    ENTER(CONTEXT)
    note("download %zu\n", n_bytes);
    if (!lies_in(state.memory, from, n_bytes))
        return INVALID_VALUE;
    push(stream, [=] { memcpy(to, reinterpret_cast<const void *>(from), n_bytes); });
    // Up to CUDA 12.1 a copy into pageable memory is complete when the call returns.
    return holds("downloads") || lies_in(state.pinned, to, n_bytes) ? state.lost : run(stream_of(stream));
}

STUB_API Result cuMemcpyDtoH_v2(void *to, std::uintptr_t from, size_t n_bytes)
{
    ENTER(CONTEXT)
    note("download %zu\n", n_bytes);
    if (!lies_in(state.memory, from, n_bytes))
        return INVALID_VALUE;
    if (Result failed = run_all())
        return failed;
    memcpy(to, reinterpret_cast<const void *>(from), n_bytes);
    return SUCCESS;
}

STUB_API Result cuMemcpyDtoDAsync_v2(std::uintptr_t to, std::uintptr_t from, size_t n_bytes, void *stream)
{
    ENTER(CONTEXT)
    if (!lies_in(state.memory, to, n_bytes) || !lies_in(state.memory, from, n_bytes))
        return INVALID_VALUE;
    return push(stream, [=] { memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), n_bytes); });
}

STUB_API Result cuMemcpyPeerAsync(
    std::uintptr_t to, Context *, std::uintptr_t from, Context *, size_t n_bytes, void *stream)
{
    return cuMemcpyDtoDAsync_v2(to, from, n_bytes, stream);
}

STUB_API Result cuMemsetD8Async(std::uintptr_t to, unsigned char value, size_t n_bytes, void *stream)
{
    ENTER(CONTEXT)
    if (!lies_in(state.memory, to, n_bytes))
        return INVALID_VALUE;
    return push(stream, [=] { memset(reinterpret_cast<void *>(to), value, n_bytes); });
}

// Only cuMemAllocHost pins host memory here.
STUB_API Result cuPointerGetAttribute(void *value, int attribute, std::uintptr_t place)
{
    ENTER(CONTEXT)
    bool is_pinned = lies_in(state.pinned, place, 1), is_device = lies_in(state.memory, place, 1);
    if (attribute != 2 || !(is_pinned || is_device)) // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        return INVALID_VALUE;
    *static_cast<unsigned *>(value) = is_pinned ? 1 : 2;
    return SUCCESS;
}

STUB_API Result cuIpcGetMemHandle(void *, std::uintptr_t) { return NOT_SUPPORTED; }
STUB_API Result cuIpcOpenMemHandle(std::uintptr_t *, ...) { return NOT_SUPPORTED; }
STUB_API Result cuIpcCloseMemHandle(std::uintptr_t) { return NOT_SUPPORTED; }

// -- streams and events --

STUB_API Result cuStreamCreate(Stream **stream, unsigned)
{
    ENTER(CONTEXT)
    state.streams.push_back(*stream = new Stream);
    return SUCCESS;
}

STUB_API Result cuStreamDestroy_v2(Stream *stream)
{
    ENTER(CONTEXT)
    run(stream);
    for (size_t i = 0; i < state.streams.size(); i++)
        if (state.streams[i] == stream)
            state.streams.erase(state.streams.begin() + i);
    return SUCCESS; // the stream is not deleted, because an event may still refer to it
}

STUB_API Result cuStreamSynchronize(void *stream)
{
    ENTER(CONTEXT)
    return run(stream_of(stream));
}

STUB_API Result cuStreamWaitEvent(void *stream, Event *event, unsigned)
{
    ENTER(CONTEXT)
    if (!event->stream)
        return SUCCESS;
    return push(stream, [earlier = event->stream, n = event->n] { run(earlier, n); });
}

STUB_API Result cuEventCreate(Event **event, unsigned)
{
    ENTER(CONTEXT)
    *event = new Event;
    return SUCCESS;
}

STUB_API Result cuEventDestroy_v2(Event *event)
{
    ENTER(CONTEXT)
    delete event;
    return SUCCESS;
}

STUB_API Result cuEventRecord(Event *event, void *stream)
{
    ENTER(CONTEXT)
    event->stream = stream_of(stream);
    event->n = event->stream->n_queued;
    return SUCCESS;
}

STUB_API Result cuEventSynchronize(Event *event)
{
    ENTER(CONTEXT)
    return event->stream ? run(event->stream, event->n) : SUCCESS;
}
