/* With INLINE_CALLS: the system calls of the loops as instructions in the loops, and no function around them.
 *
 * Included by linux.h after the system headers, whose declarations of the same names would be replaced too. */

#ifndef INLINE_CALLS

#define FLAT
#define INLINE
#define VARIANT ""

#else

#ifndef __x86_64__
#error "INLINE_CALLS is for x86_64"
#endif

#include <sys/epoll.h>
#include <sys/syscall.h>

/* All that a function calls becomes a part of it; and what it would be missing where a callback calls it. */
#define FLAT __attribute__((flatten))
#define INLINE inline __attribute__((always_inline))
#define VARIANT "-inline"

/* libc's, which is asked for its place once a thread: a connect that goes on sets it in a loop. */
static INLINE int *own_errno(void)
{
    static __thread int *place;
    if (!place)
        place = __errno_location();
    return place;
}

#undef errno
#define errno (*own_errno())

static INLINE long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result >= 0)
        return result;
    errno = (int)-result;
    return -1;
}

/* What is missing of the six arguments is 0. */
#define syscall(...) CALL(__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define CALL(number, a, b, c, d, e, f, ...) \
    call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#define accept4(socket, address, length, flags) syscall(SYS_accept4, socket, address, length, flags)
#define close(fd) syscall(SYS_close, fd)
#define connect(socket, address, length) syscall(SYS_connect, socket, address, length)
#define epoll_ctl(epoll, what, fd, event) syscall(SYS_epoll_ctl, epoll, what, fd, event)
#define epoll_wait(epoll, events, room, timeout) syscall(SYS_epoll_wait, epoll, events, room, timeout)
#define pread(fd, to, length, offset) syscall(SYS_pread64, fd, to, length, offset)
/* The second half of the offset is for systems of 32 bits. */
#define preadv2(fd, to, count, offset, flags) syscall(SYS_preadv2, fd, to, count, offset, 0, flags)
#define recv(socket, to, length, flags) syscall(SYS_recvfrom, socket, to, length, flags)
#define send(socket, from, length, flags) syscall(SYS_sendto, socket, from, length, flags)
#define setsockopt(socket, level, name, value, length) syscall(SYS_setsockopt, socket, level, name, value, length)
#define socket(family, type, protocol) syscall(SYS_socket, family, type, protocol)
#define write(fd, from, length) syscall(SYS_write, fd, from, length)

#endif
