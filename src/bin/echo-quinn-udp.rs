//! UDP echo with segmentation offload as a QUIC stack has it: the offloads of echo-gso through the crate quinn-udp, which
//! hides the socket options and control messages (`RecvMeta::stride`, `Transmit::segment_size`).
//!
//! Run:             cargo run --bin echo-quinn-udp --features quinn-udp
//! Second terminal: nc -u 127.0.0.1 2000, whose datagrams come one by one; scripts/compare --gso echo-quinn-udp sends pieces
//! In the trace:    recvmmsg and sendmsg, one of each for a piece of many datagrams. Each receive also says what QUIC
//!                  wants to know: the address it was sent to, and the congestion mark. Datagrams one by one pay for it.
//! Left out:        waiting for two things at once, as in echo-blocking; several pieces in one recvmmsg, for which the crate
//!                  wants a socket that does not block, and somebody else to wait. `--queue` has no use here. What the crate
//!                  makes of a refused piece: after EIO or EINVAL it says that no peer gets pieces any more
//!                  (`max_gso_segments` is 1), and QUIC never sends more than the path takes. Here that error concerns one
//!                  path, as EMSGSIZE does: the piece is sent one by one, the next one is tried again. After EINVAL the crate
//!                  first sends again by itself, without the congestion mark, which it leaves out from then on. Answers to
//!                  a datagram sent to a subnet's broadcast address: the crate names that address as the one that was asked,
//!                  and nothing can be sent from it.
//! Oldest system:   Linux 5.0, for UDP_GRO; see udp(7). The crate itself works on others, too.

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
    use echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent};
    use echo_lab::{Attempt, Result, cli, net, report, stop};
    use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
    use std::io::{self, IoSliceMut};
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::ops::Range;
    use std::os::fd::AsRawFd;
    use std::slice;
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
        /// The most that one send takes.
        most: u64,
    }

    impl Piece {
        /// What one send takes.
        fn front(&self) -> (u64, Range<usize>) {
            let count = self.count.min(self.most);
            (count, self.bytes.start..self.bytes.end.min(self.bytes.start + count as usize * self.size))
        }
    }

    pub fn main() -> Result<()> {
        let args = cli::parse(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        let local = socket.local_addr().attempt("read the bound address")?;
        let state = UdpSocketState::new((&socket).into()).attempt("set up the socket for quinn-udp")?;
        // The crate prepares the socket for QUIC, which has a runtime wait for it and looks for the path's limit by itself.
        socket.set_nonblocking(false).attempt("make the socket blocking")?;
        allow_fragments(&socket);
        // A send blocks while the socket's send buffer is full. It must not outlast the time to stop.
        socket.set_write_timeout(Some(DRAIN_DEADLINE)).attempt("limit the time of a send")?;
        stop::by_time_limit(&socket)?;
        let mut ledger = Ledger::new(&args, local);
        report::listening(local)?;
        serve(&socket, &state, &mut ledger, local)?;
        ledger.finish(&socket)
    }

    fn serve(socket: &UdpSocket, state: &UdpSocketState, ledger: &mut Ledger, local: SocketAddr) -> Result<()> {
        let (mut buffer, mut meta) = (vec![0; LARGEST], RecvMeta::default());
        let (most, wildcard) = (state.max_gso_segments() as u64, local.ip().is_unspecified());
        let mut piece = Piece { bytes: 0..0, size: 1, peer: local, asked: None, count: 0, most };
        while !ledger.is_done(piece.count == 0) {
            if piece.count == 0 {
                match state.recv(socket.into(), &mut [IoSliceMut::new(&mut buffer)], slice::from_mut(&mut meta)) {
                    Ok(_) => {
                        let asked = meta.dst_ip.filter(|ip| wildcard && !ip.to_canonical().is_multicast());
                        // The stride is that of the whole piece, which may be empty.
                        let (bytes, size, peer) = (0..meta.len, meta.stride.max(1), meta.addr);
                        piece = judge(ledger, Piece { bytes, size, peer, asked, count: 0, most })?;
                    }
                    Err(error) => drop(ledger.received(Err(error))?),
                }
            }
            while piece.count > 0 {
                let (count, bytes) = piece.front();
                let transmit = Transmit {
                    destination: piece.peer,
                    ecn: None,
                    contents: &buffer[bytes],
                    segment_size: (count > 1).then_some(piece.size),
                    src_ip: piece.asked,
                };
                match state.try_send(socket.into(), &transmit) {
                    Err(error) if count > 1 && cannot_cut(&error, piece.peer) => piece.most = 1,
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

    /// The result of a send is that of all datagrams in it.
    fn sent(ledger: &mut Ledger, piece: &mut Piece, count: u64, result: io::Result<()>) -> Result<()> {
        let good = result.is_ok();
        if ledger.sent(result.map(|()| 0))? == Sent::Over {
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

    /// Datagrams longer than the interface takes are sent in fragments again, as on any other socket: ip(7), ipv6(7). One of the
    /// options is that of the other family, and fails.
    fn allow_fragments(socket: &UdpSocket) {
        for (level, option, value) in [
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_WANT),
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0),
        ] {
            let (at, len) = ((&raw const value).cast(), size_of_val(&value) as libc::socklen_t);
            // SAFETY: the option is read from `value`, whose size is given.
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, len) };
        }
    }
}
