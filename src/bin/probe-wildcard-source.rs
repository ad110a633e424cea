//! Which of its addresses does a server answer from that listens on all of them? A send takes a source only if it is told
//! one; else the route to the peer picks it, which on a machine of several addresses need not be the one that was asked. A
//! client that is connected to the one it asked never sees the answer; a firewall that follows connections drops it. What to
//! do about it: have the kernel say which address was asked, and send from that one (IP_PKTINFO, ip(7); `echo_lab::control`).
//! recv_from and send_to have no place for it, recvmsg(2) and sendmsg(2) have. Or bind one socket to each address.
//!
//! Run:             cargo run --bin probe-wildcard-source --features gso
//! Second terminal: nothing: its clients ask 127.0.0.2 from 127.0.0.1
//! In the trace:    the answers in sendto come from the route's address; recvmsg and sendmsg carry IP_PKTINFO.
//! Left out:        IPv6, where the same is IPV6_RECVPKTINFO and IPV6_PKTINFO.
//! Oldest system:   Linux 2.2, for IP_PKTINFO.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for all of 127.0.0.0/8")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use echo_lab::control::{self, Control};
    use echo_lab::{Attempt, Result, report::print_line};
    use nix::sys::socket::{MsgFlags, SockaddrIn, recvmsg};
    use socket2::{MsgHdr, SockRef};
    use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    pub fn main() -> Result<()> {
        let server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).attempt("bind the server")?;
        let local = server.local_addr().attempt("read the bound address")?;
        ask("recv_from and send_to", &server, answer_by_route)?;
        control::ask_for_destination(&server, local)?;
        ask("with IP_PKTINFO", &server, answer_from_asked)
    }

    fn answer_by_route(server: &UdpSocket) -> io::Result<usize> {
        let mut bytes = [0; 8];
        let (len, peer) = server.recv_from(&mut bytes)?;
        server.send_to(&bytes[..len], peer)
    }

    fn answer_from_asked(server: &UdpSocket) -> io::Result<usize> {
        let (mut bytes, mut control) = ([0; 8], Control::default());
        let mut vectors = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<SockaddrIn>(server.as_raw_fd(), &mut vectors, Some(control.room()), MsgFlags::empty())?;
        let (len, peer) = (message.bytes, message.address.ok_or(ErrorKind::InvalidData)?);
        let asked = control.destination().ok_or(ErrorKind::InvalidData)?;
        control.clear();
        control.push_source(asked);
        let (peer, vectors) = (SocketAddr::V4(peer.into()).into(), [IoSlice::new(&bytes[..len])]);
        let message = MsgHdr::new().with_addr(&peer).with_buffers(&vectors).with_control(control.bytes());
        SockRef::from(server).sendmsg(&message, 0)
    }

    /// One client that hears everybody, and one that is connected to the address it asks.
    fn ask(how: &str, server: &UdpSocket, answer: fn(&UdpSocket) -> io::Result<usize>) -> Result<()> {
        let port = server.local_addr().attempt("read the bound address")?.port();
        let asked = SocketAddr::from(([127, 0, 0, 2], port));
        let hears_all = client().attempt("create a client")?;
        hears_all.send_to(b"x", asked).attempt("ask")?;
        answer(server).attempt("answer")?;
        let (_, from) = hears_all.recv_from(&mut [0; 8]).attempt("hear the answer")?;
        print_line(format_args!("{how}: {} was asked, {} answers", asked.ip(), from.ip()))?;

        let connected = client().attempt("create a client")?;
        connected.connect(asked).attempt("connect")?;
        connected.send(b"x").attempt("ask")?;
        answer(server).attempt("answer")?;
        match connected.recv(&mut [0; 8]) {
            Ok(_) => print_line(format_args!("{how}: a connected client hears it")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                print_line(format_args!("{how}: a connected client hears nothing in 100 ms"))
            }
            Err(error) => Err(error).attempt("hear the answer"),
        }
    }

    fn client() -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(socket)
    }
}
