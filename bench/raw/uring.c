/* The yardstick for Linux with a ring: io_uring by hand, each benchmark in the way that was fastest of many.
 *
 *     uring BENCH COUNT
 *
 * Sockets are fastest with a multishot poll in the ring, edge-triggered, and direct receives; sends are direct for one
 * connection and batched with the wait for many. README.md has what else was tried. */

#include "linux.h"
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef IORING_SETUP_NO_SQARRAY /* since 6.6 */
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

enum { ENTRIES = 256 };

/* ---- a ring ---- */

struct ring {
    unsigned *sq_head, *sq_tail, sq_mask;
    unsigned *cq_head, *cq_tail, cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    unsigned tail, submitted; /* of the submissions: where the next goes, and what the kernel has */
    int fd, enter_fd;         /* the second is the registered one, where that is possible */
    unsigned enter_flags;
};

static struct ring ring;

static int register_with(struct ring *r, unsigned what, void *argument, unsigned count)
{
    return (int)syscall(SYS_io_uring_register, r->fd, what, argument, count);
}

/* With the best flags that the kernel knows. */
static void set_up_ring(struct ring *r, struct io_uring_params *parameters)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_NO_SQARRAY,
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        IORING_SETUP_COOP_TASKRUN,
        0,
    };
    r->fd = -1;
    for (size_t i = 0; r->fd < 0 && i < sizeof flags / sizeof *flags; i++) {
        memset(parameters, 0, sizeof *parameters);
        parameters->flags = flags[i] | IORING_SETUP_CQSIZE;
        parameters->cq_entries = 4 * ENTRIES;
        r->fd = (int)syscall(SYS_io_uring_setup, ENTRIES, parameters);
    }
    if (r->fd < 0)
        die("io_uring_setup");
}

static char *map(struct ring *r, size_t size, off_t what)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, what);
    if (at == MAP_FAILED)
        die("mmap");
    return at;
}

static void open_ring(struct ring *r)
{
    struct io_uring_params parameters;
    set_up_ring(r, &parameters);
    const struct io_sqring_offsets *sq = &parameters.sq_off;
    const struct io_cqring_offsets *cq = &parameters.cq_off;
    size_t cq_size = cq->cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
    size_t sq_size = sq->array + parameters.sq_entries * sizeof(unsigned);
    char *rings = map(r, cq_size > sq_size ? cq_size : sq_size, IORING_OFF_SQ_RING);
    char *sqes = map(r, parameters.sq_entries * sizeof(struct io_uring_sqe), (off_t)IORING_OFF_SQES);
    r->sqes = (struct io_uring_sqe *)sqes;
    r->sq_head = (unsigned *)(rings + sq->head);
    r->sq_tail = (unsigned *)(rings + sq->tail);
    r->sq_mask = *(unsigned *)(rings + sq->ring_mask);
    r->cq_head = (unsigned *)(rings + cq->head);
    r->cq_tail = (unsigned *)(rings + cq->tail);
    r->cq_mask = *(unsigned *)(rings + cq->ring_mask);
    r->cqes = (struct io_uring_cqe *)(rings + cq->cqes);
    if (!(parameters.flags & IORING_SETUP_NO_SQARRAY))
        for (unsigned i = 0; i <= r->sq_mask; i++)
            ((unsigned *)(rings + sq->array))[i] = i;
    struct io_uring_rsrc_update own = { .offset = -1U, .data = (uint64_t)r->fd };
    r->enter_fd = r->fd;
    if (register_with(r, IORING_REGISTER_RING_FDS, &own, 1) == 1) {
        r->enter_fd = (int)own.offset;
        r->enter_flags = IORING_ENTER_REGISTERED_RING;
    }
}

/* Submits what was begun, and waits until there are `want` completions. */
static void enter(struct ring *r, unsigned want)
{
    unsigned flags = r->enter_flags | IORING_ENTER_GETEVENTS;
    __atomic_store_n(r->sq_tail, r->tail, __ATOMIC_RELEASE);
    long count = syscall(SYS_io_uring_enter, r->enter_fd, r->tail - r->submitted, want, flags, NULL, 0);
    if (count < 0)
        die("io_uring_enter");
    r->submitted += (unsigned)count;
}

static INLINE struct io_uring_sqe *begin(struct ring *r, unsigned char opcode, int fd, void *data)
{
    if (r->tail - __atomic_load_n(r->sq_head, __ATOMIC_ACQUIRE) > r->sq_mask)
        enter(r, 0);
    struct io_uring_sqe *sqe = &r->sqes[r->tail++ & r->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = (uintptr_t)data;
    return sqe;
}

/* A poll that tells every edge until it says otherwise. */
static void begin_polling(struct ring *r, int fd, unsigned events, void *data)
{
    struct io_uring_sqe *sqe = begin(r, IORING_OP_POLL_ADD, fd, data);
    sqe->len = IORING_POLL_ADD_MULTI;
    sqe->poll32_events = events;
}

static void *data_of(const struct io_uring_cqe *cqe)
{
    return (void *)(uintptr_t)cqe->user_data;
}

/* Submits, waits, and hands over what has completed. */
static void wait_for(struct ring *r, void (*completed)(const struct io_uring_cqe *))
{
    enter(r, 1);
    unsigned head = *r->cq_head, tail = __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE);
    for (; head != tail; head++)
        completed(&r->cqes[head & r->cq_mask]);
    __atomic_store_n(r->cq_head, head, __ATOMIC_RELEASE);
}

/* ---- ping-pong ---- */

static void send_message(struct end *end)
{
    if (pairs == 1) {
        /* A message always fits: each connection has one. */
        if (send(end->socket, end->out, MESSAGE, MSG_DONTWAIT | MSG_NOSIGNAL) != MESSAGE)
            die("send");
        return;
    }
    /* Only a failed one tells. */
    struct io_uring_sqe *sqe = begin(&ring, IORING_OP_SEND, (int)(end - ends), NULL);
    sqe->addr = (uintptr_t)end->out;
    sqe->len = MESSAGE;
    sqe->msg_flags = MSG_NOSIGNAL | MSG_WAITALL;
    sqe->flags = IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS;
}

static void begin_end(struct end *end)
{
    begin_polling(&ring, (int)(end - ends), POLLIN, end);
    ring.sqes[(ring.tail - 1) & ring.sq_mask].flags |= IOSQE_FIXED_FILE;
}

static void readable(const struct io_uring_cqe *cqe)
{
    struct end *end = data_of(cqe);
    if (cqe->res < 0)
        die_of(end ? "poll" : "send", -cqe->res);
    if (!end)
        wrong("short send");
    if (!(cqe->flags & IORING_CQE_F_MORE))
        begin_end(end);
    for (;;) {
        size_t room = sizeof end->in - end->have;
        ssize_t got = recv(end->socket, end->in + end->have, room, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got < 0)
            die("recv");
        if (received(end, (int)got))
            send_message(end);
        if ((size_t)got < room)
            return;
    }
}

static void run_pingpong(unsigned long count)
{
    to_start = to_finish = count;
    for (int i = 0; i < 2 * pairs; i += 2)
        if (next_message(&ends[i]))
            send_message(&ends[i]);
    while (to_finish > 0)
        wait_for(&ring, readable);
}

static void begin_pairs(void)
{
    int sockets[2 * PAIRS_MAX];
    for (int i = 0; i < 2 * pairs; i++)
        sockets[i] = ends[i].socket;
    if (register_with(&ring, IORING_REGISTER_FILES, sockets, (unsigned)(2 * pairs)) != 0)
        die("IORING_REGISTER_FILES");
    for (int i = 0; i < 2 * pairs; i++)
        begin_end(&ends[i]);
    enter(&ring, 0);
}

static void set_up_tcp(int count)
{
    set_up_pairs(count, tcp_pair);
    begin_pairs();
}

static void set_up_unix(int count)
{
    set_up_pairs(count, unix_pair);
    begin_pairs();
}

/* ---- wake: two threads on one processor ----
 *
 * Edge-triggered, each write is an event, and the counters need not be read. IORING_OP_MSG_RING makes half the calls
 * and takes longer. */

static int here, there;

static void tell(int whom)
{
    uint64_t one = 1;
    if (write(whom, &one, sizeof one) != sizeof one)
        die("write");
}

static void woken(const struct io_uring_cqe *cqe)
{
    if (cqe->res < 0)
        die_of("poll", -cqe->res);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        wrong("the poll has ended");
}

static FLAT void *answer(void *barrier)
{
    static struct ring own;
    open_ring(&own);
    begin_polling(&own, there, POLLIN, NULL);
    enter(&own, 0);
    pthread_barrier_wait(barrier);
    for (;;) {
        wait_for(&own, woken);
        tell(here);
    }
    return NULL;
}

static void run_wake(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        tell(there);
        wait_for(&ring, woken);
    }
}

static void set_up_wake(int unused)
{
    (void)unused;
    static pthread_barrier_t barrier;
    pthread_t thread;
    here = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    there = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (here < 0 || there < 0)
        die("eventfd");
    begin_polling(&ring, here, POLLIN, NULL);
    enter(&ring, 0);
    pthread_barrier_init(&barrier, NULL, 2);
    int error = pthread_create(&thread, NULL, answer, &barrier);
    if (error != 0)
        die_of("pthread_create", error);
    pthread_barrier_wait(&barrier);
}

/* ---- stream: direct calls, and polls where neither end can go on ---- */

static void now_ready(const struct io_uring_cqe *cqe)
{
    if (cqe->res < 0)
        die_of("poll", -cqe->res);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        wrong("the poll has ended");
    *(int *)data_of(cqe) = 1;
}

static void run_stream(unsigned long count)
{
    begin_stream(count);
    while (to_read > 0)
        if (!move_some())
            wait_for(&ring, now_ready);
}

static void set_up_stream(int unused)
{
    (void)unused;
    set_up_stream_pair();
    begin_polling(&ring, stream[0], POLLOUT, &is_writable);
    begin_polling(&ring, stream[1], POLLIN, &is_readable);
}

/* ---- random reads ---- */

/* The file is 0 of the registered ones. */
static void begin_read(struct slot *slot)
{
    struct io_uring_sqe *sqe = begin(&ring, IORING_OP_READ, 0, slot);
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->addr = (uintptr_t)slot->block;
    sqe->len = BLOCK;
    sqe->off = slot->offset;
}

static void next_read(struct slot *slot)
{
    while (to_start > 0) {
        to_start--;
        slot->offset = random_offset();
        slot->used = 1;
        /* Alone it is faster to ask first for what is cached; in a batch it makes no difference. */
        struct iovec block = { slot->block, BLOCK };
        if (depth > 1 || preadv2(file, &block, 1, (off_t)slot->offset, RWF_NOWAIT) != BLOCK) {
            begin_read(slot);
            return;
        }
        to_finish--;
    }
}

static void read_done(const struct io_uring_cqe *cqe)
{
    if (cqe->res < 0)
        die_of("read", -cqe->res);
    if (cqe->res != BLOCK)
        wrong("short read");
    to_finish--;
    next_read(data_of(cqe));
}

static void run_reads(unsigned long count)
{
    to_start = to_finish = count;
    for (int i = 0; i < depth; i++)
        next_read(&slots[i]);
    while (to_finish > 0)
        wait_for(&ring, read_done);
}

static void set_up_file(int reads_in_flight)
{
    depth = reads_in_flight;
    make_file();
    if (register_with(&ring, IORING_REGISTER_FILES, &file, 1) != 0)
        die("IORING_REGISTER_FILES");
}

/* ---- churn ---- */

static int listener, client, server, connected;

static void begin_accepting(void)
{
    struct io_uring_sqe *sqe = begin(&ring, IORING_OP_ACCEPT, listener, &server);
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    sqe->accept_flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
}

static void accepted_or_connected(const struct io_uring_cqe *cqe)
{
    if (cqe->res < 0)
        die_of(data_of(cqe) == &server ? "accept" : "poll", -cqe->res);
    if (data_of(cqe) == &connected) {
        if (cqe->res != POLLOUT)
            wrong("not connected");
        connected = 1;
        return;
    }
    server = cqe->res;
    if (!(cqe->flags & IORING_CQE_F_MORE))
        begin_accepting();
}

static void run_churn(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        client = begin_connecting();
        begin(&ring, IORING_OP_POLL_ADD, client, &connected)->poll32_events = POLLOUT;
        connected = 0;
        server = -1;
        while (!connected || server < 0)
            wait_for(&ring, accepted_or_connected);
        close(client);
        close(server);
    }
}

static void set_up_churn(int unused)
{
    (void)unused;
    listener = listen_on_loopback(128);
    begin_accepting();
    enter(&ring, 0);
}

/* ---- the program ---- */

int main(int argc, char **argv)
{
    unsigned long count;
    const struct bench *bench = from_command_line(argc, argv, &count);
    open_ring(&ring);
    bench->set_up(bench->argument);
    measure(bench, "raw-uring" VARIANT, count);
    return 0;
}
