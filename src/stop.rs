//! SIGINT and SIGTERM, in the form that each kind of loop can wait for.
//!
//! A signal that is only checked for between two blocking calls is missed when it comes after the check and before the
//! call. Each form here closes that window in its own way; call it before the server says that it listens.

use crate::{Attempt, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether a signal came since [`on_signal`] was called.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// For a loop that something else can wake: the signal handler runs `wake`, each time.
///
/// # Safety
///
/// `wake` may run between any two instructions of the program: it must restrict itself to what signal-safety(7) lists,
/// such as write(2) or send(2) on a non-blocking descriptor.
pub unsafe fn on_signal(wake: impl Fn() + Clone + Send + Sync + 'static) -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        let wake = wake.clone();
        let handler = move || {
            REQUESTED.store(true, Ordering::Relaxed);
            wake();
        };
        // SAFETY: a store to an atomic is safe in a handler, and the caller answers for `wake`.
        unsafe { signal_hook::low_level::register(signal, handler) }.attempt("install a signal handler")?;
    }
    Ok(())
}

/// For a loop that waits in a blocking receive, in the one thread of the program: from the signal on, no receive on `socket`
/// waits. Its handler sets the shortest time limit (SO_RCVTIMEO, socket(7)). A receive that begins later has that limit. One
/// that waits already is interrupted by the signal, and either fails with EINTR or begins again, as the system likes; then it
/// has that limit, too. Look at [`requested`] after each receive.
///
/// A datagram that the handler sends to the server would do as well, unless it has to queue behind the server's own on a
/// slow interface.
pub fn by_time_limit(socket: &UdpSocket) -> Result<()> {
    // Elsewhere a handler is a thread of its own, which interrupts nobody.
    #[cfg(not(unix))]
    socket.set_read_timeout(Some(crate::ledger::DRAIN_DEADLINE)).attempt("limit the time of a receive")?;
    let socket = socket.try_clone().attempt("duplicate the socket for the signal handler")?;
    let socket = std::sync::Arc::new(socket);
    // SAFETY: this is setsockopt(2), which is safe in a signal handler.
    unsafe { on_signal(move || drop(socket.set_read_timeout(Some(Duration::from_micros(1))))) }
}

/// What [`by_socket`] makes: a local socket, which no interface can hold up, where there are any.
#[cfg(unix)]
pub type Wakeable = std::os::unix::net::UnixDatagram;
/// See the Unix form.
#[cfg(not(unix))]
pub type Wakeable = UdpSocket;

/// For a loop that can wait for a second socket: one that is readable when a signal came.
#[cfg(unix)]
pub fn by_socket() -> Result<Wakeable> {
    let (socket, waker) = Wakeable::pair().attempt("create the sockets for the stop signal")?;
    waker.set_nonblocking(true).attempt("make the socket for the stop signal non-blocking")?;
    let waker = std::sync::Arc::new(waker);
    // SAFETY: send(2) on a non-blocking socket is safe in a signal handler.
    unsafe { on_signal(move || drop(waker.send(&[0]))) }?;
    Ok(socket)
}

/// See the Unix form.
#[cfg(not(unix))]
pub fn by_socket() -> Result<Wakeable> {
    let what = "create the sockets for the stop signal";
    let socket = || UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).attempt(what);
    let (socket, waker) = (socket()?, socket()?);
    let address = |socket: &UdpSocket| socket.local_addr().attempt(what);
    waker.connect(address(&socket)?).attempt(what)?;
    socket.connect(address(&waker)?).attempt(what)?;
    for socket in [&socket, &waker] {
        socket.set_nonblocking(true).attempt(what)?;
    }
    // From now on nobody else can wake the server; what somebody sent before is dropped.
    while socket.recv(&mut [0]).is_ok() {}
    let waker = std::sync::Arc::new(waker);
    // SAFETY: send(2) on a non-blocking socket is safe in a signal handler.
    unsafe { on_signal(move || drop(waker.send(&[]))) }?;
    Ok(socket)
}

/// For a loop that waits in a blocking accept on `listener`: the signal ends it. Look at [`requested`] after each accept,
/// before its result.
///
/// On Linux shutdown(2) does that to a listener: the accept that waits fails with EINVAL, as does each one after it.
/// Nobody can be connected to, so no port has to be free.
#[cfg(target_os = "linux")]
pub fn in_accept(listener: &std::net::TcpListener) -> Result<()> {
    let listener = listener.try_clone().attempt("clone the listener for the stop signal")?;
    let socket = std::sync::Arc::new(socket2::Socket::from(listener));
    // SAFETY: shutdown(2) is safe in a signal handler. A second one does nothing.
    unsafe { on_signal(move || drop(socket.shutdown(std::net::Shutdown::Read))) }
}

/// See the Linux form. Others refuse to shut a listener down (ENOTCONN): the signal connects to the server, for which a local
/// port has to be free. If the accept queue is full the accept does not block.
#[cfg(not(target_os = "linux"))]
pub fn in_accept(listener: &std::net::TcpListener) -> Result<()> {
    use socket2::{Domain, Socket, Type};
    let what = "create the socket that wakes the server";
    let server = listener.local_addr().attempt(what)?;
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None).attempt(what)?;
    socket.set_nonblocking(true).attempt(what)?;
    let (socket, target) = (std::sync::Arc::new(socket), reachable(server).into());
    // SAFETY: connect(2) on a non-blocking socket is safe in a signal handler. A second one fails, and does nothing.
    unsafe { on_signal(move || drop(socket.connect(&target))) }
}

/// Where a server bound to `address` can be reached from this machine.
#[cfg(not(target_os = "linux"))]
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(all(
    unix,
    any(
        feature = "select",
        feature = "poll",
        feature = "epoll",
        feature = "uring",
        feature = "compio",
        feature = "xdp"
    )
))]
fn signals() -> nix::sys::signal::SigSet {
    use nix::sys::signal::Signal;
    [Signal::SIGINT, Signal::SIGTERM].into_iter().collect()
}

/// For pselect(2) and ppoll(2): the signals stay blocked, except inside a wait that is given [`mask`](Self::mask).
#[cfg(all(unix, any(feature = "select", feature = "poll", feature = "xdp")))]
pub struct InsideWait {
    mask: nix::sys::signal::SigSet,
}

#[cfg(all(unix, any(feature = "select", feature = "poll", feature = "xdp")))]
impl InsideWait {
    /// Blocks the signals in the calling thread.
    pub fn new() -> Result<Self> {
        use nix::sys::signal::SigmaskHow;
        // SAFETY: the action does nothing.
        unsafe { on_signal(|| ()) }?;
        let mut mask = signals().thread_swap_mask(SigmaskHow::SIG_BLOCK).attempt("block signals")?;
        signals().iter().for_each(|signal| mask.remove(signal));
        Ok(Self { mask })
    }

    /// The signal mask for the wait, during which a signal ends it with EINTR and sets [`requested`].
    pub fn mask(&self) -> nix::sys::signal::SigSet {
        self.mask
    }

    /// Lets a pending signal in. A wait that finds a descriptor ready returns without looking for signals, so a loop
    /// that always finds one ready has to do this now and then.
    pub fn look(&self) -> Result<()> {
        signals().thread_unblock().and_then(|()| signals().thread_block()).attempt("look for pending signals")
    }
}

/// For epoll and io_uring: a descriptor that is readable when a signal came; see signalfd(2).
#[cfg(all(target_os = "linux", any(feature = "epoll", feature = "uring", feature = "compio")))]
pub fn descriptor() -> Result<nix::sys::signalfd::SignalFd> {
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    signals().thread_block().attempt("block signals")?;
    SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).attempt("create a signalfd")
}

/// For tokio: a future that ends when a signal came. The handlers are installed by this call, inside a runtime;
/// on Windows there is only Ctrl-C.
#[cfg(feature = "tokio")]
pub fn future() -> Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        (
            signal(SignalKind::interrupt()).attempt("install a signal handler")?,
            signal(SignalKind::terminate()).attempt("install a signal handler")?,
        )
    };
    #[cfg(windows)]
    let mut terminate = tokio::signal::windows::ctrl_c().attempt("install a Ctrl-C handler")?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = terminate.0.recv() => {}
            _ = terminate.1.recv() => {}
        }
        #[cfg(windows)]
        terminate.recv().await;
    })
}
