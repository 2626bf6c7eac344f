/* The library that libgpuarray opens as `libnvrtc.so`: it wraps one function of NVIDIA's NVRTC.
 *
 * libgpuarray 0.7.6 keeps only two digits of a card's architecture. It shortens `compute_100`, `compute_103` and
 * `compute_120` to `compute_10` and `compute_12`, which NVRTC does not know. This library requests `compute_90` instead.
 * NVRTC then writes PTX that the driver of any later card can compile, since PTX is forward-compatible.
 *
 * REAL is the name of NVIDIA's own, with its version. This library needs that one (set-up writes it in), and dlsym looks
 * through what a library needs: every other function is found there.
 */
#include <dlfcn.h>
#include <string.h>

/* Without shortening, such a name is that of a card of 2009 or before, which NVRTC has never supported. */
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
