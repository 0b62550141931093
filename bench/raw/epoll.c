/* The yardstick for Linux without a ring: epoll, edge-triggered, by hand. A call is tried first where it may succeed,
 * and what an earlier call told is believed: after a short read there is nothing to read.
 *
 *     epoll BENCH COUNT
 */

#include "linux.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { BATCH = 128 };

static int epoll;
static struct epoll_event events[BATCH];

static int new_epoll(void)
{
    int new = epoll_create1(EPOLL_CLOEXEC);
    if (new < 0)
        die("epoll_create1");
    return new;
}

static void watch(int fd, uint32_t what, void *data)
{
    struct epoll_event event = { .events = what | EPOLLET, .data.ptr = data };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        die("epoll_ctl");
}

static int wait_for_events(void)
{
    int count = epoll_wait(epoll, events, BATCH, -1);
    if (count < 0)
        die("epoll_wait");
    return count;
}

/* ---- ping-pong ---- */

static void send_message(struct end *end)
{
    /* A message always fits: each connection has one. */
    if (send(end->socket, end->out, MESSAGE, MSG_DONTWAIT | MSG_NOSIGNAL) != MESSAGE)
        die("send");
}

static void readable(struct end *end)
{
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
    while (to_finish > 0) {
        int ready = wait_for_events();
        for (int i = 0; i < ready; i++)
            readable(events[i].data.ptr);
    }
}

static void watch_pairs(void)
{
    for (int i = 0; i < 2 * pairs; i++)
        watch(ends[i].socket, EPOLLIN, &ends[i]);
}

static void set_up_tcp(int count)
{
    set_up_pairs(count, tcp_pair);
    watch_pairs();
}

static void set_up_unix(int count)
{
    set_up_pairs(count, unix_pair);
    watch_pairs();
}

/* ---- wake: two threads on one processor ----
 *
 * Edge-triggered, each write is an event, and the counters need not be read. */

static int here, there, there_epoll;

static void tell(int whom)
{
    uint64_t one = 1;
    if (write(whom, &one, sizeof one) != sizeof one)
        die("write");
}

static FLAT void *answer(void *unused)
{
    struct epoll_event event;
    for (;;) {
        if (epoll_wait(there_epoll, &event, 1, -1) != 1)
            die("epoll_wait");
        tell(here);
    }
    return unused;
}

static void run_wake(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        tell(there);
        if (wait_for_events() != 1)
            wrong("not one event");
    }
}

static void set_up_wake(int unused)
{
    (void)unused;
    struct epoll_event event = { .events = EPOLLIN | EPOLLET };
    pthread_t thread;
    here = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    there = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (here < 0 || there < 0)
        die("eventfd");
    watch(here, EPOLLIN, NULL);
    there_epoll = new_epoll();
    if (epoll_ctl(there_epoll, EPOLL_CTL_ADD, there, &event) != 0)
        die("epoll_ctl");
    int error = pthread_create(&thread, NULL, answer, NULL);
    if (error != 0)
        die_of("pthread_create", error);
}

/* ---- stream ---- */

static void run_stream(unsigned long count)
{
    begin_stream(count);
    while (to_read > 0) {
        if (move_some())
            continue;
        int ready = wait_for_events();
        for (int i = 0; i < ready; i++)
            *(int *)events[i].data.ptr = 1;
    }
}

static void set_up_stream(int unused)
{
    (void)unused;
    set_up_stream_pair();
    watch(stream[0], EPOLLOUT, &is_writable);
    watch(stream[1], EPOLLIN, &is_readable);
}

/* ---- random reads: epoll has nothing to say of files ---- */

static void run_reads(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        struct slot *slot = &slots[i % (unsigned long)depth];
        slot->offset = random_offset();
        slot->used = 1;
        if (pread(file, slot->block, BLOCK, (off_t)slot->offset) != BLOCK)
            die("pread");
    }
}

static void set_up_file(int reads_in_flight)
{
    depth = reads_in_flight;
    make_file();
}

/* ---- churn ---- */

static int listener, client, server, connected;

static void accept_or_connect(const struct epoll_event *event)
{
    if (event->data.ptr == &connected) {
        if (event->events != EPOLLOUT)
            wrong("not connected");
        connected = 1;
        return;
    }
    server = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (server < 0)
        die("accept4");
}

static void run_churn(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        client = begin_connecting();
        watch(client, EPOLLOUT, &connected);
        connected = 0;
        server = -1;
        while (!connected || server < 0) {
            int ready = wait_for_events();
            for (int j = 0; j < ready; j++)
                accept_or_connect(&events[j]);
        }
        close(client);
        close(server);
    }
}

static void set_up_churn(int unused)
{
    (void)unused;
    listener = listen_on_loopback(128);
    watch(listener, EPOLLIN, &server);
}

/* ---- the program ---- */

int main(int argc, char **argv)
{
    unsigned long count;
    const struct bench *bench = from_command_line(argc, argv, &count);
    epoll = new_epoll();
    bench->set_up(bench->argument);
    measure(bench, "raw-epoll" VARIANT, count);
    return 0;
}
