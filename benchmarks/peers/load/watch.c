/* What the server's processes cost while they are measured, as the system counts it. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

/* The clock of a process's CPU time, in all its threads: nanoseconds, where /proc counts ticks. */
static double cpu_of(pid_t pid)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0)
        die(1, "--watch: process %d is gone", (int)pid);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double watched_cpu_seconds(void)
{
    double sum = 0;
    for (unsigned i = 0; i < options.watched; i++)
        sum += cpu_of(options.watch[i]);
    return sum;
}

/* Pss: a page that several processes share counts once in all. */
uint64_t watched_memory_bytes(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < options.watched; i++) {
        char line[256];
        snprintf(line, sizeof line, "/proc/%d/smaps_rollup", (int)options.watch[i]);
        FILE *file = fopen(line, "r");
        if (!file)
            die(1, "--watch: %s: %s", line, strerror(errno));
        unsigned long long kilobytes = 0;
        while (fgets(line, sizeof line, file) && sscanf(line, "Pss: %llu", &kilobytes) != 1)
            ;
        fclose(file);
        sum += kilobytes * 1024;
    }
    return sum;
}
