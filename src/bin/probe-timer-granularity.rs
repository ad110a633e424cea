//! How short can a wait be? None ends early, so each rounds up: epoll_wait, and tokio with it, to whole milliseconds;
//! epoll_pwait2 and ppoll to nanoseconds, but the kernel may add the thread's timer slack, 50 µs unless told otherwise, to
//! wake the processor once for several timers (PR_SET_TIMERSLACK(2const), time(7)). A timerfd has no slack. What to do
//! about it: below a millisecond, wait with a timerfd among the descriptors, or lower the slack, or spin, which costs a core.
//!
//! Run:             cargo run --bin probe-timer-granularity --features epoll,tokio
//! Second terminal: nothing: it waits for nothing but time
//! In the trace:    epoll_wait with a timeout of 1 or 2; the other calls have the time as it was asked for.
//! Left out:        real-time threads, which have no slack; other clocks than CLOCK_MONOTONIC.
//! Oldest system:   Linux 5.11, for epoll_pwait2; the other waits are older than Linux 3.2.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for epoll_pwait2 and timerfd")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use clap::{Parser, value_parser};
    use echo_lab::{Attempt, Result, report::print_line};
    use nix::poll::ppoll;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent};
    use nix::sys::time::{TimeSpec, TimeValLike};
    use std::io::{self, Read};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::ptr::null;
    use std::time::{Duration, Instant};

    /// How short can a wait be?
    #[derive(Parser)]
    #[command(version)]
    struct Args {
        /// Waits of each kind and length
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u32).range(1..=10_000))]
        rounds: u32,

        /// Not tokio, whose waits depend on where in its millisecond they begin
        #[arg(long)]
        without_tokio: bool,
    }

    /// What is asked for, in µs.
    const ASKED: [u32; 3] = [50, 500, 1500];

    type Wait<'a> = Box<dyn FnMut(u32) -> io::Result<()> + 'a>;

    pub fn main() -> Result<()> {
        let args = Args::parse();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
        // SAFETY: no memory is involved; what is created is nobody else's.
        let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
        check(timer.into()).attempt("create a timerfd")?;
        // SAFETY: as above.
        let mut timer = unsafe { std::fs::File::from_raw_fd(timer) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().attempt("start tokio")?;

        let mut waits: Vec<(&str, Wait)> = vec![
            (
                "epoll_wait, in milliseconds",
                Box::new(|us| {
                    epoll.wait(&mut [EpollEvent::empty()], us.div_ceil(1000) as u16)?;
                    Ok(())
                }),
            ),
            ("epoll_pwait2", Box::new(|us| pwait2(&epoll, us))),
            ("ppoll", Box::new(poll)),
            (
                "ppoll, timer slack of 1 ns",
                Box::new(|us| {
                    slack(1)?;
                    poll(us)?;
                    slack(0) // The default.
                }),
            ),
            (
                "timerfd",
                Box::new(move |us| {
                    let spec = libc::itimerspec { it_interval: *time(0).as_ref(), it_value: *time(us).as_ref() };
                    // SAFETY: `spec` is valid for reads; the old value is not asked for.
                    let set = unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
                    check(set.into())?;
                    timer.read_exact(&mut [0; 8])
                }),
            ),
            (
                "spinning on the clock",
                Box::new(|us| {
                    let end = Instant::now() + Duration::from_micros(us.into());
                    while Instant::now() < end {
                        std::hint::spin_loop();
                    }
                    Ok(())
                }),
            ),
        ];
        if !args.without_tokio {
            let sleep =
                |us: u32| runtime.block_on(async move { tokio::time::sleep(Duration::from_micros(us.into())).await });
            waits.push((
                "tokio::time::sleep",
                Box::new(move |us| {
                    sleep(us);
                    Ok(())
                }),
            ));
        }

        // SAFETY: no memory is involved.
        let slack = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) };
        print_line(format_args!("timer slack {slack} ns; least and median of {} waits, in µs", args.rounds))?;
        print_line(row("asked for", ASKED.map(|us| format!("{us:>14}"))))?;
        for (name, mut wait) in waits {
            let mut took = ASKED.map(|_| Vec::new());
            for _ in 0..args.rounds {
                for (us, took) in ASKED.into_iter().zip(&mut took) {
                    let start = Instant::now();
                    wait(us).attempt(format_args!("wait with {name}"))?;
                    took.push(start.elapsed().as_micros());
                }
            }
            print_line(row(
                name,
                took.map(|mut took| {
                    took.sort();
                    format!("{:>7}{:>7}", took[0], took[took.len() / 2])
                }),
            ))?;
        }
        Ok(())
    }

    fn row(name: &str, columns: [String; 3]) -> String {
        format!("{name:<32}{}", columns.concat())
    }

    fn time(us: u32) -> TimeSpec {
        TimeSpec::microseconds(us.into())
    }

    fn poll(us: u32) -> io::Result<()> {
        ppoll(&mut [], Some(time(us)), None)?;
        Ok(())
    }

    /// glibc has it since 2.35, so it is called by its number.
    fn pwait2(epoll: &Epoll, us: u32) -> io::Result<()> {
        let (time, mut event) = (time(us), EpollEvent::empty());
        // SAFETY: room for one event, a time, and no signal mask.
        check(unsafe {
            let (event, time) = (&raw mut event, &raw const *time.as_ref());
            libc::syscall(libc::SYS_epoll_pwait2, epoll.0.as_raw_fd(), event, 1, time, null::<libc::sigset_t>(), 0usize)
        })
    }

    fn slack(ns: libc::c_ulong) -> io::Result<()> {
        // SAFETY: no memory is involved.
        check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, ns) }.into())
    }

    fn check(status: libc::c_long) -> io::Result<()> {
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
