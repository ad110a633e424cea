//! The small common module of the echo servers. It knows no approach: no readiness, no completion, no runtime.
//!
//! What an example takes from here, in the order in which it needs it:
//!
//! | module | what it gives |
//! | --- | --- |
//! | [`cli`] | the flags that every server takes |
//! | [`net`] | a bound socket, and how many datagrams the kernel dropped on it |
//! | [`stop`] | SIGINT and SIGTERM, in the form that each kind of loop can wait for |
//! | [`echo`] | what stands between the receives and the sends: the two below together |
//! | [`ledger`] | what the result of a call means, what is counted, when to end |
//! | [`queue`] | a bounded queue of datagrams, allocated once |
//! | [`policy`] | which datagrams get no answer, and which errors concern one peer only |
//! | [`report`] | counters, the listening line and the summary line |
//! | [`stream`] | for TCP: the same, with the bytes of each connection in place of the datagrams |
//! | `control` | for recvmsg and sendmsg: control data, such as the address that a datagram was sent to |
//! | `batch` | for recvmmsg and sendmmsg: datagrams with their headers, allocated once |
//! | `ring` | for io_uring: a ring set up or a sentence why not, and buffers that the kernel picks from |
//! | `multisocket` | for the probes of that name: a future that counts its polls |
//! | [`catalog`] | the one table of all binaries |
//!
//! The system calls are never here: an example makes every one of them itself, in sight of its reader.

#[cfg(all(target_os = "linux", feature = "mmsg"))]
pub mod batch;
pub mod catalog;
pub mod cli;
#[cfg(target_os = "linux")]
pub mod control;
pub mod echo;
pub mod ledger;
#[cfg(feature = "tokio")]
pub mod multisocket;
pub mod net;
pub mod policy;
pub mod queue;
pub mod report;
#[cfg(all(target_os = "linux", feature = "uring"))]
pub mod ring;
pub mod stop;
pub mod stream;

pub use echo::{Echo, Progress};

use std::fmt;

/// A failure as its user reads it: one sentence. A binary whose `main` returns one exits with status 1.
pub struct Error(String);

/// What `main` and every fallible step of an example return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `sentence` says what was attempted, on what, what the system said and what to try.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `fn main() -> Result` prints the Debug form of an error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Turns what the system said into a sentence.
pub trait Attempt<T> {
    /// `what` completes "cannot …", as in `attempt("create an epoll instance")`.
    fn attempt(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error(format!("cannot {what}: {error}")))
    }
}

/// For a server that gets no io_uring: what `error` asks for.
#[cfg(target_os = "linux")]
pub fn no_ring(error: std::io::Error) -> Error {
    let advice = match error.raw_os_error() {
        Some(libc::ENOSYS) => "it needs Linux 6.1 or later, built with CONFIG_IO_URING",
        Some(libc::EPERM) => "try sysctl kernel.io_uring_disabled=0, or a container that allows io_uring_setup",
        Some(libc::ENOMEM) => "try a higher ulimit -l",
        Some(libc::EINVAL) => "it needs Linux 6.1 or later, for DEFER_TASKRUN",
        _ => "another server of this collection needs no ring",
    };
    Error(format!("io_uring cannot be set up: {error}; {advice}"))
}

/// The whole of an example on a system that lacks its interface.
pub fn unsupported(bin: &str, needs: &str) -> Result<()> {
    let portable = if bin.starts_with("echo-tcp-") { "echo-tcp-mio" } else { "echo-mio-edge" };
    Err(Error(format!("{bin} needs {needs}, which {} does not have; try {portable}", std::env::consts::OS)))
}
