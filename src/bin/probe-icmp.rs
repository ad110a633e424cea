//! Who hears that nobody listens? A datagram to a closed port is answered by an ICMP message. Linux reports it to a
//! connected socket, as an error of the next call; an unconnected one hears of it only with IP_RECVERR, and is not told
//! which of its peers it was unless it reads the error queue (ip(7), MSG_ERRQUEUE). On Windows an unconnected socket hears
//! it too. What to do about it: a server takes such an error for what it is, news of one peer (`policy::on_recv`).
//!
//! Run:             cargo run --bin probe-icmp
//! Second terminal: nothing: it sends to a port that it has just closed
//! In the trace:    recvfrom ends with ECONNREFUSED, or with EAGAIN when its time is over.
//! Left out:        reading the error queue.
//! Oldest system:   Linux 3.2, which the standard library needs; IP_RECVERR is older.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for IP_RECVERR")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use echo_lab::{Attempt, Result, report::print_line};
    use std::io;
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    pub fn main() -> Result<()> {
        let closed = socket().and_then(|socket| socket.local_addr()).attempt("find a port and close it")?;

        let unconnected = socket().attempt("create a socket")?;
        say("unconnected", &unconnected, unconnected.send_to(b"x", closed))?;

        let connected = socket().attempt("create a socket")?;
        connected.connect(closed).attempt("connect")?;
        say("connected", &connected, connected.send(b"x"))?;

        let told = socket().attempt("create a socket")?;
        receive_errors(&told).attempt("set IP_RECVERR")?;
        say("unconnected, with IP_RECVERR", &told, told.send_to(b"x", closed))
    }

    fn socket() -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(socket)
    }

    fn receive_errors(socket: &UdpSocket) -> io::Result<()> {
        let on: libc::c_int = 1;
        let (at, len) = ((&raw const on).cast(), size_of_val(&on) as u32);
        // SAFETY: the option is read from `on`, whose size is given.
        match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, libc::IP_RECVERR, at, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn say(which: &str, socket: &UdpSocket, sent: io::Result<usize>) -> Result<()> {
        sent.attempt("send")?;
        let outcome = match socket.recv(&mut [0; 8]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => "hears nothing in 100 ms".to_string(),
            Err(error) => format!("its receive fails: {error}"),
            Ok(_) => "a datagram came from somewhere else".into(),
        };
        print_line(format_args!("{which}: {outcome}"))
    }
}
