// Kernels: PTX as it is handed to the driver, and below it the source that the host's compiler makes a library of.
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
    const size_t *sizes; // of its arguments, ended by a 0
    void (*run)(const void *launch, void **values);
};

// Of CUDA 12.9, say, which takes PTX up to 8.8.
using Version = std::pair<int, int>;

Version ptx_of(Version cuda);

// SUCCESS, or why a driver of this CUDA and a card of this capability refuse such PTX.
Result refusal(const std::string &ptx, Version cuda, Version capability);

// Null where the source does not compile for the host: stderr says why.
Module *load(const std::string &ptx);

void unload(Module *module);
