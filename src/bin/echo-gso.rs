//! UDP echo with segmentation offload: one receive takes up to 64 datagrams (128 since Linux 6.9) of one sender and one size,
//! which the kernel never took apart (UDP_GRO), and one send gives them back as one piece, which it need not cut up
//! (UDP_SEGMENT). The network stack is gone through once for all of them: that, not the entry into the kernel, is what
//! datagrams cost.
//!
//! Run:             cargo run --bin echo-gso --features gso
//! Second terminal: nc -u 127.0.0.1 2000, whose datagrams come one by one; scripts/compare --gso echo-gso sends pieces
//! In the trace:    recvmsg and sendto, one of each for a piece of many datagrams. recvmsg, because the size of the
//!                  datagrams in it comes as a control message; setsockopt only when that size changes.
//! Left out:        waiting for two things at once, as in echo-blocking. One piece is held; `--queue` has no use here.
//! Oldest system:   Linux 5.0, for UDP_GRO; see udp(7).

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for UDP_SEGMENT and UDP_GRO")
}

#[cfg(target_os = "linux")]
use {
    echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent},
    echo_lab::{Attempt, Result, cli, net, report, stop},
    nix::cmsg_space,
    nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
    std::io::{self, IoSliceMut},
    std::net::{SocketAddr, UdpSocket},
    std::ops::Range,
    std::os::fd::AsRawFd,
};

/// A piece is an IP datagram while it is in the kernel: never longer than this.
#[cfg(target_os = "linux")]
const LARGEST: usize = 65535;

/// Datagrams that wait to be sent: a part of the buffer, cut every `size` bytes; the last may be shorter.
#[cfg(target_os = "linux")]
struct Piece {
    bytes: Range<usize>,
    size: usize,
    peer: SocketAddr,
    count: u64,
}

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let local = socket.local_addr().attempt("read the bound address")?;
    // A send blocks while the socket's send buffer is full. It must not outlast the time to stop.
    socket.set_write_timeout(Some(DRAIN_DEADLINE)).attempt("limit the time of a send")?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true).attempt("set UDP_GRO, which needs Linux 5.0; try echo-mmsg")?;
    stop::by_time_limit(&socket)?;
    let mut ledger = Ledger::new(&args, local);
    let mut buffer = vec![0; LARGEST];
    let mut control = cmsg_space!(i32);
    let mut piece = Piece { bytes: 0..0, size: 0, peer: local, count: 0 };
    let mut cutter = Cutter { segment: 0, works: true };
    report::listening(local)?;

    while !ledger.is_done(piece.count == 0) {
        if piece.count == 0 {
            match receive(&socket, &mut buffer, &mut control) {
                Ok((len, size, peer)) => {
                    (piece.size, piece.peer) = (size, peer);
                    for start in (0..len.max(1)).step_by(size) {
                        let end = len.min(start + size);
                        let received = ledger.received(Ok((end - start, peer)))?;
                        // One sender, and only the last may be shorter: what is refused comes before what is kept.
                        match received {
                            Received::Datagram(..) if ledger.to_come() > piece.count => {
                                piece.bytes = if piece.count == 0 { start..end } else { piece.bytes.start..end };
                                piece.count += 1;
                            }
                            Received::Datagram(..) => ledger.unsent(1),
                            _ => {}
                        }
                    }
                }
                Err(error) => drop(ledger.received(Err(error))?),
            }
        }
        while piece.count > 0 {
            let (count, bytes) = cutter.next(&socket, &piece);
            let result = socket.send_to(&buffer[bytes.clone()], piece.peer);
            if count > 1 && result.as_ref().is_err_and(|error| cutter.refused(error)) {
                continue;
            }
            let sent = result.is_ok();
            if ledger.sent(result)? == Sent::Over {
                // The result is that of all of them.
                let counter = if sent { &mut ledger.report.echoed } else { &mut ledger.report.send_errors };
                *counter += count - 1;
                piece.count -= count;
                piece.bytes.start = bytes.end;
            }
            if stop::requested() {
                break;
            }
        }
        if stop::requested() {
            ledger.stop();
        }
    }
    ledger.unsent(piece.count as usize);
    ledger.finish(&socket)
}

/// One piece: its length, that of each of its datagrams but the last, and their sender.
#[cfg(target_os = "linux")]
fn receive(socket: &UdpSocket, buffer: &mut [u8], control: &mut [u8]) -> io::Result<(usize, usize, SocketAddr)> {
    let mut vectors = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut vectors, Some(control), MsgFlags::empty())?;
    let size = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let address = message.address.as_ref();
    let v4 = address.and_then(|address| address.as_sockaddr_in()).map(|v4| SocketAddr::V4((*v4).into()));
    let v6 = address.and_then(|address| address.as_sockaddr_in6()).map(|v6| SocketAddr::V6((*v6).into()));
    let peer = v4.or(v6).ok_or(io::ErrorKind::InvalidData)?;
    // Without the message the piece is one datagram, which may be empty.
    Ok((message.bytes, size.unwrap_or(message.bytes).max(1), peer))
}

/// The option that makes the kernel cut what is sent.
#[cfg(target_os = "linux")]
struct Cutter {
    /// What UDP_SEGMENT says now; 0 for not at all.
    segment: usize,
    works: bool,
}

#[cfg(target_os = "linux")]
impl Cutter {
    /// What one send can take of the piece: all of its datagrams, or the first.
    fn next(&mut self, socket: &UdpSocket, piece: &Piece) -> (u64, Range<usize>) {
        let first = piece.bytes.start..piece.bytes.end.min(piece.bytes.start + piece.size);
        if piece.count > 1 && self.works && self.set(socket, piece.size) {
            return (piece.count, piece.bytes.clone());
        }
        // It would cut a single datagram as well, if that is longer.
        if first.len() > self.segment && self.segment > 0 {
            self.set(socket, 0);
        }
        (1, first)
    }

    fn set(&mut self, socket: &UdpSocket, segment: usize) -> bool {
        if segment != self.segment {
            match setsockopt(socket, sockopt::UdpGsoSegment, &(segment as i32)) {
                Ok(()) => self.segment = segment,
                Err(error) => return !self.refused(&error.into()),
            }
        }
        true
    }

    /// Whether the kernel (EINVAL) or the interface (EIO: no checksum offload) cannot cut: from now on one by one.
    fn refused(&mut self, error: &io::Error) -> bool {
        let refused = [Some(libc::EIO), Some(libc::EINVAL)].contains(&error.raw_os_error());
        if refused && self.works {
            report::log_line(format_args!(
                "warning: no segmentation offload here ({error}): datagrams are sent one by one"
            ));
            self.works = false;
        }
        refused
    }
}
