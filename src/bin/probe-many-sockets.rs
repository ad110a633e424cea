//! What does a wait cost when one socket is active among many? select and poll get all descriptors with each call, and the
//! kernel asks each of them: the cost grows with their number. epoll keeps the set in the kernel, where a socket that
//! becomes ready puts itself on a list: the cost stays what it is.
//!
//! Run:             cargo run --bin probe-many-sockets --features select,poll,epoll
//! Second terminal: nothing: it sends to itself
//! In the trace:    pselect6 and ppoll with all descriptors; epoll_wait with none, after an EPOLL_CTL_ADD for each.
//! Left out:        waiting by the runtimes, which use epoll on Linux.
//! Oldest system:   Linux 3.2, as Rust's standard library.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "epoll(7)")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use clap::{Parser, value_parser};
    use echo_lab::{Attempt, Result, report::print_line};
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, ppoll};
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::select::{FD_SETSIZE, FdSet, pselect};
    use socket2::{Domain, Socket, Type};
    use std::io;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::os::fd::{AsFd, AsRawFd};
    use std::time::Duration;

    /// What does a wait cost when one socket is active among many?
    #[derive(Parser)]
    #[command(version)]
    struct Args {
        /// How many sockets to wait for; several, separated by commas
        #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10,100,1000,10000",
              value_parser = value_parser!(u32).range(1..=1_000_000))]
        sockets: Vec<u32>,

        /// Waits of each kind
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u32).range(1..=100_000))]
        rounds: u32,
    }

    pub fn main() -> Result<()> {
        let args = Args::parse();
        let mut costs = Vec::new();
        for count in &args.sockets {
            costs.push(costs_with(*count, args.rounds)?);
        }
        let columns = |of: &dyn Fn(usize) -> String| (0..costs.len()).map(of).collect::<String>();
        let heads = columns(&|at| format!("{:>10}", args.sockets[at]));
        print_line(format_args!("{:<32}{heads}", "CPU time of a datagram, µs"))?;
        for (at, name) in ["select", "poll", "epoll"].iter().enumerate() {
            print_line(format_args!("{name:<32}{}", columns(&|count| format!("{:>10}", costs[count][at]))))?;
        }
        Ok(())
    }

    /// What it costs to send, wait for and receive one datagram among `count` sockets: with select, poll and epoll.
    fn costs_with(count: u32, rounds: u32) -> Result<[String; 3]> {
        allow_descriptors(count)?;
        // The active one is made last, so that a scan passes all the others.
        let idle = (1..count).map(|_| Socket::new(Domain::IPV4, Type::DGRAM, None)).collect::<io::Result<Vec<_>>>();
        let idle = idle.attempt(format_args!("open {count} sockets; try a higher ulimit -n"))?;
        let active = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).attempt("bind a socket")?;
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).attempt("bind a socket")?;
        client.connect(active.local_addr().attempt("read an address")?).attempt("connect a socket")?;
        let select = match active.as_raw_fd() as usize {
            // A set is an array of FD_SETSIZE bits (select(2)).
            FD_SETSIZE.. => "-".to_string(),
            _ => cost(rounds, &client, &active, with_select(&idle, &active))?,
        };
        let poll = cost(rounds, &client, &active, with_poll(&idle, &active))?;
        let epoll = cost(rounds, &client, &active, with_epoll(&idle, &active)?)?;
        Ok([select, poll, epoll])
    }

    /// The CPU time of this thread for each round, in µs.
    fn cost(
        rounds: u32,
        client: &UdpSocket,
        active: &UdpSocket,
        mut wait: impl FnMut() -> nix::Result<()>,
    ) -> Result<String> {
        let before = cpu_time()?;
        for _ in 0..rounds {
            client.send(b"x").attempt("send")?;
            wait().attempt("wait")?;
            active.recv(&mut [0; 8]).attempt("receive")?;
        }
        let used = cpu_time()? - before;
        Ok(format!("{:.1}", used.as_secs_f64() * 1e6 / f64::from(rounds)))
    }

    /// select overwrites its set, which is filled anew for each wait.
    fn with_select<'a>(idle: &'a [Socket], active: &'a UdpSocket) -> impl FnMut() -> nix::Result<()> {
        move || {
            let mut read = FdSet::new();
            idle.iter().for_each(|socket| read.insert(socket.as_fd()));
            read.insert(active.as_fd());
            pselect(active.as_raw_fd() + 1, &mut read, None, None, None, None).map(drop)
        }
    }

    /// poll leaves what was asked for as it is: the array is made once, and handed over with each wait.
    fn with_poll<'a>(idle: &'a [Socket], active: &'a UdpSocket) -> impl FnMut() -> nix::Result<()> {
        let all = idle.iter().map(AsFd::as_fd).chain([active.as_fd()]);
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        move || ppoll(&mut fds, None, None).map(drop)
    }

    /// The kernel keeps the set; a wait hands over nothing.
    fn with_epoll<'a>(idle: &'a [Socket], active: &'a UdpSocket) -> Result<impl FnMut() -> nix::Result<()>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
        let all = idle.iter().map(AsFd::as_fd).chain([active.as_fd()]);
        for (number, fd) in all.enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
            epoll.add(fd, event).attempt(format_args!("register socket {number}"))?;
        }
        Ok(move || epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE).map(drop))
    }

    /// Raises the soft limit of descriptors as far as `count` sockets need and the hard limit allows.
    fn allow_descriptors(count: u32) -> Result<()> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is valid for writes.
        Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }).attempt("read ulimit -n")?;
        limit.rlim_cur = limit.rlim_cur.max(u64::from(count) + 16).min(limit.rlim_max);
        // SAFETY: `limit` is valid for reads.
        Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).attempt("raise ulimit -n").map(drop)
    }

    /// CLOCK_THREAD_CPUTIME_ID: user and system time of this thread, in nanoseconds (clock_gettime(2)).
    fn cpu_time() -> Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for writes.
        let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        Errno::result(status).attempt("read the thread's CPU time")?;
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}
