/* Library for LD_PRELOAD that makes file system calls fail, for tests. tests/support/failing_calls.py compiles it.

   FAULT_PREFIX  Path prefix; calls on other files are passed through.
   FAULT_CALLS   Kinds of calls, separated by commas: open read write fsync close flock rename unlink mkdir reserve
                 stat list. Calls of other kinds are passed through.
   FAULT_NUMBER  Number of the call that fails, counted from 0 over the calls of these kinds. -1 only counts.
   FAULT_ERRNO   Error number, or 0 for a short transfer of half the bytes.
   FAULT_ALWAYS  1: all later calls fail as well.

   A fork of a process with this library sets the same values by fault_arm(). */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS = -1 };

static char prefix[PATH_MAX];
static char kinds[256];
static long first = -1;
static int code;
static int always;
static atomic_long n_calls;

void fault_arm(const char *its_prefix, const char *its_kinds, long its_first, int its_code, int is_always)
{
    snprintf(prefix, sizeof prefix, "%s", its_prefix);
    snprintf(kinds, sizeof kinds, ",%s,", its_kinds);
    first = its_first;
    code = its_code;
    always = is_always;
    atomic_store(&n_calls, 0);
}

long fault_count(void)
{
    return atomic_load(&n_calls);
}

static const char *variable(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value ? value : otherwise;
}

__attribute__((constructor)) static void start(void)
{
    fault_arm(variable("FAULT_PREFIX", ""), variable("FAULT_CALLS", ""), atol(variable("FAULT_NUMBER", "-1")),
              atoi(variable("FAULT_ERRNO", "5")), atoi(variable("FAULT_ALWAYS", "0")));
}

/* Return the absolute path of an open file, using a call that this library does not intercept. */
static int path_of(int descriptor, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[n > 0 ? n : 0] = 0;
    return n > 0;
}

/* Return the error number with which this call must fail, 0 for a short transfer, or PASS. */
static int due(const char *kind, const char *path)
{
    char wanted[32];
    if (!prefix[0] || strncmp(path, prefix, strlen(prefix)))
        return PASS;
    snprintf(wanted, sizeof wanted, ",%s,", kind);
    if (!strstr(kinds, wanted))
        return PASS;
    long number = atomic_fetch_add(&n_calls, 1);
    if (first < 0 || number < first || (number > first && !always))
        return PASS;
    return code;
}

static int due_of(const char *kind, int descriptor)
{
    char path[PATH_MAX];
    if (!prefix[0] || !path_of(descriptor, path))
        return PASS;
    return due(kind, path);
}

static int due_at(const char *kind, int folder, const char *name)
{
    char path[PATH_MAX];
    char base[PATH_MAX];
    if (!prefix[0])
        return PASS;
    if (name[0] == '/')
        return due(kind, name);
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0)
            return PASS;
    } else if (!path_of(folder, base)) {
        return PASS;
    }
    if (snprintf(path, sizeof path, "%s/%s", base, name) >= (int)sizeof path)
        return PASS;
    return due(kind, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(found, result)   \
    if ((found) > 0) {        \
        errno = (found);      \
        return (result);      \
    }

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    int found = due_at("open", folder, path);
    FAIL(found, -1)
    return (int)syscall(SYS_openat, folder, path, flags | O_LARGEFILE, mode);
}

#define MODE(flags, mode)                                 \
    mode_t mode = 0;                                      \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode = va_arg(rest, mode_t);                      \
        va_end(rest);                                     \
    }

int open(const char *path, int flags, ...) { MODE(flags, mode) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return opened(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags, mode) return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...)
{
    MODE(flags, mode) return opened(folder, path, flags, mode);
}

/* Return half of a transfer, at least one byte. */
static size_t shortened(int found, size_t n)
{
    return found == 0 && n > 1 ? n / 2 : n;
}

ssize_t read(int descriptor, void *buffer, size_t n)
{
    int found = due_of("read", descriptor);
    FAIL(found, -1)
    return NEXT(read)(descriptor, buffer, shortened(found, n));
}

ssize_t pread64(int descriptor, void *buffer, size_t n, off64_t offset)
{
    int found = due_of("read", descriptor);
    FAIL(found, -1)
    return NEXT(pread64)(descriptor, buffer, shortened(found, n), offset);
}

ssize_t pread(int descriptor, void *buffer, size_t n, off_t offset)
{
    return pread64(descriptor, buffer, n, offset);
}

/* A transfer of half of the first buffer is also a short one. */
static struct iovec shortened_vector(const struct iovec *buffers)
{
    struct iovec one = buffers[0];
    one.iov_len = shortened(0, one.iov_len);
    return one;
}

ssize_t preadv64v2(int descriptor, const struct iovec *buffers, int n, off64_t offset, int flags)
{
    int found = due_of("read", descriptor);
    FAIL(found, -1)
    if (found == 0 && n > 0) {
        struct iovec one = shortened_vector(buffers);
        return NEXT(preadv64v2)(descriptor, &one, 1, offset, flags);
    }
    return NEXT(preadv64v2)(descriptor, buffers, n, offset, flags);
}

ssize_t preadv64(int descriptor, const struct iovec *buffers, int n, off64_t offset)
{
    return preadv64v2(descriptor, buffers, n, offset, 0);
}

ssize_t write(int descriptor, const void *buffer, size_t n)
{
    int found = due_of("write", descriptor);
    FAIL(found, -1)
    return NEXT(write)(descriptor, buffer, shortened(found, n));
}

ssize_t pwrite64(int descriptor, const void *buffer, size_t n, off64_t offset)
{
    int found = due_of("write", descriptor);
    FAIL(found, -1)
    return NEXT(pwrite64)(descriptor, buffer, shortened(found, n), offset);
}

ssize_t pwrite(int descriptor, const void *buffer, size_t n, off_t offset)
{
    return pwrite64(descriptor, buffer, n, offset);
}

int fsync(int descriptor)
{
    int found = due_of("fsync", descriptor);
    FAIL(found, -1)
    return NEXT(fsync)(descriptor);
}

int fdatasync(int descriptor)
{
    int found = due_of("fsync", descriptor);
    FAIL(found, -1)
    return NEXT(fdatasync)(descriptor);
}

/* A descriptor is released even when closing it fails. */
int close(int descriptor)
{
    int found = due_of("close", descriptor);
    int result = (int)syscall(SYS_close, descriptor);
    FAIL(found, -1)
    return result;
}

int flock(int descriptor, int operation)
{
    int found = due_of("flock", descriptor);
    FAIL(found, -1)
    return NEXT(flock)(descriptor, operation);
}

int rename(const char *source, const char *target)
{
    int found = due_at("rename", AT_FDCWD, target);
    FAIL(found, -1)
    return NEXT(rename)(source, target);
}

int renameat(int source_folder, const char *source, int folder, const char *target)
{
    int found = due_at("rename", folder, target);
    FAIL(found, -1)
    return NEXT(renameat)(source_folder, source, folder, target);
}

int unlink(const char *path)
{
    int found = due_at("unlink", AT_FDCWD, path);
    FAIL(found, -1)
    return NEXT(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    int found = due_at("unlink", folder, path);
    FAIL(found, -1)
    return NEXT(unlinkat)(folder, path, flags);
}

int mkdir(const char *path, mode_t mode)
{
    int found = due_at("mkdir", AT_FDCWD, path);
    FAIL(found, -1)
    return NEXT(mkdir)(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    int found = due_at("mkdir", folder, path);
    FAIL(found, -1)
    return NEXT(mkdirat)(folder, path, mode);
}

/* posix_fallocate returns its error number instead of setting errno. */
int posix_fallocate64(int descriptor, off64_t offset, off64_t n)
{
    int found = due_of("reserve", descriptor);
    return found > 0 ? found : NEXT(posix_fallocate64)(descriptor, offset, n);
}

int stat64(const char *path, struct stat64 *status)
{
    int found = due_at("stat", AT_FDCWD, path);
    FAIL(found, -1)
    return NEXT(stat64)(path, status);
}

int fstatat64(int folder, const char *path, struct stat64 *status, int flags)
{
    int found = due_at("stat", folder, path);
    FAIL(found, -1)
    return NEXT(fstatat64)(folder, path, status, flags);
}

int fstat64(int descriptor, struct stat64 *status)
{
    int found = due_of("stat", descriptor);
    FAIL(found, -1)
    return NEXT(fstat64)(descriptor, status);
}

DIR *opendir(const char *path)
{
    int found = due_at("list", AT_FDCWD, path);
    FAIL(found, NULL)
    return NEXT(opendir)(path);
}

DIR *fdopendir(int descriptor)
{
    int found = due_of("list", descriptor);
    FAIL(found, NULL)
    return NEXT(fdopendir)(descriptor);
}
