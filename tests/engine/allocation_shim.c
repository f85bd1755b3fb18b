/* Preloaded into a Python that runs a rank: the Nth allocation of at least so many bytes fails, or all from it on.

   `allocation_arm(n, bytes, lasting)` starts to count, `allocation_seen()` tells how many there were, of all threads. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_long seen;
static long armed_at;
static size_t least;
static int is_lasting;

void allocation_arm(long at, size_t bytes, int lasting) {
    atomic_store(&seen, 0);
    least = bytes;
    is_lasting = lasting;
    armed_at = at;
}
long allocation_seen(void) { return atomic_load(&seen); }

static int fails(size_t bytes) {
    if (!armed_at || bytes < least) return 0;
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (number != armed_at && !(is_lasting && number > armed_at)) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t bytes) { return fails(bytes) ? NULL : __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return fails(count * bytes) ? NULL : __libc_calloc(count, bytes); }
void *realloc(void *old, size_t bytes) { return fails(bytes) ? NULL : __libc_realloc(old, bytes); }
void *memalign(size_t step, size_t bytes) { return fails(bytes) ? NULL : __libc_memalign(step, bytes); }
void *aligned_alloc(size_t step, size_t bytes) { return memalign(step, bytes); }
int posix_memalign(void **to, size_t step, size_t bytes) {
    void *made = memalign(step, bytes);
    if (!made) return ENOMEM;
    *to = made;
    return 0;
}
