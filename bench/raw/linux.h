/* What epoll.c and uring.c share: the data, the checks, the clock and the line that is printed.
 *
 * Set-up, a warm-up of COUNT/10 and the checks at the end are not measured. README.md has the benchmarks. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "inline.h"

enum {
    MESSAGE = 64,
    PIECE = 64 << 10,     /* of the stream */
    BLOCK = 4096,
    FILE_SIZE = 64 << 20,
    FILL = 1 << 20,       /* bytes written at once when the file is made */
    PAIRS_MAX = 64,
    DEPTH_MAX = 32,
};

/* ---- errors ---- */

static void die_of(const char *call, int error)
{
    fprintf(stderr, "%s: %s\n", call, strerror(error));
    exit(1);
}

static void die(const char *call)
{
    die_of(call, errno);
}

static void wrong(const char *what)
{
    fprintf(stderr, "wrong data: %s\n", what);
    exit(1);
}

/* ---- sockets ---- */

static struct sockaddr_in loopback = { .sin_family = AF_INET };

static int listen_on_loopback(int backlog)
{
    socklen_t length = sizeof loopback;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    loopback.sin_port = 0;
    if (bind(listener, (struct sockaddr *)&loopback, length) != 0)
        die("bind");
    if (listen(listener, backlog) != 0)
        die("listen");
    if (getsockname(listener, (struct sockaddr *)&loopback, &length) != 0)
        die("getsockname");
    return listener;
}

/* TCP_NODELAY, or Nagle's algorithm is what gets measured. */
static void no_delay(int socket)
{
    int on = 1;
    if (setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
        die("setsockopt");
}

static void tcp_pair(int pair[2])
{
    int listener = listen_on_loopback(1);
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (pair[0] < 0)
        die("socket");
    if (connect(pair[0], (struct sockaddr *)&loopback, sizeof loopback) != 0)
        die("connect");
    pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (pair[1] < 0)
        die("accept4");
    close(listener);
    no_delay(pair[0]);
    no_delay(pair[1]);
}

static void unix_pair(int pair[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        die("socketpair");
}

/* ---- ping-pong: both ends of every connection in this thread ----
 *
 * An end never tries a receive that it does not know to succeed: it waits until it is told. */

struct end {
    int socket;
    int server;
    size_t have; /* a stream may hand a message over in pieces */
    char in[2 * MESSAGE], out[MESSAGE];
};

static struct end ends[2 * PAIRS_MAX]; /* a client, its server, the next client ... */
static int pairs;
static unsigned long to_start, to_finish;

static void set_up_pairs(int count, void (*make)(int[2]))
{
    pairs = count;
    for (int i = 0; i < pairs; i++) {
        struct end *client = &ends[2 * i];
        int pair[2];
        make(pair);
        client[0].socket = pair[0];
        client[1].socket = pair[1];
        client[1].server = 1;
        for (int at = 0; at < MESSAGE; at++)
            client->out[at] = client->in[at] = (char)(at * 7 + i); /* the check passes a client without a turn */
    }
}

/* The next message of a client, if one is left to send. */
static int next_message(struct end *client)
{
    if (to_start == 0)
        return 0;
    /* So that the check at the end can't be met by an earlier message. */
    client->out[0] = (char)to_start--;
    return 1;
}

/* `got` more bytes are in `in`: whether `out` is to be sent now. */
static int received(struct end *end, int got)
{
    if (got <= 0)
        wrong("end of stream");
    end->have += (size_t)got;
    if (end->have < MESSAGE)
        return 0;
    if (end->have > MESSAGE)
        wrong("more than was sent");
    end->have = 0;
    if (end->server) {
        memcpy(end->out, end->in, MESSAGE);
        return 1;
    }
    to_finish--;
    return next_message(end);
}

static void check_pairs(void)
{
    for (int i = 0; i < 2 * pairs; i += 2)
        if (memcmp(ends[i].out, ends[i].in, MESSAGE) != 0)
            wrong("echo differs");
}

/* ---- stream: a writer and a reader in this thread take turns, and wait when neither can go on ---- */

static int stream[2];
static _Alignas(BLOCK) char written[PIECE], read_back[PIECE];
static unsigned long long to_write, to_read; /* bytes */
static size_t in_piece;                      /* where the next write begins */
static int is_writable = 1, is_readable;     /* until a call says otherwise */
static int last_read;

/* The kernel would let megabytes pile up between the ends in some runs and not in others, which then go at half the
 * speed: where the data stays in the cache is what decides. */
static void set_up_stream_pair(void)
{
    int size = 2 * PIECE;
    tcp_pair(stream);
    if (setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) != 0)
        die("setsockopt");
    for (uint32_t i = 0; i < PIECE / 4; i++)
        memcpy(written + 4 * i, &i, 4);
}

static void begin_stream(unsigned long count)
{
    to_write = to_read = (unsigned long long)count * PIECE;
}

static void write_some(void)
{
    size_t left = PIECE - in_piece;
    ssize_t sent = send(stream[0], written + in_piece, left, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        die("send");
    if (sent < 0)
        sent = 0;
    if ((size_t)sent < left)
        is_writable = 0;
    to_write -= (size_t)sent;
    in_piece = (in_piece + (size_t)sent) % PIECE;
}

static void read_some(void)
{
    ssize_t got = recv(stream[1], read_back, PIECE, MSG_DONTWAIT);
    if (got == 0)
        wrong("end of stream");
    if (got < 0 && errno != EAGAIN)
        die("recv");
    if (got < PIECE)
        is_readable = 0;
    if (got > 0) {
        to_read -= (size_t)got;
        last_read = (int)got;
    }
}

/* A turn for each: whether one of them could be tried. */
static int move_some(void)
{
    int writes = to_write > 0 && is_writable, reads = is_readable;
    if (writes)
        write_some();
    if (reads)
        read_some();
    return writes || reads;
}

/* The pieces are all the same, so what came last must be the end of one. */
static void check_last_read(void)
{
    if (memcmp(read_back, written + PIECE - last_read, (size_t)last_read) != 0)
        wrong("stream differs");
}

/* ---- churn ---- */

/* With linger 0, as otherwise the ports would be used up. Who closes first resets, so that the other end needs none. */
static int begin_connecting(void)
{
    static const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client < 0)
        die("socket");
    if (setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) != 0)
        die("setsockopt");
    if (connect(client, (struct sockaddr *)&loopback, sizeof loopback) != 0 && errno != EINPROGRESS)
        die("connect");
    return client;
}

/* ---- random reads of a file ---- */

struct slot {
    _Alignas(64) char block[BLOCK];
    uint64_t offset;
    int used;
};

static _Alignas(BLOCK) struct slot slots[DEPTH_MAX];
static int depth, file;

/* Every 8 bytes of the file say where they are. */
static uint64_t word_at(uint64_t offset)
{
    return (offset + 1) * 0x9E3779B97F4A7C15ull;
}

/* xorshift64, fixed seed: every run reads the same blocks. The top 14 bits pick one of 16384. */
static uint64_t random_offset(void)
{
    static uint64_t x = 0x2545F4914F6CDD1Dull;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (x >> 50) * BLOCK;
}

/* Unlinked at once, so that nothing is left behind, also after an error. */
static void make_file(void)
{
    static uint64_t words[FILL / 8];
    const char *folder = getenv("TMPDIR");
    char name[4096];
    snprintf(name, sizeof name, "%s/ioqueue-bench-XXXXXX", folder ? folder : "/tmp");
    file = mkostemp(name, O_CLOEXEC);
    if (file < 0)
        die("mkostemp");
    unlink(name);
    for (uint64_t offset = 0; offset < FILE_SIZE; offset += FILL) {
        for (uint64_t i = 0; i < FILL / 8; i++)
            words[i] = word_at(offset + i * 8);
        if (pwrite(file, words, FILL, (off_t)offset) != FILL)
            die("pwrite");
    }
    /* Nothing is to be written back to disk while the reads are measured. */
    if (fdatasync(file) != 0)
        die("fdatasync");
}

static void check_blocks(void)
{
    for (int i = 0; i < depth && slots[i].used; i++) {
        for (uint64_t at = 0; at < BLOCK; at += 8) {
            uint64_t word = word_at(slots[i].offset + at);
            if (memcmp(slots[i].block + at, &word, 8) != 0)
                wrong("not the block that was asked for");
        }
    }
}

/* ---- the program ---- */

struct bench {
    const char *name, *unit;
    void (*set_up)(int);
    int argument; /* connections, or reads in flight */
    void (*run)(unsigned long count);
    void (*check)(void);
};

static void set_up_tcp(int), set_up_unix(int), set_up_wake(int), set_up_stream(int), set_up_file(int), set_up_churn(int);
static FLAT void run_pingpong(unsigned long), run_wake(unsigned long), run_stream(unsigned long),
    run_reads(unsigned long), run_churn(unsigned long);

static void check_nothing(void)
{
}

static const struct bench benches[] = {
    { "tcp-pingpong-1", "round trips/s", set_up_tcp, 1, run_pingpong, check_pairs },
    { "tcp-pingpong-64", "round trips/s", set_up_tcp, 64, run_pingpong, check_pairs },
    { "unix-pingpong-1", "round trips/s", set_up_unix, 1, run_pingpong, check_pairs },
    { "wake", "round trips/s", set_up_wake, 0, run_wake, check_nothing },
    { "stream-64k", "pieces/s", set_up_stream, 0, run_stream, check_last_read },
    { "file-read-4k-1", "reads/s", set_up_file, 1, run_reads, check_blocks },
    { "file-read-4k-32", "reads/s", set_up_file, 32, run_reads, check_blocks },
    { "churn", "connections/s", set_up_churn, 0, run_churn, check_nothing },
};

static const struct bench *from_command_line(int argc, char **argv, unsigned long *count)
{
    *count = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    for (size_t i = 0; *count > 0 && i < sizeof benches / sizeof *benches; i++)
        if (strcmp(benches[i].name, argv[1]) == 0)
            return &benches[i];
    fprintf(stderr, "usage: %s BENCH COUNT\n", argv[0]);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void measure(const struct bench *bench, const char *implementation, unsigned long count)
{
    bench->run(count / 10);
    double start = now();
    bench->run(count);
    double seconds = now() - start;
    bench->check();
    printf("{\"bench\":\"%s\",\"impl\":\"%s\",\"count\":%lu,\"seconds\":%.6f,"
           "\"rate\":%.0f,\"unit\":\"%s\",\"ns\":%.1f}\n",
           bench->name, implementation, count, seconds, (double)count / seconds, bench->unit,
           seconds * 1e9 / (double)count);
}
