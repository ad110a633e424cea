//! Every check for every binary of the catalogue, each a test of its own. What users run is tested, release binaries:
//! `cargo test --release --all-features --test suite -- echo-tokio::`.
//! The checks are black box: sockets, signals, system-call traces, output, exit status.
//!
//! A check that cannot run here is shown as ignored, with what it needs. With ECHO_LAB_RUN_ALL=1 it fails instead.

#[cfg(target_os = "linux")]
mod accounts;
mod command_line;
#[cfg(target_os = "linux")]
mod compare;
mod conformance;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod heap;
#[path = "../mutants/table.rs"]
mod mutants;
#[cfg(target_os = "linux")]
mod output;
#[cfg(target_os = "linux")]
mod page;
mod probes;
mod project;
#[cfg(target_os = "linux")]
mod rings;
mod say;
#[cfg(target_os = "linux")]
mod segments;
mod server;
#[cfg(unix)]
mod signals;
#[cfg(target_os = "linux")]
mod slow;
mod tcp;
#[cfg(target_os = "linux")]
mod tcp_faults;
#[cfg(target_os = "linux")]
mod tcp_memory;
mod tcp_modes;
#[cfg(target_os = "linux")]
mod traces;
#[cfg(target_os = "linux")]
mod wildcard;
#[cfg(target_os = "linux")]
mod xdp;

use echo_lab::catalog::{Kind, ROWS, Row};
use echo_lab::report::log_line;
use libtest_mimic::{Arguments, Trial};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

/// What a check needs beyond the binary.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    Strace,
    /// strace, and receives and sends that are system calls, to show them or make them fail.
    #[cfg(target_os = "linux")]
    Calls,
    /// A network of its own, that a check may spoil.
    #[cfg(target_os = "linux")]
    Namespace,
    #[cfg(target_os = "linux")]
    RawSocket,
    #[cfg(target_os = "linux")]
    Tracepoints,
    #[cfg(target_os = "linux")]
    Chromium,
    #[cfg(target_os = "linux")]
    Namespaces,
}

impl Needs {
    /// What is missing, and how to get it.
    fn missing(self) -> Option<&'static str> {
        static STRACE: LazyLock<bool> = LazyLock::new(|| {
            let traced = Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
            traced.is_ok_and(|status| status.success())
        });
        match self {
            Needs::Strace if !cfg!(target_os = "linux") => Some("needs Linux, for strace"),
            #[cfg(target_os = "linux")]
            Needs::Calls => Needs::Strace.missing(),
            #[cfg(target_os = "linux")]
            Needs::Namespace if !rings::namespace() => Some("needs root, ip and tc: apt-get install iproute2"),
            Needs::Strace if !*STRACE => Some("needs strace: apt-get install strace"),
            #[cfg(target_os = "linux")]
            Needs::RawSocket if faults::raw_socket().is_err() => Some("needs CAP_NET_RAW: run as root"),
            #[cfg(target_os = "linux")]
            Needs::Tracepoints if std::fs::read("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id").is_err() => {
                Some("needs root, and tracefs: mount -t tracefs tracefs /sys/kernel/tracing")
            }
            #[cfg(target_os = "linux")]
            Needs::Chromium if Command::new("chromium").arg("--version").output().is_err() => {
                Some("needs chromium: apt-get install chromium")
            }
            #[cfg(target_os = "linux")]
            Needs::Namespaces if !*STRACE => Needs::Strace.missing(),
            #[cfg(target_os = "linux")]
            Needs::Namespaces if !xdp::can_run() => {
                Some("needs root, for network namespaces, and ip: apt-get install iproute2")
            }
            _ => None,
        }
    }
}

/// A check of the binary of one row.
type Run = fn(&'static Row);

/// A check with its name.
struct Check {
    name: String,
    needs: Needs,
    run: Box<dyn Fn(&'static Row) + Send>,
}

fn check(name: impl Into<String>, needs: Needs, run: impl Fn(&'static Row) + Send + 'static) -> Check {
    Check { name: name.into(), needs, run: Box::new(run) }
}

fn trial(name: String, missing: Option<&str>, run: impl FnOnce() + Send + 'static) -> Trial {
    let must_run = std::env::var_os("ECHO_LAB_RUN_ALL").is_some_and(|value| value == "1");
    let Some(missing) = missing.map(str::to_string) else {
        let times = std::env::var_os("ECHO_LAB_TIMES").is_some_and(|value| value == "1");
        let timed = times.then(|| name.clone());
        return Trial::test(name, move || {
            let start = Instant::now();
            run();
            if let Some(name) = timed {
                log_line(format_args!("{:8.3} s {name}", start.elapsed().as_secs_f64()));
            }
            Ok(())
        });
    };
    let reason = missing.clone();
    Trial::test(name, move || Err(missing.into())).with_kind(reason).with_ignored_flag(!must_run)
}

fn one_at_a_time(run: impl FnOnce()) {
    static BUSY: Mutex<()> = Mutex::new(());
    let _held = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    run();
}

/// Puts those that keep the cores busy among the others at equal distances. They run one at a time: so seldom one of them
/// waits for another, and the checks beside them, which mostly sleep, go on.
fn spread(busy: Vec<Trial>, others: Vec<Trial>) -> Vec<Trial> {
    let distance = others.len() / (busy.len() + 1) + 1;
    let mut busy = busy.into_iter();
    let mut all = Vec::new();
    for (number, trial) in others.into_iter().enumerate() {
        if number % distance == 0 {
            all.extend(busy.next());
        }
        all.push(trial);
    }
    all.extend(busy);
    all
}

/// How many descriptors a process may have.
#[cfg(unix)]
fn descriptor_limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    limit
}

/// Some checks hold thousands of connections, and so do their servers, which inherit the limit: as many as are allowed.
#[cfg(unix)]
fn allow_descriptors() {
    let mut limit = descriptor_limit();
    limit.rlim_cur = limit.rlim_max.min(20_000);
    // SAFETY: `limit` is valid for reads. If it fails, the checks say what they lack.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

fn main() -> ExitCode {
    #[cfg(unix)]
    allow_descriptors();
    let (mut trials, mut busy) = (Vec::new(), Vec::new());
    for row in ROWS {
        let missing_feature = (!row.built).then(|| format!("needs --features {}", row.features.join(",")));
        let mut checks = match row.kind {
            Kind::Udp => conformance::checks(row),
            // No program runs in the driver of the loopback interface, and none of its echoes is a system call: faults
            // cannot be injected, and there is no trace. The same promises are kept on a veth pair.
            #[cfg(target_os = "linux")]
            Kind::Xdp => xdp::checks(),
            #[cfg(not(target_os = "linux"))]
            Kind::Xdp => Vec::new(),
            Kind::Tcp => tcp::checks(),
            Kind::Probe => probes::checks(row),
            Kind::Tool => Vec::new(),
        };
        if matches!(row.kind, Kind::Udp | Kind::Tcp) {
            checks.extend(command_line::checks());
        }
        checks.extend(tcp_modes::checks(row));
        checks.extend(say::checks(row));
        #[cfg(unix)]
        if row.kind == Kind::Udp {
            checks.extend(signals::checks());
        }
        #[cfg(target_os = "linux")]
        {
            if row.kind == Kind::Udp {
                checks.extend(accounts::checks(row));
                checks.extend(faults::checks(row));
                checks.extend(segments::checks(row));
                checks.extend(slow::checks(row));
                checks.extend(wildcard::checks(row));
            }
            if row.kind == Kind::Tcp {
                checks.extend(tcp_faults::checks(row));
                checks.extend(tcp_memory::checks(row));
            }
            checks.extend(output::checks(row));
            checks.extend(traces::checks(row));
            checks.extend(heap::checks(row));
            checks.extend(compare::checks(row));
            checks.extend(page::checks(row));
            if row.calls.is_some_and(|calls| calls.is_ring()) {
                // What it does to its sockets are operations of a ring, of which strace sees nothing: errors are made
                // by the network instead, and by io_uring_setup and io_uring_enter.
                checks.retain(|check| check.needs != Needs::Calls);
                checks.extend(rings::checks(row));
            }
        }
        for Check { name, needs, run } in checks {
            let name = format!("{}::{name}", row.name);
            if row.works_here() {
                let missing = missing_feature.as_deref().or_else(|| needs.missing());
                if row.name == "compare" {
                    busy.push(trial(name, missing, move || one_at_a_time(|| run(row))));
                } else {
                    trials.push(trial(name, missing, move || run(row)));
                }
            }
        }
        if !row.works_here() && row.built {
            trials.push(trial(format!("{}::says_what_it_needs", row.name), None, || project::unsupported(row)));
        }
    }
    let names = trials.iter().chain(&busy).map(|trial| trial.name().to_string()).collect();
    trials.extend(project::trials(names));
    libtest_mimic::run(&Arguments::from_args(), spread(busy, trials)).exit_code()
}
