/* Reports a full file system as an exhausted quota, for processes with this library in LD_PRELOAD.

File systems with quotas need a kernel and rights that tests do not have. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>

#define QUOTA(type, name, parameters, ...)                            \
    type name parameters {                                            \
        static type (*real) parameters;                               \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        type result = real(__VA_ARGS__);                              \
        if (result < 0 && errno == ENOSPC) errno = EDQUOT;            \
        return result;                                                \
    }

QUOTA(ssize_t, write, (int file, const void *data, size_t count), file, data, count)
QUOTA(ssize_t, pwrite64, (int file, const void *data, size_t n, off64_t at), file, data, n, at)
QUOTA(int, ftruncate64, (int file, off64_t length), file, length)
QUOTA(int, fsync, (int file), file)
QUOTA(int, mkdir, (const char *path, mode_t mode), path, mode)
QUOTA(int, mkdirat, (int folder, const char *path, mode_t mode), folder, path, mode)
QUOTA(int, rename, (const char *from, const char *to), from, to)

#define OPEN(name)                                                                       \
    int name(const char *path, int flags, ...) {                                         \
        static int (*real)(const char *, int, ...);                                      \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);      \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0;              \
        va_end(rest);                                                                    \
        int file = real(path, flags, mode);                                              \
        if (file < 0 && errno == ENOSPC) errno = EDQUOT;                                 \
        return file;                                                                     \
    }

OPEN(open)
OPEN(open64)
