//! The server's socket: bound as the flags say, and what the kernel dropped on it.

use crate::cli::{ServerArgs, StreamArgs};
use crate::report::log_line;
use crate::{Attempt, Error, Result};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// A blocking socket on `args.bind`. A receive buffer smaller than asked for, and an address that others can reach,
/// are said on standard error.
pub fn bind(args: &ServerArgs) -> Result<UdpSocket> {
    let at = args.bind;
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None).attempt("create a UDP socket")?;
    if let Some(bytes) = args.recv_buffer {
        let bytes = bytes as usize;
        socket.set_recv_buffer_size(bytes).attempt(format_args!("set a receive buffer of {bytes} bytes"))?;
        let got = socket.recv_buffer_size().attempt("read the size of the receive buffer")?;
        if got < bytes {
            log_line(format_args!("warning: receive buffer is {got} bytes, not {bytes}: raise net.core.rmem_max"));
        }
    }
    socket.bind(&at.into()).map_err(|error| cannot_bind("UDP", at, &error))?;
    if !at.ip().is_loopback() {
        log_line(format_args!(
            "warning: {at} is not loopback: whoever reaches it can have datagrams reflected to a forged source"
        ));
    }
    Ok(socket.into())
}

/// A blocking listener on `args.bind`. What it accepts sends without delay (TCP_NODELAY is inherited from it), since an
/// answer that waits for more to come would be all that the client waits for. An address that others can reach is said
/// on standard error.
pub fn listen(args: &StreamArgs) -> Result<TcpListener> {
    let at = args.bind;
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).attempt("create a TCP socket")?;
    // Elsewhere it would let two servers share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true).attempt("allow the address of connections that have just ended")?;
    socket.set_tcp_nodelay(true).attempt("switch off delay")?;
    let listening = socket.bind(&at.into()).and_then(|()| socket.listen(BACKLOG));
    listening.map_err(|error| cannot_bind("TCP", at, &error))?;
    if !at.ip().is_loopback() {
        log_line(format_args!(
            "warning: {at} is not loopback: whoever reaches it can use this machine's memory and descriptors"
        ));
    }
    Ok(socket.into())
}

/// Connections that the kernel keeps until they are accepted; the limit is net.core.somaxconn (listen(2)).
const BACKLOG: i32 = 4096;

fn cannot_bind(protocol: &str, at: SocketAddr, error: &std::io::Error) -> Error {
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "another port, or 0 for any free one",
        ErrorKind::PermissionDenied => "a port of 1024 or more",
        _ => "an address of this machine, such as 127.0.0.1",
    };
    Error::new(format!("cannot bind {protocol} {at}: {error}; try {advice}"))
}

/// Several sockets on one address (SO_REUSEPORT, Linux 3.9, socket(7)): the kernel gives all datagrams of one sender to
/// the same of them.
#[cfg(all(target_os = "linux", feature = "reuseport"))]
pub fn bind_group(args: &ServerArgs, count: usize) -> Result<Vec<UdpSocket>> {
    // First without the option, which would let two servers share the address.
    let local = bind(args)?.local_addr().attempt("read the bound address")?;
    let socket = || {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        args.recv_buffer.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes as usize))?;
        socket.bind(&local.into())?;
        Ok(socket.into())
    };
    let sockets = (0..count).map(|_| socket()).collect::<std::io::Result<_>>();
    sockets.attempt(format_args!("bind {count} sockets to {local}"))
}

/// Datagrams dropped since `socket` was opened, because its receive buffer was full: SO_MEMINFO (Linux 4.12),
/// the figure in the last column of /proc/net/udp. `None` on other systems.
#[cfg(target_os = "linux")]
pub fn kernel_drops<'s>(socket: impl Into<SockRef<'s>>) -> Option<u32> {
    use std::os::fd::AsRawFd;
    let mut info = [0u32; libc::SK_MEMINFO_DROPS as usize + 1];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` and `len` are valid for writes, and `len` is the size of `info` in bytes.
    let status = unsafe {
        libc::getsockopt(
            socket.into().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &mut len,
        )
    };
    (status == 0 && len as usize == size_of_val(&info)).then_some(info[libc::SK_MEMINFO_DROPS as usize])
}

/// See the Linux form.
#[cfg(not(target_os = "linux"))]
pub fn kernel_drops<'s>(_: impl Into<SockRef<'s>>) -> Option<u32> {
    None
}
