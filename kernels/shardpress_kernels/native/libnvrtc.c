/* The library that libgpuarray opens as `libnvrtc.so`: it wraps one function of NVIDIA's NVRTC.
 *
 * libgpuarray 0.7.6 keeps only two digits of a card's architecture. It shortens `compute_100`, `compute_103` and
 * `compute_120` to `compute_10` and `compute_12`, which NVRTC refuses. This library requests `compute_90` instead.
 * NVRTC then writes PTX that the driver of any later card can compile, since PTX is forward-compatible.
 *
 * REAL is the name of NVIDIA's library, with its version. Set-up makes it a dependency of this library. dlsym also
 * searches the dependencies of a library, so it finds all other functions there.
 */
#include <dlfcn.h>
#include <string.h>

/* A name that is not shortened, but this short, belongs to a card from 2009 or earlier, which NVRTC never supported. */
static int is_cut(const char *option)
{
    return strlen(option) == strlen("compute_10") && strncmp(option, "compute_1", strlen("compute_1")) == 0;
}

int nvrtcCompileProgram(void *program, int n_options, const char *const *options)
{
    int (*real)(void *, int, const char *const *);
    const char *fixed[n_options + 1];

    for (int i = 0; i < n_options; i++)
        fixed[i] = is_cut(options[i]) ? "compute_90" : options[i];
    *(void **)&real = dlsym(dlopen(REAL, RTLD_LAZY | RTLD_NOLOAD), "nvrtcCompileProgram");
    return real(program, n_options, fixed);
}
