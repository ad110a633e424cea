//! UDP echo in the network driver: a program of the kernel's virtual machine exchanges the addresses in the frame and sends it
//! back (XDP_TX), before the network stack knows of it. No socket and no process sees such a datagram: this is the limit.
//! What the program leaves (fragments, IP options) goes the long way to a socket, and is echoed from there.
//!
//! Run:             cargo run --bin echo-xdp --features xdp -- --interface eth0 --bind 192.0.2.1:2000, as root; or
//!                  scripts/xdp, which makes a veth pair between two network namespaces for it
//! Second terminal: ip netns exec echo-lab-client nc -u 10.177.0.1 2000
//! In the trace:    bpf(2): a map of counters, a program, a link to the interface. Then no call for any echo.
//! Left out:        -v, --queue and --recv-buffer for what does not come to the socket. --count may be exceeded when datagrams
//!                  come both ways. An answer's lifetime (TTL) is what is left of the datagram's. Echoed is what was given
//!                  back to the driver, which does not say what it drops.
//! Oldest system:   Linux 5.12, for an atomic addition with a result; it was loaded on 6.1, 6.12 and 6.18. A driver with XDP, as
//!                  veth has, on both its ends.
//!
//! program.rs is the program, in the words of assembler.rs; kernel.rs makes the calls.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for XDP")
}

#[cfg(target_os = "linux")]
mod assembler;
#[cfg(target_os = "linux")]
mod kernel;
#[cfg(target_os = "linux")]
mod program;

#[cfg(target_os = "linux")]
use {
    echo_lab::cli::{self, ServerArgs},
    echo_lab::report::{self, Report},
    echo_lab::{Attempt, Echo, Error, Progress, Result, net, stop},
    nix::errno::Errno,
    nix::net::if_::if_nametoindex,
    nix::poll::{PollFd, PollFlags, ppoll},
    nix::sys::time::TimeSpec,
    std::os::fd::AsFd,
    std::time::Duration,
};

#[cfg(target_os = "linux")]
#[derive(clap::Args)]
struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// Interface whose driver runs the program; --bind has to be an address of it
    #[arg(long, value_name = "NAME")]
    interface: String,

    /// Echo nothing, pass every frame on: the other end of a veth pair drops what is sent to it unless it has a program too
    #[arg(long)]
    pass: bool,
}

/// How often the program's counters are looked at, if `--count` asks for it: the program cannot wake anybody.
#[cfg(target_os = "linux")]
const LOOK: Duration = Duration::from_millis(20);

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let Args { server: args, interface, pass } = cli::parse_as(env!("CARGO_BIN_NAME"));
    let index = if_nametoindex(interface.as_str())
        .attempt(format_args!("find the interface {interface}; ip link lists them"))?;
    let signals = stop::InsideWait::new()?;
    if pass {
        let _link = kernel::attach(&program::pass(), index, &interface)?;
        report::print_line(format_args!("passing on {interface}"))?;
        while !stop::requested() {
            wait(&mut [], None, &signals)?;
        }
        return Ok(());
    }
    if args.bind.ip().is_unspecified() {
        return Err(Error::new(format!("cannot echo for {}: try one address of {interface}", args.bind)));
    }

    // For what the program leaves. It also keeps the port: nobody else can be robbed of their datagrams.
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let counters = kernel::Counters::new()?;
    let count = args.count.unwrap_or(u64::MAX);
    let program = program::echo(local, args.max_size, count, counters.map());
    let mut link = Some(kernel::attach(&program, index, &interface)?);
    let mut echo = Echo::new(&args, local);
    let mut seen = [0; 4];
    report::listening(local)?;

    while !echo.is_done() {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::POLLIN, echo.wants_recv());
        interest.set(PollFlags::POLLOUT, echo.wants_send());
        let timeout = echo.timeout().or(args.count.map(|_| LOOK));
        echo.report().waits += 1;
        wait(&mut [PollFd::new(socket.as_fd(), interest)], timeout, &signals)?;
        if echo.report().waits % 256 == 0 {
            signals.look()?;
        }
        if stop::requested() {
            link = None;
            echo.stop();
        }
        // Before the receive: the program passes on what is beyond `--count`.
        add(echo.report(), counters.read(), &mut seen, count);

        if let Some(slot) = echo.vacant() {
            let result = socket.recv_from(slot);
            echo.received(result)?;
        }
        while let Some((datagram, peer)) = echo.front() {
            let result = socket.send_to(datagram, peer);
            if echo.sent(result)? == Progress::WouldBlock {
                break;
            }
        }
    }
    drop(link);
    add(echo.report(), counters.read(), &mut seen, count);
    echo.finish(&socket)
}

#[cfg(target_os = "linux")]
fn wait(fds: &mut [PollFd], timeout: Option<Duration>, signals: &stop::InsideWait) -> Result<()> {
    match ppoll(fds, timeout.map(TimeSpec::from_duration), Some(signals.mask())) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).attempt("wait with ppoll"),
    }
}

/// Adds what the program counted since the last time.
#[cfg(target_os = "linux")]
fn add(report: &mut Report, mut counters: [u64; 4], seen: &mut [u64; 4], count: u64) {
    // It also counts the datagram that it then finds to be one too many.
    counters[program::ECHOED] = counters[program::ECHOED].min(count);
    let new = |counter: usize| counters[counter] - seen[counter];
    report.received += (0..counters.len()).map(new).sum::<u64>();
    report.echoed += new(program::ECHOED);
    report.refused_source_port_zero += new(program::SOURCE_PORT_ZERO);
    report.refused_own_port += new(program::OWN_PORT);
    report.too_big += new(program::TOO_BIG);
    *seen = counters;
}
