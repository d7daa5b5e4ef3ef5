/* Preloaded into a process that runs with PYTHONMALLOC=malloc, in which every allocation,
   Python's and the extension's, comes by here: makes those fail that the process asks for. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

int failing_on;       /* whether allocations count now */
long failing_before;  /* how many still succeed */
long failing_left;    /* how many fail then */
long failing_failed;  /* how many have failed */

static int fails(void) {
    if (!failing_on)
        return 0;
    if (failing_before > 0) {
        failing_before--;
        return 0;
    }
    if (failing_left <= 0)
        return 0;
    failing_left--;
    failing_failed++;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) {
    static void *(*real)(size_t);
    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "malloc");
    return fails() ? NULL : real(size);
}

void *realloc(void *memory, size_t size) {
    static void *(*real)(void *, size_t);
    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "realloc");
    return fails() ? NULL : real(memory, size);
}

void *calloc(size_t count, size_t size) {
    static void *(*real)(size_t, size_t);
    static int looking; /* dlsym may allocate itself, and does without */
    if (real == NULL) {
        if (looking)
            return NULL;
        looking = 1;
        *(void **)&real = dlsym(RTLD_NEXT, "calloc");
        looking = 0;
    }
    return fails() ? NULL : real(count, size);
}
