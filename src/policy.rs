//! Which datagrams get no answer, and what an I/O error means for the server.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The sender of a datagram that has none, or one of an unknown address family. It gets no answer: its port is 0.
pub const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Why a datagram is not echoed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No reply can be sent to port 0 (EINVAL, udp(7)).
    SourcePortZero,
    /// A reply would go to the server itself, or to another echo server, which would answer it, for ever: CVE-2024-2169.
    OwnPort,
}

/// Whether a server bound to `local` refuses to answer `peer`. Only ports are compared, as inetd does: a source with the
/// server's own port may be the server itself by another of its addresses, or an echo server on another one or elsewhere.
pub fn refusal(peer: SocketAddr, local: SocketAddr) -> Option<Refusal> {
    match peer.port() {
        0 => Some(Refusal::SourcePortZero),
        port if port == local.port() => Some(Refusal::OwnPort),
        _ => None,
    }
}

/// What an I/O error on the server's socket means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to receive, or no room to send: wait until there is.
    WouldBlock,
    /// A signal came first: call again.
    Interrupted,
    /// This datagram, or one sent before, could not be delivered, or this connection is over: the next one may do better.
    OnlyThis,
    /// The socket itself is unusable.
    Fatal,
}

/// The meaning of an error from a send. All but a few speak of this one datagram: of its peer (ECONNREFUSED), the route
/// (ENETUNREACH), a firewall (EPERM) or a full device queue (ENOBUFS); see send(2), ip(7).
pub fn on_send(error: &Error) -> Verdict {
    shared(error).unwrap_or(if is(error, code::UNUSABLE) { Verdict::Fatal } else { Verdict::OnlyThis })
}

/// The meaning of an error from a receive. Those that ICMP or an earlier send left on the socket concern one peer
/// (ip(7); on Windows also without IP_RECVERR); lack of memory passes. Others do not.
pub fn on_recv(error: &Error) -> Verdict {
    use ErrorKind::*;
    shared(error).unwrap_or(match error.kind() {
        ConnectionRefused | ConnectionReset | ConnectionAborted | HostUnreachable | NetworkUnreachable
        | NetworkDown | PermissionDenied | OutOfMemory => Verdict::OnlyThis,
        _ if is(error, code::PASSING) => Verdict::OnlyThis,
        _ => Verdict::Fatal,
    })
}

/// The meaning of an error from an accept, unless it [`is_exhausted`]. Most are those that the new connection already
/// has (accept(2)).
pub fn on_accept(error: &Error) -> Verdict {
    let unusable = error.kind() == ErrorKind::InvalidInput || is(error, code::UNUSABLE);
    shared(error).unwrap_or(if unusable { Verdict::Fatal } else { Verdict::OnlyThis })
}

/// Whether an accept failed because the process or the system has no descriptor or no memory for a connection, which
/// stays in the kernel's queue; or the registration of one, because the user has no watch left (epoll_ctl(2): ENOSPC,
/// from fs.epoll.max_user_watches) or the kernel has no memory.
pub fn is_exhausted(error: &Error) -> bool {
    error.kind() == ErrorKind::OutOfMemory || is(error, code::EXHAUSTED)
}

/// Whether a receive failed because the datagram was longer than the buffer: WSAEMSGSIZE, on Windows only. Elsewhere
/// such a datagram fills the buffer.
pub fn is_too_big(error: &Error) -> bool {
    cfg!(windows) && error.raw_os_error() == Some(10040)
}

fn shared(error: &Error) -> Option<Verdict> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Some(Verdict::WouldBlock),
        ErrorKind::Interrupted => Some(Verdict::Interrupted),
        _ => None,
    }
}

fn is(error: &Error, codes: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(unix)]
mod code {
    use libc::*;
    pub const UNUSABLE: &[i32] = &[EBADF, EFAULT, ENOTSOCK, EOPNOTSUPP];
    pub const PASSING: &[i32] = &[EHOSTDOWN, EMSGSIZE, ENOBUFS, ENOPROTOOPT, EPROTO];
    pub const EXHAUSTED: &[i32] = &[EMFILE, ENFILE, ENOBUFS, ENOSPC];
}

/// WSAEBADF, WSAEFAULT, WSAENOTSOCK, WSAEOPNOTSUPP; WSAENETRESET, WSAENOBUFS; WSAEMFILE, WSAENOBUFS (Windows Sockets
/// error codes).
#[cfg(windows)]
mod code {
    pub const UNUSABLE: &[i32] = &[10009, 10014, 10038, 10045];
    pub const PASSING: &[i32] = &[10052, 10055];
    pub const EXHAUSTED: &[i32] = &[10024, 10055];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_or_must_not_be_answered() {
        for (peer, local, expected) in [
            ("127.0.0.1:0", "127.0.0.1:2000", Some(Refusal::SourcePortZero)),
            ("127.0.0.1:2000", "127.0.0.1:2000", Some(Refusal::OwnPort)),
            ("[::1]:2000", "[::1]:2000", Some(Refusal::OwnPort)),
            ("127.0.0.1:2000", "0.0.0.0:2000", Some(Refusal::OwnPort)),
            ("127.0.0.3:2000", "127.0.0.2:2000", Some(Refusal::OwnPort)),
            ("[2001:db8::1]:2000", "[::]:2000", Some(Refusal::OwnPort)),
            ("127.0.0.1:2001", "127.0.0.1:2000", None),
            ("127.0.0.1:2001", "0.0.0.0:2000", None),
        ] {
            assert_eq!(refusal(peer.parse().unwrap(), local.parse().unwrap()), expected, "{peer} to {local}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn tells_a_lack_of_descriptors_from_a_connection_that_has_gone() {
        for (code, exhausted, verdict) in [
            (libc::EAGAIN, false, Verdict::WouldBlock),
            (libc::EINTR, false, Verdict::Interrupted),
            (libc::ECONNABORTED, false, Verdict::OnlyThis),
            (libc::EPERM, false, Verdict::OnlyThis),
            (libc::EMFILE, true, Verdict::OnlyThis),
            (libc::ENFILE, true, Verdict::OnlyThis),
            (libc::ENOMEM, true, Verdict::OnlyThis),
            (libc::EBADF, false, Verdict::Fatal),
            (libc::EINVAL, false, Verdict::Fatal),
        ] {
            let error = Error::from_raw_os_error(code);
            assert_eq!((is_exhausted(&error), on_accept(&error)), (exhausted, verdict), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn tells_errors_of_one_peer_from_those_of_the_socket() {
        use Verdict::*;
        for (code, send, recv) in [
            (libc::EAGAIN, WouldBlock, WouldBlock),
            (libc::EINTR, Interrupted, Interrupted),
            (libc::ECONNREFUSED, OnlyThis, OnlyThis),
            (libc::EPERM, OnlyThis, OnlyThis),
            (libc::ENOBUFS, OnlyThis, OnlyThis),
            (libc::ENETUNREACH, OnlyThis, OnlyThis),
            (libc::EINVAL, OnlyThis, Fatal),
            (libc::EBADF, Fatal, Fatal),
            (libc::ENOTSOCK, Fatal, Fatal),
        ] {
            let error = Error::from_raw_os_error(code);
            assert_eq!((on_send(&error), on_recv(&error)), (send, recv), "{error}");
        }
    }
}
