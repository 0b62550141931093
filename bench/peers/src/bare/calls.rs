//! System calls without libc around them, which costs 1 to 3 % of a round trip. What fails gives a negative number.

/// Makes a system call.
///
/// # Safety
///
/// As the call's.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn call(number: i64, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let mut result = number as isize;
    // SAFETY: the caller's promise; the instruction changes two registers, and the memory that the call is about.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a system call.
///
/// # Safety
///
/// As the call's.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn call(number: i64, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) as isize };
    if result >= 0 {
        result
    } else {
        -(std::io::Error::last_os_error().raw_os_error().unwrap() as isize)
    }
}
