/* A machine whose clock is wrong by $SKEW_SECONDS, for processes with this library in LD_PRELOAD.

With $CLIENT_TIMES, the files that they write get their times from that clock, as on file systems
such as Lustre; otherwise from the kernel's clock, which plays the file server, as on NFS. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long skew(void) {
    const char *seconds = getenv("SKEW_SECONDS");
    return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += skew();
    return failed;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict result, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    result->tv_sec = now.tv_sec;
    result->tv_usec = now.tv_nsec / 1000;
    return 0;
}

static void stamp(int file) {
    struct stat status;
    struct timespec times[2];
    if (file < 0 || !getenv("CLIENT_TIMES")) return;
    if (fstat(file, &status) || !S_ISREG(status.st_mode)) return;
    clock_gettime(CLOCK_REALTIME, &times[0]);
    times[1] = times[0];
    syscall(SYS_utimensat, file, NULL, times, 0);
}

static int opened(int folder, const char *path, int flags, int mode) {
    int file = (int)syscall(SYS_openat, folder, path, flags, mode);
    if (flags & O_CREAT) stamp(file);
    return file;
}

#define MODE(last)                                                \
    va_list rest;                                                 \
    va_start(rest, last);                                         \
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0; \
    va_end(rest);

int open(const char *path, int flags, ...) {
    MODE(flags)
    return opened(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return opened(AT_FDCWD, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return opened(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return opened(folder, path, flags, mode);
}

ssize_t write(int file, const void *data, size_t count) {
    ssize_t written = syscall(SYS_write, file, data, count);
    stamp(file);
    return written;
}

static int set_times(int folder, const char *path, const struct timespec *times, int flags) {
    struct timespec now[2];
    if (!times && getenv("CLIENT_TIMES")) {
        clock_gettime(CLOCK_REALTIME, &now[0]);
        now[1] = now[0];
        times = now;
    }
    return (int)syscall(SYS_utimensat, folder, path, times, flags);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    return set_times(folder, path, times, flags);
}

int futimens(int file, const struct timespec times[2]) {
    return set_times(file, NULL, times, 0);
}
