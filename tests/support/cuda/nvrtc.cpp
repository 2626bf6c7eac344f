// libnvrtc: calls the real library, and appends the source of each program to its PTX as a comment, which the driver
// stub reads.
//
// STUB_NVRTC is the path of the real library. The default is the library that the stub was built with. STUB_SOURCES is
// a folder to which every source is written.

#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

#include "stub.h"

namespace {

std::mutex lock;
auto &sources = *new std::map<void *, std::string>; // by program; never destroyed: libraries are unloaded in any order

template <class Function> Function real(const char *name, Function)
{
    static void *library = [] {
        const char *path = variable("STUB_NVRTC") ? variable("STUB_NVRTC") : STUB_NVRTC_PATH;
        void *found = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!found) {
            fprintf(stderr, "stub of NVRTC: %s\n", dlerror());
            abort();
        }
        note("nvrtc %s\n", path);
        return found;
    }();
    return reinterpret_cast<Function>(dlsym(library, name));
}

#define REAL(name) real(#name, name)

// Return the source with each `#include "name"` replaced by that header.
std::string whole(std::string source, int n_headers, const char *const *headers, const char *const *names)
{
    for (int i = 0; i < n_headers; i++) {
        std::string line = std::string("#include \"") + names[i] + '"';
        for (size_t at; (at = source.find(line)) != std::string::npos;)
            source.replace(at, line.size(), std::string("\n") + headers[i] + '\n');
    }
    return source;
}

void keep(const std::string &source)
{
    if (const char *folder = variable("STUB_SOURCES"))
        std::ofstream(folder + ('/' + std::to_string(std::hash<std::string>()(source))) + ".cu") << source;
}

// Return the source as a comment that follows the PTX.
std::string comment(void *program)
{
    std::lock_guard<std::mutex> guard(lock);
    std::string text = "\n//source\n//|";
    for (char c : sources[program])
        text += c == '\n' ? std::string("\n//|") : std::string(1, c);
    return text + '\n';
}

} // namespace

STUB_API int nvrtcCreateProgram(
    void **program, const char *source, const char *name, int n_headers, const char *const *headers,
    const char *const *names)
{
    int result = REAL(nvrtcCreateProgram)(program, source, name, n_headers, headers, names);
    std::lock_guard<std::mutex> guard(lock);
    if (!result)
        keep(sources[*program] = whole(source, n_headers, headers, names));
    return result;
}

STUB_API int nvrtcCompileProgram(void *program, int n_options, const char *const *options)
{
    std::string all;
    for (int i = 0; i < n_options; i++)
        all += std::string(" ") + options[i];
    int result = REAL(nvrtcCompileProgram)(program, n_options, options);
    note("nvrtcCompileProgram%s: %d\n", all.c_str(), result);
    return result;
}

STUB_API int nvrtcDestroyProgram(void **program)
{
    std::lock_guard<std::mutex> guard(lock);
    sources.erase(*program);
    return REAL(nvrtcDestroyProgram)(program);
}

STUB_API int nvrtcGetPTXSize(void *program, size_t *size)
{
    int result = REAL(nvrtcGetPTXSize)(program, size);
    if (!result)
        *size += comment(program).size();
    return result;
}

STUB_API int nvrtcGetPTX(void *program, char *ptx)
{
    int result = REAL(nvrtcGetPTX)(program, ptx);
    if (!result)
        strcat(ptx, comment(program).c_str());
    return result;
}

STUB_API int nvrtcGetProgramLogSize(void *program, size_t *size) { return REAL(nvrtcGetProgramLogSize)(program, size); }
STUB_API int nvrtcGetProgramLog(void *program, char *log) { return REAL(nvrtcGetProgramLog)(program, log); }
STUB_API const char *nvrtcGetErrorString(int result) { return REAL(nvrtcGetErrorString)(result); }
STUB_API int nvrtcVersion(int *major, int *minor) { return REAL(nvrtcVersion)(major, minor); }
STUB_API int nvrtcGetNumSupportedArchs(int *n) { return REAL(nvrtcGetNumSupportedArchs)(n); }
STUB_API int nvrtcGetSupportedArchs(int *architectures) { return REAL(nvrtcGetSupportedArchs)(architectures); }
