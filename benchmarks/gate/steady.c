/* What libc does differently each time, done alike each time, for counting
   instructions by. Preloaded; for programs of one thread.

   The clock: every look at it finds 1 us gone. The extension sorts service times
   into buckets, and under callgrind a chunk's time is another each time.

   The heap: a list of free blocks for each power of two. The work of libc's own
   malloc depends on all blocks that live, so that the length of the checkout's
   path or a new line in another module changed figures by up to 8 %. */

#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static long long ns = 1000000000;
    (void)clock;
    ns += 1000;
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
    return 0;
}

enum { HEAD = 64, REGION = 64 << 20, LISTS = 64, ALIGNED = 0 };

/* In the HEAD bytes before a block: its size is 1 << power, this head included.
   Power ALIGNED: one of an asked alignment, which is never reused. */
typedef struct block {
    size_t power;
    size_t room;
    struct block *next;
} block_t;

static block_t *lists[LISTS];
static char *region, *region_end;

static char *take(size_t size) {
    if ((size_t)(region_end - region) < size) {
        size_t more = size > REGION ? size : REGION;
        region = mmap(NULL, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (region == MAP_FAILED) {
            region = region_end = NULL;
            errno = ENOMEM;
            return NULL;
        }
        region_end = region + more;
    }
    char *taken = region;
    region += size;
    return taken;
}

void *malloc(size_t size) {
    if (size > (size_t)1 << 40) {
        errno = ENOMEM;
        return NULL;
    }
    size_t power = 64 - __builtin_clzll(size + HEAD - 1);
    if (power < 7) power = 7;
    block_t *block = lists[power];
    if (block) {
        lists[power] = block->next;
    } else {
        block = (block_t *)take((size_t)1 << power);
        if (block == NULL) return NULL;
        block->power = power;
        block->room = ((size_t)1 << power) - HEAD;
    }
    return (char *)block + HEAD;
}

void free(void *data) {
    if (data == NULL) return;
    block_t *block = (block_t *)((char *)data - HEAD);
    if (block->power == ALIGNED) return;
    block->next = lists[block->power];
    lists[block->power] = block;
}

void *calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    void *data = malloc(bytes);
    return data ? memset(data, 0, bytes) : NULL;
}

void *realloc(void *data, size_t size) {
    if (data == NULL) return malloc(size);
    size_t room = ((block_t *)((char *)data - HEAD))->room;
    if (size <= room) return data;
    void *moved = malloc(size);
    if (moved) {
        memcpy(moved, data, room);
        free(data);
    }
    return moved;
}

void *memalign(size_t alignment, size_t size) {
    if (alignment <= 64) return malloc(size);
    char *whole = take((size + HEAD + alignment + 63) & ~(size_t)63);
    if (whole == NULL) return NULL;
    char *data = (char *)(((uintptr_t)whole + HEAD + alignment - 1) & ~(uintptr_t)(alignment - 1));
    ((block_t *)(data - HEAD))->power = ALIGNED;
    ((block_t *)(data - HEAD))->room = size;
    return data;
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **data, size_t alignment, size_t size) {
    *data = memalign(alignment, size);
    return *data ? 0 : ENOMEM;
}

size_t malloc_usable_size(void *data) {
    return data ? ((block_t *)((char *)data - HEAD))->room : 0;
}
