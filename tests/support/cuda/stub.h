// Functions that the stub's libraries share: they queue work in a stream, and log calls for tests.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>

// Values of cuda.h.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    ECC_UNCORRECTABLE = 214,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    UNKNOWN = 999,
};

#define STUB_API extern "C" __attribute__((visibility("default")))

// Queue work in a stream. It is executed when a call waits for the stream. STUB_LOST_AT counts only launches.
__attribute__((visibility("default"))) Result enqueue(void *stream, bool is_launch, std::function<void()> work);

// Return the value of an environment variable, or null if it is unset or empty.
inline const char *variable(const char *name)
{
    const char *text = getenv(name);
    return text && *text ? text : nullptr;
}

// Return the file of STUB_LOG. Several libraries write to it, so it is line-buffered.
inline FILE *log_file()
{
    static FILE *file = [] {
        FILE *opened = variable("STUB_LOG") ? fopen(variable("STUB_LOG"), "a") : nullptr;
        if (opened)
            setvbuf(opened, nullptr, _IOLBF, BUFSIZ);
        return opened;
    }();
    return file;
}

template <class... Values> void note(const char *format, Values... values)
{
    if (log_file())
        fprintf(log_file(), format, values...);
}
