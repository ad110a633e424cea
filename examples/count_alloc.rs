//! A library for LD_PRELOAD that counts a program's calls of the allocator and says how many at its end.
//! Linux with glibc, whose `__libc_` names it forwards to.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![expect(clippy::undocumented_unsafe_blocks, reason = "one comment for all, below")]

use std::ffi::{c_int, c_void};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static COUNT: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

// SAFETY of all below: each has the contract of the function whose name it takes, and hands it on unchanged.

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    COUNT.fetch_add(1, Relaxed);
    unsafe { __libc_malloc(size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    COUNT.fetch_add(1, Relaxed);
    unsafe { __libc_calloc(count, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    COUNT.fetch_add(1, Relaxed);
    unsafe { __libc_realloc(old, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    COUNT.fetch_add(1, Relaxed);
    unsafe { __libc_memalign(align, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    COUNT.fetch_add(1, Relaxed);
    let memory = unsafe { __libc_memalign(align, size) };
    if memory.is_null() {
        return libc::ENOMEM;
    }
    unsafe { *out = memory };
    0
}

// The dynamic linker calls what this section lists when the program ends.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = at_end;

extern "C" fn at_end() {
    // Nobody has to read it.
    let _ = writeln!(std::io::stderr(), "allocations: {}", COUNT.load(Relaxed));
}
