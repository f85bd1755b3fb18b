/* Preloaded into a Python that quantizes: the Nth call that changes a regular file fails, is cut short, or is the last.

   `fault_arm(n, mode)` starts to count, `fault_seen()` tells how many calls there were. Calls of all threads count. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { FULL = 1, FAILED, SHORT, KILLED_BEFORE, KILLED_AFTER };

static atomic_long seen;
static long armed_at;
static int mode;

void fault_arm(long at, int how) {
    atomic_store(&seen, 0);
    armed_at = at;
    mode = how;
}
long fault_seen(void) { return atomic_load(&seen); }

/* Whether this call is the one. A full disk stays full. */
static int strikes(void) {
    if (!mode) return 0;
    long number = atomic_fetch_add(&seen, 1) + 1;
    int hit = number == armed_at || (mode == FULL && armed_at && number > armed_at);
    if (hit && mode == KILLED_BEFORE) kill(getpid(), SIGKILL);
    return hit;
}

static int is_counted(int fd) {
    struct stat status;
    return mode && fd > 2 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

static int fails(int hit) {
    if (!hit || (mode != FULL && mode != FAILED)) return 0;
    errno = mode == FULL ? ENOSPC : EIO;
    return 1;
}

static void end(int hit) {
    if (hit && mode == KILLED_AFTER) kill(getpid(), SIGKILL);
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

#define WRITING(name, parameters, arguments_of)                                            \
    ssize_t name parameters {                                                              \
        int hit = is_counted(fd) && strikes();                                             \
        if (fails(hit)) return -1;                                                         \
        size_t size = hit && mode == SHORT && count > 1 ? count / 2 : count;               \
        ssize_t result = NEXT(ssize_t(*) parameters, #name)arguments_of;                   \
        end(hit);                                                                          \
        return result;                                                                     \
    }

WRITING(write, (int fd, const void *data, size_t count), (fd, data, size))
WRITING(pwrite, (int fd, const void *data, size_t count, off_t at), (fd, data, size, at))
WRITING(pwrite64, (int fd, const void *data, size_t count, off64_t at), (fd, data, size, at))

/* Names do not fail for want of room, but the rest of the disk's errors are theirs too. */
#define CHANGING(name, parameters, arguments, counted)                                     \
    int name parameters {                                                                  \
        int hit = (counted) && strikes();                                                  \
        if (fails(hit)) return -1;                                                         \
        int result = NEXT(int(*) parameters, #name)arguments;                              \
        end(hit);                                                                          \
        return result;                                                                     \
    }

CHANGING(fsync, (int fd), (fd), mode && fd > 2)
CHANGING(ftruncate, (int fd, off_t size), (fd, size), is_counted(fd))
CHANGING(ftruncate64, (int fd, off64_t size), (fd, size), is_counted(fd))
CHANGING(rename, (const char *from, const char *to), (from, to), mode)
CHANGING(mkdir, (const char *path, mode_t bits), (path, bits), mode)
CHANGING(unlink, (const char *path), (path), mode)
CHANGING(rmdir, (const char *path), (path), mode)
