/* The result, as a line of text or as JSON. */
#include "connection.h"

#include <stdio.h>

struct result result;

bool report(void)
{
    static const struct {
        const char *name;
        double percent;
    } LEVELS[] = {{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"max", 100}};
    const struct {
        const char *name;
        uint64_t count;
    } PROBLEMS[] = {
        {"lost", result.lost},
        {"doubled", result.doubled},
        {"wrong", result.wrong},
        {"out_of_order", result.out_of_order},
        {"errors", result.errors},
        {"connection_errors", result.connection_errors},
        {"unsent", result.unsent},
    };
    enum { LEVEL_COUNT = sizeof LEVELS / sizeof LEVELS[0], PROBLEM_COUNT = sizeof PROBLEMS / sizeof PROBLEMS[0] };
    double per_second = (double)result.replies / options.duration;
    bool clean = true;
    for (unsigned i = 0; i < PROBLEM_COUNT; i++)
        clean = clean && PROBLEMS[i].count == 0;

    if (options.json) {
        printf("{\"protocol\": \"%s\", \"connections\": %u, \"depth\": %u, ", options.protocol->name,
               options.connections, options.depth);
        if (options.own_function)
            printf("\"func_id\": %u, \"body_size\": %zu, ", options.func_id, options.body_size);
        else
            printf("\"mix\": \"%s\", \"value_size\": %u, ", MIXES[options.mix], options.value_size);
        if (options.rate > 0)
            printf("\"rate\": %.3f, ", options.rate);
        printf("\"duration\": %.3f, \"replies\": %llu, \"requests_per_second\": %.1f, \"seconds\": %.3f, "
               "\"load_cpu_seconds\": %.6f, ",
               options.duration, (unsigned long long)result.replies, per_second, result.seconds, result.load_cpu);
        if (options.watched)
            printf("\"server_cpu_seconds\": %.6f, \"server_memory_bytes\": %llu, ", result.server_cpu,
                   (unsigned long long)result.server_memory);
        for (unsigned i = 0; i < PROBLEM_COUNT; i++)
            printf("\"%s\": %llu, ", PROBLEMS[i].name, (unsigned long long)PROBLEMS[i].count);
        printf("\"latency_us\": {");
        for (unsigned i = 0; i < LEVEL_COUNT; i++)
            printf("%s\"%s\": %.1f", i ? ", " : "", LEVELS[i].name,
                   histogram_percentile_us(&latency, LEVELS[i].percent));
        printf("}}\n");
    } else {
        char what[64];
        if (options.own_function)
            snprintf(what, sizeof what, "0x%08x", options.func_id);
        else
            snprintf(what, sizeof what, "%s", MIXES[options.mix]);
        printf("%s %s, %u connections x depth %u: %.0f requests/s; latency, us:", options.protocol->name, what,
               options.connections, options.depth, per_second);
        for (unsigned i = 0; i < LEVEL_COUNT; i++)
            printf(" %s %.1f%s", LEVELS[i].name, histogram_percentile_us(&latency, LEVELS[i].percent),
                   i + 1 < LEVEL_COUNT ? "," : ";");
        if (clean)
            printf(" every reply right;");
        for (unsigned i = 0; i < PROBLEM_COUNT; i++)
            if (PROBLEMS[i].count)
                printf(" %s %llu;", PROBLEMS[i].name, (unsigned long long)PROBLEMS[i].count);
        printf(" load's own CPU %.0f %%\n", result.seconds > 0 ? result.load_cpu / result.seconds * 100 : 0);
    }
    if (result.first_problem[0])
        fprintf(stderr, "load: first problem: %s\n", result.first_problem);
    return clean;
}
