//! UDP echo with segmentation offload as a QUIC stack has it: the offloads of echo-gso through the crate quinn-udp, which
//! hides the socket options and control messages (`RecvMeta::stride`, `Transmit::segment_size`), and falls back by itself.
//!
//! Run:             cargo run --bin echo-quinn-udp --features quinn-udp
//! Second terminal: nc -u 127.0.0.1 2000, whose datagrams come one by one; scripts/compare --gso echo-quinn-udp sends pieces
//! In the trace:    recvmmsg and sendmsg, one of each for a piece of many datagrams. Each receive also says what QUIC
//!                  wants to know: the address it was sent to, and the congestion mark. Datagrams one by one pay for it.
//! Left out:        waiting for two things at once, as in echo-blocking; several pieces in one recvmmsg, for which the crate
//!                  wants a socket that does not block, and somebody else to wait. `--queue` has no use here.
//! Oldest system:   Linux 5.0, for UDP_GRO; see udp(7). The crate itself works on others, too.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for UDP_SEGMENT and UDP_GRO")
}

#[cfg(target_os = "linux")]
use {
    echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent},
    echo_lab::{Attempt, Result, cli, net, report, stop},
    quinn_udp::{RecvMeta, Transmit, UdpSocketState},
    std::io::IoSliceMut,
    std::net::UdpSocket,
    std::os::fd::AsRawFd,
    std::slice,
};

/// A piece is an IP datagram while it is in the kernel: never longer than this.
#[cfg(target_os = "linux")]
const LARGEST: usize = 65535;

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
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
    let mut buffer = vec![0; LARGEST];
    let mut meta = RecvMeta::default();
    // What waits to be sent: a part of the buffer, cut every `stride` bytes; the last datagram may be shorter.
    let (mut bytes, mut waiting) = (0..0, 0);
    report::listening(local)?;

    while !ledger.is_done(waiting == 0) {
        if waiting == 0 {
            match state.recv((&socket).into(), &mut [IoSliceMut::new(&mut buffer)], slice::from_mut(&mut meta)) {
                Ok(_) => {
                    // It is that of the whole piece, which may be empty.
                    meta.stride = meta.stride.max(1);
                    for start in (0..meta.len.max(1)).step_by(meta.stride) {
                        let end = meta.len.min(start + meta.stride);
                        let received = ledger.received(Ok((end - start, meta.addr)))?;
                        // One sender, and only the last may be shorter: what is refused comes before what is kept.
                        match received {
                            Received::Datagram(..) if ledger.to_come() > waiting => {
                                bytes = if waiting == 0 { start..end } else { bytes.start..end };
                                waiting += 1;
                            }
                            Received::Datagram(..) => ledger.unsent(1),
                            _ => {}
                        }
                    }
                }
                Err(error) => drop(ledger.received(Err(error))?),
            }
        }
        while waiting > 0 {
            let most = state.max_gso_segments();
            let count = waiting.min(most as u64);
            let end = bytes.end.min(bytes.start + count as usize * meta.stride);
            let transmit = Transmit {
                destination: meta.addr,
                ecn: None,
                contents: &buffer[bytes.start..end],
                segment_size: (count > 1).then_some(meta.stride),
                src_ip: None,
            };
            let result = state.try_send((&socket).into(), &transmit);
            if let (Err(error), true) = (&result, state.max_gso_segments() < most) {
                // The kernel (EINVAL) or the interface (EIO: no checksum offload) cannot cut, and the crate has noticed.
                report::log_line(format_args!(
                    "warning: no segmentation offload here ({error}): datagrams are sent one by one"
                ));
                continue;
            }
            let sent = result.is_ok();
            if ledger.sent(result.map(|()| transmit.contents.len()))? == Sent::Over {
                // The result is that of all of them.
                let counter = if sent { &mut ledger.report.echoed } else { &mut ledger.report.send_errors };
                *counter += count - 1;
                waiting -= count;
                bytes.start = end;
            }
            if stop::requested() {
                break;
            }
        }
        if stop::requested() {
            ledger.stop();
        }
    }
    ledger.unsent(waiting as usize);
    ledger.finish(&socket)
}

/// Datagrams longer than the interface takes are sent in fragments again, as on any other socket: ip(7), ipv6(7). One of the
/// options is that of the other family, and fails.
#[cfg(target_os = "linux")]
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
