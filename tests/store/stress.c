/* The store's lock and slots, used by threads as by workers, for ThreadSanitizer.

       stress SECONDS

   Each thread is a worker with an area of its own. Some write, some read; contents are one
   byte many times over, so that a torn one is noticed, too. With -DWEAKENED a reader does
   not take the lock: the sanitizer has to report that. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store.h"

enum { WRITERS = 3, READERS = 3, WORKERS = WRITERS + READERS, USED_SLOTS = 4 };

static store_t *store;
static uint64_t end;

static void check(int right, const char *what) {
    if (right) return;
    fprintf(stderr, "stress: %s\n", what);
    abort();
}

static void take(const handle_t *h, int for_write) {
    wait_t wait = {0};
    const patience_t patience = {10000000000ull, 10000000000ull};
    while (!(for_write ? try_write(h) : try_read(h)))
        check(wait_for_lock(h, for_write, &wait, patience), "nobody lets go of the lock");
    if (wait.began) end_wait(h);
}

static void *write_slots(void *arg) {
    handle_t h = attach(store, WORKERS, (uint32_t)(size_t)arg, 1);
    unsigned char content[SLOT_BYTES];
    for (uint32_t turn = 0; clock_ns() < end; turn++) {
        memset(content, (int)(turn % 251), sizeof(content));
        take(&h, 1);
        for (uint32_t i = 0; i < 8; i++) slot_write(&h, (turn + i) % USED_SLOTS, content, 1 + turn % 251);
        release_write(&h);
    }
    return NULL;
}

static void *read_slots(void *arg) {
    handle_t h = attach(store, WORKERS, (uint32_t)(size_t)arg, 1);
    unsigned char copied[SLOT_BYTES];
    for (uint32_t turn = 0; clock_ns() < end; turn++) {
        content_t found;
#ifndef WEAKENED
        take(&h, 0);
#endif
        check(slot_read(&h, turn % USED_SLOTS, &found), "a slot's head is impossible");
        memcpy(copied, found.bytes, found.length);
#ifndef WEAKENED
        release_read(&h);
        for (uint32_t i = 0; i < found.length; i++)
            check(copied[i] + 1u == found.length, "a content is torn");
#endif
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[WORKERS];
    store = aligned_alloc(PAGE_BYTES, (store_size(WORKERS) + PAGE_BYTES - 1) & ~(size_t)(PAGE_BYTES - 1));
    check(store != NULL && argc == 2, "usage: stress SECONDS");
    memset(store, 0, store_size(WORKERS));
    handle_t h = attach(store, WORKERS, 0, 1);
    for (uint32_t i = 0; i < SLOTS; i++) slot_lay_out(&h, i);
    end = clock_ns() + (uint64_t)atoi(argv[1]) * 1000000000ull;
    for (size_t i = 0; i < WORKERS; i++)
        check(!pthread_create(&threads[i], NULL, i < WRITERS ? write_slots : read_slots, (void *)i),
              "no thread");
    for (size_t i = 0; i < WORKERS; i++) pthread_join(threads[i], NULL);
    check(store->lock.both == 0 && readers_gone(&h), "the lock is left taken");
    printf("the write lock was taken %u times\n", store->acquired);
    return 0;
}
