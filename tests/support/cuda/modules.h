// Kernels: the PTX that the driver loads, followed by the source, which the host's compiler compiles to a library.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "stub.h"

struct Kernel;

struct Module {
    void *library;
    std::vector<Kernel *> kernels;
};

struct Kernel {
    std::string name;
    Module *module;
    const size_t *sizes; // sizes of the arguments, terminated by 0
    void (*run)(const void *launch, void **values);
};

// A version such as CUDA 12.9, which accepts PTX up to 8.8.
using Version = std::pair<int, int>;

Version ptx_of(Version cuda);

// Return SUCCESS, or the error that a driver of this CUDA version reports for the PTX on a card of this capability.
Result refusal(const std::string &ptx, Version cuda, Version capability);

// Load a module. Return null, and write errors to stderr, if its source does not compile for the host.
Module *load(const std::string &ptx);

void unload(Module *module);
