//! The three calls of bpf(2) that a program needs. No crate for them: those there are load what a compiler made. The structures
//! are the beginnings of the kernel's own, which never change (linux/bpf.h).

use crate::assembler::Instruction;
use echo_lab::{Error, Result};
use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that the program in the kernel and this process see both: a map of one value, in shared memory.
pub struct Counters {
    map: OwnedFd,
    shared: NonNull<[AtomicU64; 4]>,
}

impl Counters {
    pub fn new() -> Result<Self> {
        #[repr(C)]
        struct Attributes {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
        }
        const ARRAY: u32 = 2;
        const MMAPABLE: u32 = 1 << 10;
        let size = size_of::<[AtomicU64; 4]>();
        let attributes =
            Attributes { map_type: ARRAY, key_size: 4, value_size: size as u32, max_entries: 1, flags: MMAPABLE };
        let map = bpf(0, &attributes, "create a BPF map")?;
        // SAFETY: a new mapping of the map, whose values fill a page.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(null_mut(), size, access, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        match NonNull::new(memory.cast()) {
            Some(shared) if memory != libc::MAP_FAILED => Ok(Self { map, shared }),
            _ => Err(sentence("map the counters", &io::Error::last_os_error())),
        }
    }

    pub fn map(&self) -> RawFd {
        self.map.as_raw_fd()
    }

    pub fn read(&self) -> [u64; 4] {
        // SAFETY: the mapping is never undone, and only ever accessed atomically.
        let counters = unsafe { self.shared.as_ref() };
        counters.each_ref().map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Puts `program` into the driver of the interface `index`. It is there as long as what is returned: when the process ends, in
/// whatever way, the kernel takes it out.
pub fn attach(program: &[Instruction], index: u32, interface: &str) -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        program_type: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Link {
        program: u32,
        interface: u32,
        attach_type: u32,
        flags: u32,
    }
    const PROGRAM_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    const IN_THE_DRIVER: u32 = 1 << 2;
    let mut load = Load {
        program_type: PROGRAM_XDP,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"MIT OR Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let program = match bpf(5, &load, "load the program") {
        Ok(program) => program,
        Err(error) => {
            // Once more, with the verifier's log, whose last line but for statistics is the reason. More than 16 MiB are
            // refused by some kernels.
            let mut log = vec![0u8; (1 << 24) - 1];
            (load.log_level, load.log_size, load.log) = (1, log.len() as u32, log.as_mut_ptr() as u64);
            let again = bpf(5, &load, "load the program");
            let log = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default());
            let reason = log.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed "));
            return Err(match reason {
                Some(reason) if again.is_err() => Error::new(format!("{error}; the verifier says: {reason}")),
                _ => error,
            });
        }
    };
    let link =
        Link { program: program.as_raw_fd() as u32, interface: index, attach_type: ATTACH_XDP, flags: IN_THE_DRIVER };
    bpf(28, &link, &format!("attach the program to {interface}"))
}

/// Every command that is used here returns a descriptor.
fn bpf<T>(command: i32, attributes: &T, what: &str) -> Result<OwnedFd> {
    // SAFETY: `attributes` is valid for reads of its size, and so is what it points to, during the call.
    let status: c_long = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const T, size_of::<T>()) };
    if status < 0 {
        return Err(sentence(what, &io::Error::last_os_error()));
    }
    // SAFETY: a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(status as RawFd) })
}

fn sentence(what: &str, error: &io::Error) -> Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => "try as root, or with CAP_BPF and CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP) => "its driver has no XDP; try a veth pair, as scripts/xdp makes it",
        Some(libc::EBUSY | libc::EEXIST) => "it has a program already; try ip link set dev NAME xdp off",
        Some(libc::ERANGE) => "try a smaller MTU: a frame has to fit into one page",
        _ => "it needs Linux 5.12",
    };
    Error::new(format!("cannot {what}: {error}; {advice}"))
}
