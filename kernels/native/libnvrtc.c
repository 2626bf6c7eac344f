/* What libgpuarray opens as `libnvrtc.so`: NVIDIA's NVRTC behind one function of ours.
 *
 * libgpuarray 0.7.6 keeps two digits of a card's architecture. Of `compute_100`, `compute_103` and `compute_120` it leaves
 * `compute_10` and `compute_12`, which no NVRTC knows. Asked for `compute_90` instead, NVRTC writes PTX that the driver of
 * any later card compiles: PTX stays good for all architectures after its own.
 *
 * REAL is the name of NVIDIA's own, with its version. This library needs that one (set-up writes it in), and dlsym looks
 * through what a library needs: every other function is found there.
 */
#include <dlfcn.h>
#include <string.h>

/* Whole, such a name is that of a card of 2009 or before, which NVRTC has never known. */
static int is_cut(const char *option)
{
    return strlen(option) == strlen("compute_10") && strncmp(option, "compute_1", strlen("compute_1")) == 0;
}

int nvrtcCompileProgram(void *program, int n_options, const char *const *options)
{
    int (*real)(void *, int, const char *const *);
    const char *mended[n_options + 1];

    for (int i = 0; i < n_options; i++)
        mended[i] = is_cut(options[i]) ? "compute_90" : options[i];
    *(void **)&real = dlsym(dlopen(REAL, RTLD_LAZY | RTLD_NOLOAD), "nvrtcCompileProgram");
    return real(program, n_options, mended);
}
