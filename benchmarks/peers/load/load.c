/* A load generator for iproto, Redis, memcached and Tarantool: the command line. */
#include "load.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/un.h>

enum {
    FUNC_SHUTDOWN = 0x0000ff01,
};

static const struct protocol *const PROTOCOLS[] = {&IPROTO, &REDIS, &MEMCACHED, &TARANTOOL};
static const char *const PROTOCOL_NAMES[] = {"iproto", "redis", "memcached", "tarantool", NULL};
const char *const MIXES[] = {"read", "write", "mixed", NULL};
static const char *const DIALECTS[] = {"vk", "mailru", NULL};

struct options options = {
    .host = "127.0.0.1",
    .connections = 50,
    .depth = 1,
    .value_size = 64,
    .duration = 5,
    .warmup = 1,
};

static const char USAGE[] =
    "usage: load --protocol iproto|redis|memcached|tarantool (--port PORT [--host HOST] | --unix PATH)\n"
    "  --connections N     connections (50)\n"
    "  --depth N           requests in flight on each connection (1)\n"
    "  --mix read|write|mixed   mixed: 80 % reads (read)\n"
    "  --value-size N      bytes in a slot, 0..256 (64)\n"
    "  --duration SECONDS  of the measurement (5)\n"
    "  --warmup SECONDS    before it (1)\n"
    "  --rate R            open loop: requests/s in all, on a fixed schedule\n"
    "  --dialect vk|mailru the iproto dialect (vk)\n"
    "  --func-id 0xNNNN [--body-hex HEX]   always this frame; replies in any order\n"
    "  --watch PID,...     processes of the server: their CPU time and memory\n"
    "  --json              the result as one JSON object\n"
    "exit code: 0 every request was answered as it should be, 1 not so, 2 bad options\n";

static int choose(const char *option, const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    char all[64] = "";
    for (int i = 0; names[i]; i++) {
        strcat(all, i ? ", " : "");
        strcat(all, names[i]);
    }
    die(2, "--%s %s: not one of %s", option, text, all);
}

static double parse_number(const char *option, const char *text, double low, double high)
{
    char *rest;
    errno = 0;
    double value = strtod(text, &rest);
    if (*text == 0 || *rest || errno || !(value >= low && value <= high))
        die(2, "--%s %s: not a number from %g to %.10g", option, text, low, high);
    return value;
}

static unsigned parse_count(const char *option, const char *text, unsigned low, unsigned high)
{
    char *rest;
    errno = 0;
    unsigned long value = strtoul(text, &rest, 0);
    if (*text < '0' || *text > '9' || *rest || errno || value < low || value > high)
        die(2, "--%s %s: not an integer from %u to %u", option, text, low, high);
    return (unsigned)value;
}

static size_t parse_hex(const char *option, const char *text, uint8_t *out, size_t room)
{
    size_t digits = strlen(text);
    if (digits % 2 || strspn(text, "0123456789abcdefABCDEF") != digits)
        die(2, "--%s %s: not pairs of hexadecimal digits", option, text);
    if (digits / 2 > room)
        die(2, "--%s: %zu bytes, at most %zu are allowed", option, digits / 2, room);
    for (size_t i = 0; i < digits / 2; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], 0};
        out[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return digits / 2;
}

static void parse_pids(const char *option, char *text)
{
    for (char *pid = strtok(text, ","); pid; pid = strtok(NULL, ",")) {
        if (options.watched == MAX_WATCHED)
            die(2, "--%s: more than %d processes", option, MAX_WATCHED);
        options.watch[options.watched++] = (pid_t)parse_count(option, pid, 1, INT32_MAX);
    }
}

static void parse_options(int argc, char **argv)
{
    enum {
        PROTOCOL, DIALECT, HOST, PORT, UNIX, CONNECTIONS, DEPTH, MIX, VALUE_SIZE, DURATION, WARMUP, RATE,
        FUNC_ID, BODY_HEX, WATCH, JSON, HELP, OPTION_COUNT
    };
    static const struct option LONG[] = {
        [PROTOCOL] = {"protocol", required_argument, NULL, PROTOCOL},
        [DIALECT] = {"dialect", required_argument, NULL, DIALECT},
        [HOST] = {"host", required_argument, NULL, HOST},
        [PORT] = {"port", required_argument, NULL, PORT},
        [UNIX] = {"unix", required_argument, NULL, UNIX},
        [CONNECTIONS] = {"connections", required_argument, NULL, CONNECTIONS},
        [DEPTH] = {"depth", required_argument, NULL, DEPTH},
        [MIX] = {"mix", required_argument, NULL, MIX},
        [VALUE_SIZE] = {"value-size", required_argument, NULL, VALUE_SIZE},
        [DURATION] = {"duration", required_argument, NULL, DURATION},
        [WARMUP] = {"warmup", required_argument, NULL, WARMUP},
        [RATE] = {"rate", required_argument, NULL, RATE},
        [FUNC_ID] = {"func-id", required_argument, NULL, FUNC_ID},
        [BODY_HEX] = {"body-hex", required_argument, NULL, BODY_HEX},
        [WATCH] = {"watch", required_argument, NULL, WATCH},
        [JSON] = {"json", no_argument, NULL, JSON},
        [HELP] = {"help", no_argument, NULL, HELP},
        [OPTION_COUNT] = {NULL, 0, NULL, 0},
    };
    bool given[OPTION_COUNT] = {false};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", LONG, NULL)) != -1) {
        if (option == ':')
            die(2, "%s: needs a value", argv[optind - 1]);
        if (option == '?')
            die(2, "%s: no such option, or a value it doesn't take (--help lists them)", argv[optind - 1]);
        const char *name = LONG[option].name;
        given[option] = true;
        switch (option) {
        case PROTOCOL: options.protocol = PROTOCOLS[choose(name, optarg, PROTOCOL_NAMES)]; break;
        case DIALECT: options.dialect = (enum dialect)choose(name, optarg, DIALECTS); break;
        case HOST: options.host = optarg; break;
        case PORT:
            parse_count(name, optarg, 1, 65535);
            options.port = optarg;
            break;
        case UNIX:
            if (strlen(optarg) >= sizeof ((struct sockaddr_un *)0)->sun_path)
                die(2, "--unix %s: longer than a socket's path may be", optarg);
            options.unix_path = optarg;
            break;
        case CONNECTIONS: options.connections = parse_count(name, optarg, 1, 60000); break;
        case DEPTH: options.depth = parse_count(name, optarg, 1, 65536); break;
        case MIX: options.mix = (enum mix)choose(name, optarg, MIXES); break;
        case VALUE_SIZE: options.value_size = parse_count(name, optarg, 0, MAX_VALUE); break;
        case DURATION: options.duration = parse_number(name, optarg, 0.01, 3600); break;
        case WARMUP: options.warmup = parse_number(name, optarg, 0, 600); break;
        case RATE: options.rate = parse_number(name, optarg, 1, 1e8); break;
        case FUNC_ID:
            options.own_function = true;
            options.func_id = parse_count(name, optarg, 0, UINT32_MAX);
            break;
        case BODY_HEX: options.body_size = parse_hex(name, optarg, options.body, MAX_BODY); break;
        case WATCH: parse_pids(name, optarg); break;
        case JSON: options.json = true; break;
        case HELP:
            fputs(USAGE, stdout);
            exit(0);
        }
    }
    if (optind < argc)
        die(2, "%s: not an option (--help lists them)", argv[optind]);
    if (!given[PROTOCOL])
        die(2, "--protocol: must be given");
    if (given[PORT] == given[UNIX])
        die(2, "give either --port or --unix");
    if (given[UNIX] && given[HOST])
        die(2, "--host %s: has no meaning with --unix", options.host);
    if (options.protocol != &IPROTO)
        for (int i = 0; i < OPTION_COUNT; i++)
            if (given[i] && (i == DIALECT || i == FUNC_ID || i == BODY_HEX))
                die(2, "--%s: is for --protocol iproto only", LONG[i].name);
    if (options.own_function && (given[MIX] || given[VALUE_SIZE]))
        die(2, "--%s: has no meaning with --func-id", given[MIX] ? "mix" : "value-size");
    if (!options.own_function && given[BODY_HEX])
        die(2, "--body-hex: needs --func-id");
    if (options.own_function && options.func_id == FUNC_SHUTDOWN)
        die(2, "--func-id 0x%08x: SHUTDOWN closes the connection it comes on", FUNC_SHUTDOWN);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    prctl(PR_SET_TIMERSLACK, 1ul); /* the open loop is only as exact as its timers */

    tape = options.own_function ? make_own_function_tape() : make_mixed_tape();
    if (!options.own_function)
        prefill();
    run_load();
    bool clean = report();
    free_tape(&tape);
    return clean ? 0 : 1;
}
