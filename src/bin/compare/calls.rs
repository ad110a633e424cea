//! Counts the system calls of another process, by name.

use crate::subject::{field, threads};
use clap::ValueEnum;
use echo_lab::{Attempt, Error, Result};
use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long strace may take to attach.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the kernel lists its tracepoints.
const EVENTS: &str = "/sys/kernel/tracing/events";
/// The calls that are counted one by one; the rest is `other`, and all are where a server has more threads than there are
/// descriptors for this. All there are (about 360) could be counted as well, but the kernel takes some 30 ms to let go of
/// each.
const NAMES: [&str; 27] = [
    "accept",
    "accept4",
    "clock_nanosleep",
    "close",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "futex",
    "io_uring_enter",
    "nanosleep",
    "poll",
    "ppoll",
    "pselect6",
    "read",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sched_yield",
    "select",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "shutdown",
    "write",
    "writev",
];

/// Calls by name.
pub type Calls = BTreeMap<String, u64>;

/// How the calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// perf_event_open(2) on the tracepoints of the system calls: hardly slows the server down
    Tracepoints,
    /// strace(1), which slows each call down by microseconds: under load the server finds more datagrams at once
    Strace,
}

/// Counts calls in one of the two ways.
pub struct Meter {
    pub source: Source,
    /// Why not the other, if that would have been better.
    pub note: Option<String>,
    /// Tracepoints by name; the empty name is that of all calls.
    points: Vec<(&'static str, u64)>,
    /// One counter of each, never enabled: the kernel takes its time for the last of a tracepoint only.
    _held: Vec<Counter>,
}

impl Meter {
    /// In the way asked for, or in the first that this system permits.
    pub fn new(source: Option<Source>) -> Result<Self> {
        match source {
            Some(Source::Tracepoints) => Self::tracepoints(),
            Some(Source::Strace) => Self::strace(),
            None => Self::tracepoints().or_else(|reason| {
                let strace = Self::strace().map_err(|error| Error::new(format!("{reason}; {error}")))?;
                let note = Some(format!("system calls were counted by strace, which slows servers down: {reason}"));
                Ok(Self { note, ..strace })
            }),
        }
    }

    fn tracepoints() -> Result<Self> {
        let id = |event: String| {
            let text = fs::read_to_string(Path::new(EVENTS).join(event).join("id"))?;
            text.trim().parse::<u64>().map_err(std::io::Error::other)
        };
        let advice = "try sudo, after: sudo mount -t tracefs tracefs /sys/kernel/tracing";
        let all = id("raw_syscalls/sys_enter".into());
        let all =
            all.map_err(|error| Error::new(format!("cannot read the tracepoints in {EVENTS}: {error}; {advice}")))?;
        // A name that this architecture does not have is left out.
        let named = NAMES.iter().filter_map(|name| Some((*name, id(format!("syscalls/sys_enter_{name}")).ok()?)));
        let points: Vec<_> = named.chain([("", all)]).collect();
        let denied = |error| Error::new(format!("cannot count a tracepoint: {error}; try sudo"));
        let held = points.iter().map(|(_, point)| counter(*point, std::process::id()));
        let held = held.collect::<std::io::Result<_>>().map_err(denied)?;
        Ok(Self { source: Source::Tracepoints, note: None, points, _held: held })
    }

    fn strace() -> Result<Self> {
        let version = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
        version.attempt("start strace (Debian: apt-get install strace)")?;
        Ok(Self { source: Source::Strace, note: None, points: Vec::new(), _held: Vec::new() })
    }

    /// The calls of the process `id` while `work` runs. With strace they must not be timed.
    pub fn count(&self, id: u32, work: impl FnOnce() -> Result<()>) -> Result<Calls> {
        match self.source {
            Source::Tracepoints => self.traced(id, work),
            Source::Strace => straced(id, work),
        }
    }

    fn traced(&self, id: u32, work: impl FnOnce() -> Result<()>) -> Result<Calls> {
        let all_calls = self.points.len() - 1..;
        let counters = match counters(id, &self.points) {
            // Too many threads to count each call in each of them.
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => counters(id, &self.points[all_calls]),
            counters => counters,
        };
        let mut counters = counters.attempt("count a tracepoint")?;
        counters.iter_mut().try_for_each(|(_, counter)| counter.enable()).attempt("start to count")?;
        work()?;
        let mut calls = Calls::new();
        for (name, counter) in &mut counters {
            *calls.entry(name.to_string()).or_default() += counter.read().attempt("read a counter")?;
        }
        let all = calls.remove("").unwrap_or_default();
        calls.retain(|_, count| *count > 0);
        // The counters are read one after another: the one of all calls, last, may have seen a few more.
        let other = all.saturating_sub(calls.values().sum());
        if other > 0 {
            calls.insert("other".into(), other);
        }
        Ok(calls)
    }
}

/// Counts each of `points` in each thread of the process `id`.
fn counters(id: u32, points: &[(&'static str, u64)]) -> std::io::Result<Vec<(&'static str, Counter)>> {
    let of_thread = |thread| points.iter().map(move |(name, point)| Ok((*name, counter(*point, thread)?)));
    threads(id).into_iter().flat_map(of_thread).collect()
}

/// Counts in one thread, and in those that it starts.
fn counter(point: u64, thread: u32) -> std::io::Result<Counter> {
    let mut builder = Builder::new(Tracepoint::with_id(point));
    builder.include_kernel().inherit(true).observe_pid(thread as i32).any_cpu().build()
}

fn straced(id: u32, work: impl FnOnce() -> Result<()>) -> Result<Calls> {
    let log = std::env::temp_dir().join(format!("echo-lab-compare-{id}"));
    // A new one: a link of somebody else's under this name is not followed.
    fs::File::create_new(&log).attempt(format_args!("create {}", log.display()))?;
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(&log).args(["-p", &id.to_string()]);
    // Beside the server: this process keeps its own core busy.
    let cores = sched_getaffinity(Pid::from_raw(id as i32)).attempt("read the server's affinity")?;
    // SAFETY: sched_setaffinity(2) is safe between fork and exec, and nothing else happens there.
    unsafe { strace.pre_exec(move || Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)) };
    let mut tracer = strace.stderr(Stdio::null()).spawn().attempt("start strace")?;
    // It is attached when the kernel says who traces: TracerPid.
    let limit = Instant::now() + PATIENCE;
    let status = format!("/proc/{id}/status");
    while field(Path::new(&status), "TracerPid:") == [0] && Instant::now() < limit {
        thread::sleep(Duration::from_millis(1));
    }
    let done = work();
    // SAFETY: no memory is involved; the tracer has not been waited for, so the id is still its own.
    unsafe { libc::kill(tracer.id() as i32, libc::SIGINT) };
    tracer.wait().attempt("wait for strace")?;
    let text = fs::read_to_string(&log);
    let _ = fs::remove_file(&log);
    done?;
    let mut calls = Calls::new();
    for line in text.attempt("read what strace wrote")?.lines() {
        let call = line.split_once(char::is_whitespace).map_or("", |(_, call)| call.trim_start());
        if let Some((name, _)) = call.split_once('(').filter(|(name, _)| !name.contains(['<', ' ', '+'])) {
            *calls.entry(name.to_string()).or_default() += 1;
        }
    }
    Ok(calls)
}
