//! UDP echo with segmentation offload: one receive takes up to 64 datagrams of one sender and one size (128 since Linux
//! 6.9), which the kernel never took apart (UDP_GRO), and one send gives them back as one piece, which it need not cut up
//! (UDP_SEGMENT). The network stack is gone through once for all of them: that, not the entry into the kernel, is what
//! datagrams cost. A piece that the kernel refuses to cut, for its path or its interface, is sent one by one.
//!
//! Run:             cargo run --bin echo-gso --features gso
//! Second terminal: nc -u 127.0.0.1 2000, whose datagrams come one by one; scripts/compare --gso echo-gso sends pieces
//! In the trace:    recvmsg and sendmsg, one of each for a piece. They carry the size of its datagrams as a control message;
//!                  a single datagram has none. With --bind 0.0.0.0:2000 another one carries the address that was asked.
//! Left out:        waiting for two things at once, as in echo-blocking. One piece is held; `--queue` has no use here.
//! Oldest system:   Linux 5.0, for UDP_GRO; see udp(7).

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for UDP_SEGMENT and UDP_GRO")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use echo_lab::control::{self, Control};
    use echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent};
    use echo_lab::policy::NOBODY;
    use echo_lab::{Attempt, Result, cli, net, report, stop};
    use nix::sys::socket::{MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
    use socket2::{MsgHdr, SockRef};
    use std::io::{self, IoSlice, IoSliceMut};
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::ops::Range;
    use std::os::fd::AsRawFd;
    use std::sync::Once;

    /// A piece is an IP datagram while it is in the kernel: never longer than this.
    const LARGEST: usize = 65535;

    /// Datagrams that wait to be sent: a part of the buffer, cut every `size` bytes; the last may be shorter.
    struct Piece {
        bytes: Range<usize>,
        size: usize,
        peer: SocketAddr,
        /// Which address was asked, and is to answer; `None`: the only one.
        asked: Option<IpAddr>,
        count: u64,
        /// The kernel does not cut it: its datagrams are sent one by one.
        refused: bool,
    }

    impl Piece {
        /// What one send takes: all of its datagrams, or the first.
        fn front(&self) -> (u64, Range<usize>) {
            match self.refused {
                false => (self.count, self.bytes.clone()),
                true => (1, self.bytes.start..self.bytes.end.min(self.bytes.start + self.size)),
            }
        }
    }

    pub fn main() -> Result<()> {
        let args = cli::parse(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        let local = socket.local_addr().attempt("read the bound address")?;
        // A send blocks while the socket's send buffer is full. It must not outlast the time to stop.
        socket.set_write_timeout(Some(DRAIN_DEADLINE)).attempt("limit the time of a send")?;
        setsockopt(&socket, sockopt::UdpGroSegment, &true)
            .attempt("set UDP_GRO, which needs Linux 5.0; try echo-mmsg")?;
        control::ask_for_destination(&socket, local)?;
        stop::by_time_limit(&socket)?;
        let mut ledger = Ledger::new(&args, local);
        report::listening(local)?;
        serve(&socket, &mut ledger)?;
        ledger.finish(&socket)
    }

    fn serve(socket: &UdpSocket, ledger: &mut Ledger) -> Result<()> {
        let mut buffer = vec![0; LARGEST];
        let mut piece = Piece { bytes: 0..0, size: 1, peer: NOBODY, asked: None, count: 0, refused: false };
        while !ledger.is_done(piece.count == 0) {
            if piece.count == 0 {
                match receive(socket, &mut buffer) {
                    Ok(received) => piece = judge(ledger, received)?,
                    Err(error) => drop(ledger.received(Err(error))?),
                }
            }
            while piece.count > 0 {
                let (count, bytes) = piece.front();
                match send(socket, &piece, count, &buffer[bytes]) {
                    Err(error) if count > 1 && cannot_cut(&error, piece.peer) => piece.refused = true,
                    result => sent(ledger, &mut piece, count, result)?,
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
        Ok(())
    }

    /// One piece, of which nothing has been judged.
    fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Piece> {
        let (mut vectors, mut control) = ([IoSliceMut::new(buffer)], Control::default());
        let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
        let message = recvmsg::<SockaddrStorage>(fd, &mut vectors, Some(control.room()), flags)?;
        let (len, address) = (message.bytes, message.address.as_ref());
        let v4 = address.and_then(|address| address.as_sockaddr_in()).map(|v4| SocketAddr::V4((*v4).into()));
        let v6 = address.and_then(|address| address.as_sockaddr_in6()).map(|v6| SocketAddr::V6((*v6).into()));
        let peer = v4.or(v6).ok_or(io::ErrorKind::InvalidData)?;
        // Without that message the piece is one datagram, which may be empty.
        let size = control.segment().unwrap_or(len).max(1);
        Ok(Piece { bytes: 0..len, size, peer, asked: control.destination(), count: 0, refused: false })
    }

    /// Keeps what is to be sent back. All of a piece has one sender, and only the last datagram may be shorter: what is refused
    /// comes before what is kept.
    fn judge(ledger: &mut Ledger, mut piece: Piece) -> Result<Piece> {
        let (len, size) = (piece.bytes.end, piece.size);
        for start in (0..len.max(1)).step_by(size) {
            let end = len.min(start + size);
            let received = ledger.received(Ok((end - start, piece.peer)))?;
            match received {
                Received::Datagram(..) if ledger.to_come() > piece.count => {
                    piece.bytes = if piece.count == 0 { start..end } else { piece.bytes.start..end };
                    piece.count += 1;
                }
                Received::Datagram(..) => ledger.unsent(1),
                _ => {}
            }
        }
        Ok(piece)
    }

    /// Sends `count` datagrams of the piece. Only where there are several has the kernel something to cut.
    fn send(socket: &UdpSocket, piece: &Piece, count: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut control = Control::default();
        if count > 1 {
            // It fits: the piece is an IP datagram.
            control.push_segment(piece.size as u16);
        }
        if let Some(ip) = piece.asked {
            control.push_source(ip);
        }
        let (peer, vectors) = (piece.peer.into(), [IoSlice::new(bytes)]);
        let message = MsgHdr::new().with_addr(&peer).with_buffers(&vectors).with_control(control.bytes());
        SockRef::from(socket).sendmsg(&message, 0)
    }

    /// The result of a send is that of all datagrams in it.
    fn sent(ledger: &mut Ledger, piece: &mut Piece, count: u64, result: io::Result<usize>) -> Result<()> {
        let good = result.is_ok();
        if ledger.sent(result)? == Sent::Over {
            let counter = if good { &mut ledger.report.echoed } else { &mut ledger.report.send_errors };
            *counter += count - 1;
            piece.bytes.start = piece.front().1.end;
            piece.count -= count;
        }
        Ok(())
    }

    /// Whether a piece was refused because it is one. That concerns the way to its peer: the path takes no datagrams of this size
    /// (EMSGSIZE, on older kernels EINVAL), the interface has no checksum offload, or IPsec is on the way (EIO). The next piece
    /// may go another way: offload is tried again for each, and a refusal is said once.
    fn cannot_cut(error: &io::Error, peer: SocketAddr) -> bool {
        static SAID: Once = Once::new();
        let refused = [libc::EMSGSIZE, libc::EINVAL, libc::EIO].map(Some).contains(&error.raw_os_error());
        if refused {
            let warn = || {
                report::log_line(format_args!("warning: no segmentation offload to {peer} ({error}): sent one by one"))
            };
            SAID.call_once(warn);
        }
        refused
    }
}
