/* The yardstick for the crate's benchmarks: the same work done by hand on one completion port, in one thread.
 *
 *     iocp.exe BENCH COUNT
 *
 * Set-up, a warm-up of COUNT/10 and the checks at the end are not measured. README.md has the benchmarks and counts. */

#define _WIN32_WINNT 0x0601
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BATCH = 64,             /* packets taken by one dequeue */
    MESSAGE_MAX = 64,
    BLOCK = 4096,
    FILE_SIZE = 64 << 20,
    FILL = 1 << 20,         /* bytes written at once when the file is made */
    DEPTH_MAX = 32,
};

static HANDLE port;
static OVERLAPPED_ENTRY packets[BATCH];
static unsigned long calls; /* OS calls made by the loop */

/* ---- errors ---- */

static void die(const char *call)
{
    fprintf(stderr, "%s: error %lu\n", call, GetLastError());
    exit(1);
}

static void wrong(const char *what)
{
    fprintf(stderr, "wrong data: %s\n", what);
    exit(1);
}

/* ---- one overlapped operation ---- */

struct op {
    OVERLAPPED overlapped; /* first, so that a packet's address is the operation's */
    HANDLE handle;
    DWORD bytes;
    BOOL done;
};

/* Skip mode: what ends at once costs no packet, and nobody waits on the handle itself, so its event need not be set. */
static void associate(HANDLE handle)
{
    if (!CreateIoCompletionPort(handle, port, 0, 0))
        die("CreateIoCompletionPort");
    if (!SetFileCompletionNotificationModes(handle,
                                            FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE))
        die("SetFileCompletionNotificationModes");
}

/* Takes what a call returned. Winsock's last error is the thread's last error, and its "pending" is the same 997. */
static BOOL started(struct op *op, BOOL at_once, const char *call)
{
    calls++;
    if (!at_once && GetLastError() != ERROR_IO_PENDING)
        die(call);
    op->done = at_once;
    return at_once;
}

static ULONG dequeue(void)
{
    ULONG count;
    calls++;
    if (!GetQueuedCompletionStatusEx(port, packets, BATCH, &count, INFINITE, FALSE))
        die("GetQueuedCompletionStatusEx");
    return count;
}

static struct op *packet_op(const OVERLAPPED_ENTRY *packet, const char *call)
{
    struct op *op = (struct op *)packet->lpOverlapped;
    if (op->overlapped.Internal != 0) {
        GetOverlappedResult(op->handle, &op->overlapped, &op->bytes, FALSE); /* turns the NTSTATUS into a last error */
        die(call);
    }
    op->bytes = packet->dwNumberOfBytesTransferred;
    op->done = TRUE;
    return op;
}

static void finish(struct op *op, const char *call)
{
    while (!op->done) {
        ULONG count = dequeue();
        for (ULONG i = 0; i < count; i++)
            packet_op(&packets[i], call);
    }
}

/* ---- ping-pong: both ends of a stream in this thread ---- */

struct end {
    struct op receiving, sending; /* two, as a receive may be waiting while its end sends */
    char *in, *out;
    DWORD flags; /* WSARecv writes it when the receive ends */
};

static char sent[MESSAGE_MAX], echoed[MESSAGE_MAX], received[MESSAGE_MAX];
static struct end client = { .in = received, .out = sent };
static struct end server = { .in = echoed, .out = echoed };
static DWORD message;
static BOOL sockets;

static void send_message(struct end *end)
{
    struct op *op = &end->sending;
    if (sockets) {
        WSABUF buffer = { message, end->out };
        started(op, !WSASend((SOCKET)op->handle, &buffer, 1, &op->bytes, 0, &op->overlapped, NULL), "WSASend");
    } else {
        started(op, WriteFile(op->handle, end->out, message, &op->bytes, &op->overlapped), "WriteFile");
    }
    finish(op, sockets ? "WSASend" : "WriteFile");
    if (op->bytes != message)
        wrong("short send");
}

static void start_receive(struct end *end, DWORD have)
{
    struct op *op = &end->receiving;
    if (sockets) {
        WSABUF buffer = { message - have, end->in + have };
        end->flags = 0;
        started(op, !WSARecv((SOCKET)op->handle, &buffer, 1, &op->bytes, &end->flags, &op->overlapped, NULL),
                "WSARecv");
    } else {
        started(op, ReadFile(op->handle, end->in + have, message - have, &op->bytes, &op->overlapped), "ReadFile");
    }
}

/* A stream may hand a message over in pieces. */
static void finish_receive(struct end *end)
{
    struct op *op = &end->receiving;
    DWORD have = 0;
    for (;;) {
        finish(op, sockets ? "WSARecv" : "ReadFile");
        if (op->bytes == 0)
            wrong("end of stream");
        have += op->bytes;
        if (have == message)
            return;
        start_receive(end, have);
    }
}

static void run_pingpong(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        sent[0] = (char)i; /* so that the check at the end can't be met by an earlier message */
        send_message(&client);
        start_receive(&server, 0);
        finish_receive(&server);
        send_message(&server);
        start_receive(&client, 0);
        finish_receive(&client);
    }
}

/* Both ends receive before the other sends, as two tasks would: every receive ends with a packet. */
static void run_posted(unsigned long count)
{
    start_receive(&server, 0);
    for (unsigned long i = 0; i < count; i++) {
        sent[0] = (char)i;
        start_receive(&client, 0);
        send_message(&client);
        finish_receive(&server);
        send_message(&server);
        if (i + 1 < count)
            start_receive(&server, 0);
        finish_receive(&client);
    }
}

static void check_pingpong(void)
{
    if (memcmp(sent, received, message) != 0)
        wrong("echo differs");
}

static void set_up_pingpong(HANDLE client_handle, HANDLE server_handle, DWORD size)
{
    message = size;
    for (int i = 0; i < MESSAGE_MAX; i++)
        sent[i] = (char)(i * 7 + 1);
    client.receiving.handle = client.sending.handle = client_handle;
    server.receiving.handle = server.sending.handle = server_handle;
    associate(client_handle);
    associate(server_handle);
}

/* TCP_NODELAY, or Nagle's algorithm is what gets measured. */
static SOCKET tcp_socket(SOCKET s)
{
    BOOL on = TRUE;
    if (s == INVALID_SOCKET)
        die("socket or accept");
    if (setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (char *)&on, sizeof on) != 0)
        die("setsockopt");
    return s;
}

static void set_up_tcp(DWORD size)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int length = sizeof address;
    WSADATA data;
    int error = WSAStartup(MAKEWORD(2, 2), &data);
    if (error != 0) {
        SetLastError(error);
        die("WSAStartup");
    }
    SOCKET listener = tcp_socket(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    if (bind(listener, (struct sockaddr *)&address, length) != 0)
        die("bind");
    if (listen(listener, 1) != 0)
        die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length) != 0)
        die("getsockname");
    SOCKET near_end = tcp_socket(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    if (connect(near_end, (struct sockaddr *)&address, length) != 0)
        die("connect");
    SOCKET far_end = tcp_socket(accept(listener, NULL, NULL));
    closesocket(listener);
    sockets = TRUE;
    set_up_pingpong((HANDLE)near_end, (HANDLE)far_end, size);
}

static void set_up_pipe(DWORD size)
{
    WCHAR name[64];
    _snwprintf(name, 64, L"\\\\.\\pipe\\ioqueue-bench-%lu", GetCurrentProcessId());
    HANDLE far_end = CreateNamedPipeW(name, PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | FILE_FLAG_FIRST_PIPE_INSTANCE,
                                      PIPE_TYPE_BYTE | PIPE_REJECT_REMOTE_CLIENTS, 1, BLOCK, BLOCK, 0, NULL);
    if (far_end == INVALID_HANDLE_VALUE)
        die("CreateNamedPipe");
    HANDLE near_end =
        CreateFileW(name, GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, NULL);
    if (near_end == INVALID_HANDLE_VALUE)
        die("CreateFile");
    /* The client came first, so this can only say that it is connected already. */
    if (!ConnectNamedPipe(far_end, &server.receiving.overlapped) && GetLastError() != ERROR_PIPE_CONNECTED)
        die("ConnectNamedPipe");
    set_up_pingpong(near_end, far_end, size);
}

/* ---- post-dequeue ---- */

static void set_up_nothing(DWORD unused)
{
    (void)unused;
}

static void run_post(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        calls++;
        if (!PostQueuedCompletionStatus(port, i, 0, NULL))
            die("PostQueuedCompletionStatus");
        if (dequeue() != 1 || packets[0].dwNumberOfBytesTransferred != i)
            wrong("not the packet that was posted");
    }
}

static void check_nothing(void)
{
}

/* ---- random reads of a file ---- */

struct slot {
    struct op op; /* first: see packet_op */
    char *block;
};

static struct slot slots[DEPTH_MAX];
static char blocks[DEPTH_MAX][BLOCK];
static DWORD depth;
static HANDLE file;
static unsigned long to_start, to_finish;

/* Every 8 bytes of the file say where they are. */
static unsigned long long word_at(unsigned long long offset)
{
    return (offset + 1) * 0x9E3779B97F4A7C15ull;
}

/* xorshift64, fixed seed: every run reads the same blocks. The top 14 bits pick one of 16384. */
static DWORD random_offset(void)
{
    static unsigned long long x = 0x2545F4914F6CDD1Dull;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (DWORD)(x >> 50) * BLOCK;
}

static BOOL start_read(struct slot *slot)
{
    struct op *op = &slot->op;
    op->overlapped.Offset = random_offset();
    return started(op, ReadFile(file, slot->block, BLOCK, &op->bytes, &op->overlapped), "ReadFile");
}

static void read_done(const struct slot *slot)
{
    if (slot->op.bytes != BLOCK)
        wrong("short read");
    to_finish--;
}

/* A loop, as reads that end at once would otherwise recurse. */
static void keep_reading(struct slot *slot)
{
    while (to_start > 0) {
        to_start--;
        if (!start_read(slot))
            return;
        read_done(slot);
    }
}

static void run_reads(unsigned long count)
{
    to_start = to_finish = count;
    for (DWORD i = 0; i < depth; i++)
        keep_reading(&slots[i]);
    while (to_finish > 0) {
        ULONG ready = dequeue();
        for (ULONG i = 0; i < ready; i++) {
            struct slot *slot = (struct slot *)packet_op(&packets[i], "ReadFile");
            read_done(slot);
            keep_reading(slot);
        }
    }
}

static void check_reads(void)
{
    for (DWORD i = 0; i < depth && slots[i].op.done; i++) {
        for (DWORD at = 0; at < BLOCK; at += 8) {
            unsigned long long word = word_at(slots[i].op.overlapped.Offset + at);
            if (memcmp(slots[i].block + at, &word, 8) != 0)
                wrong("not the block that was asked for");
        }
    }
}

static void fill_file(void)
{
    static unsigned long long words[FILL / 8];
    struct op op = { .handle = file };
    for (DWORD offset = 0; offset < FILE_SIZE; offset += FILL) {
        for (DWORD i = 0; i < FILL / 8; i++)
            words[i] = word_at(offset + i * 8);
        op.overlapped.Offset = offset;
        started(&op, WriteFile(file, words, FILL, &op.bytes, &op.overlapped), "WriteFile");
        finish(&op, "WriteFile");
        if (op.bytes != FILL)
            wrong("short write");
    }
}

/* Temporary and deleted on close: nothing is left behind, also after an error, and nothing need be written back to disk
 * while the reads are measured. */
static void set_up_file(DWORD reads_in_flight)
{
    WCHAR folder[MAX_PATH + 1], name[MAX_PATH + 64];
    if (!GetTempPathW(MAX_PATH + 1, folder))
        die("GetTempPath");
    _snwprintf(name, MAX_PATH + 64, L"%lsioqueue-bench-%lu.tmp", folder, GetCurrentProcessId());
    file = CreateFileW(name, GENERIC_READ | GENERIC_WRITE, 0, NULL, CREATE_NEW,
                       FILE_ATTRIBUTE_TEMPORARY | FILE_FLAG_OVERLAPPED | FILE_FLAG_DELETE_ON_CLOSE, NULL);
    if (file == INVALID_HANDLE_VALUE)
        die("CreateFile");
    associate(file);
    fill_file();
    depth = reads_in_flight;
    for (DWORD i = 0; i < depth; i++) {
        slots[i].op.handle = file;
        slots[i].block = blocks[i];
    }
}

/* ---- the program ---- */

static const struct bench {
    const char *name, *unit;
    void (*set_up)(DWORD);
    DWORD argument; /* bytes of a message, or reads in flight */
    void (*run)(unsigned long count);
    void (*check)(void);
} benches[] = {
    { "tcp-pingpong-1", "round trips/s", set_up_tcp, 1, run_pingpong, check_pingpong },
    { "tcp-pingpong-64", "round trips/s", set_up_tcp, 64, run_pingpong, check_pingpong },
    { "pipe-pingpong-64", "round trips/s", set_up_pipe, 64, run_pingpong, check_pingpong },
    { "tcp-pingpong-1-posted", "round trips/s", set_up_tcp, 1, run_posted, check_pingpong },
    { "tcp-pingpong-64-posted", "round trips/s", set_up_tcp, 64, run_posted, check_pingpong },
    { "pipe-pingpong-64-posted", "round trips/s", set_up_pipe, 64, run_posted, check_pingpong },
    { "post-dequeue", "packets/s", set_up_nothing, 0, run_post, check_nothing },
    { "file-read-4k-1", "reads/s", set_up_file, 1, run_reads, check_reads },
    { "file-read-4k-32", "reads/s", set_up_file, 32, run_reads, check_reads },
};

static const struct bench *find(const char *name)
{
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        if (strcmp(benches[i].name, name) == 0)
            return &benches[i];
    return NULL;
}

static void measure(const struct bench *bench, unsigned long count)
{
    LARGE_INTEGER frequency, start, stop;
    QueryPerformanceFrequency(&frequency);
    bench->run(count / 10);
    calls = 0;
    QueryPerformanceCounter(&start);
    bench->run(count);
    QueryPerformanceCounter(&stop);
    double seconds = (double)(stop.QuadPart - start.QuadPart) / (double)frequency.QuadPart;
    bench->check();
    printf("{\"bench\":\"%s\",\"impl\":\"raw\",\"count\":%lu,\"seconds\":%.6f,"
           "\"rate\":%.0f,\"unit\":\"%s\",\"calls\":%.3f}\n",
           bench->name, count, seconds, count / seconds, bench->unit, (double)calls / count);
}

int main(int argc, char **argv)
{
    const struct bench *bench = argc == 3 ? find(argv[1]) : NULL;
    unsigned long count = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    if (!bench || count == 0) {
        fprintf(stderr, "usage: iocp BENCH COUNT\n");
        return 1;
    }
    port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 1);
    if (!port)
        die("CreateIoCompletionPort");
    bench->set_up(bench->argument);
    measure(bench, count);
    return 0;
}
