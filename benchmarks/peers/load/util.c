/* Small helpers. */
#include "load.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

void die(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(code);
}

void note_problem(const char *format, ...)
{
    if (result.first_problem[0])
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(result.first_problem, sizeof result.first_problem, format, args);
    va_end(args);
}

const char *printable(const uint8_t *text, size_t size)
{
    static char out[96];
    size_t n = 0;
    for (; n < size && n < sizeof out - 1; n++)
        out[n] = text[n] >= 32 && text[n] < 127 ? (char)text[n] : '.';
    out[n] = 0;
    return out;
}

void *reserve(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        die(1, "out of memory");
    return memory;
}

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}
