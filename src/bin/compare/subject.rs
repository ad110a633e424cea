//! An echo server as a process of its own, and what the kernel says about it.

use echo_lab::{Attempt, Error, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// How long a subject may take to start, to answer one datagram, or to be traced.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running subject. Dropped, it is killed; should this process be killed, the kernel kills it too.
pub struct Subject {
    pub name: String,
    pub addr: SocketAddr,
    child: Child,
    clock: ClockId,
}

/// What to start.
#[derive(Clone, Debug)]
pub enum Program {
    /// A server of this package.
    Own(PathBuf),
    /// A command line with `{addr}` or `{port}` in it, for the shell.
    Peer(String),
}

impl Subject {
    /// Starts a server, on `core` if there is a choice, and checks that it echoes right.
    pub fn start(name: &str, program: &Program, core: Option<usize>, size: usize) -> Result<Self> {
        let (mut command, addr) = match program {
            Program::Own(path) => {
                let mut command = Command::new(path);
                command.args(["--bind", "127.0.0.1:0"]).stdout(Stdio::piped());
                (command, None)
            }
            Program::Peer(line) => {
                let addr = free_address()?;
                let line = line.replace("{addr}", &addr.to_string()).replace("{port}", &addr.port().to_string());
                let mut command = Command::new("sh");
                command.args(["-c", &format!("exec {line}")]).stdout(Stdio::null());
                (command, Some(addr))
            }
        };
        command.stdin(Stdio::null()).stderr(Stdio::null());
        // SAFETY: prctl(2) is safe between fork and exec, and nothing else happens there.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn().attempt(format_args!("start {name}"))?;
        let stdout = child.stdout.take();
        let pid = Pid::from_raw(child.id() as i32);
        let clock = ClockId::pid_cpu_clock_id(pid).attempt(format_args!("read the CPU clock of {name}"))?;
        let mut subject = Self { name: name.into(), addr: SocketAddr::from(([127, 0, 0, 1], 0)), child, clock };
        if let Some(core) = core {
            pin(pid, core)?;
        }
        subject.addr = match (addr, stdout) {
            (Some(addr), _) => addr,
            (None, Some(stdout)) => {
                let mut line = String::new();
                BufReader::new(stdout).read_line(&mut line).attempt(format_args!("read from {name}"))?;
                let addr = line.trim_end().strip_prefix("listening on ").unwrap_or_default();
                addr.parse().attempt(format_args!("start {name}: it said {line:?}"))?
            }
            (None, None) => return Err(Error::new("no standard output")),
        };
        subject.verify(size)?;
        Ok(subject)
    }

    /// Echo must be right before it is timed: sizes, content, order.
    fn verify(&mut self, size: usize) -> Result<()> {
        let wrong = |what: String| Error::new(format!("{} does not echo: {what}", self.name));
        let socket = UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
            socket.connect(self.addr)?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok(socket)
        });
        let socket = socket.attempt("create a client")?;
        let mut buffer = vec![0; 65536];
        // A peer says nothing when it is ready.
        let limit = Instant::now() + PATIENCE;
        while socket.send(b"ready?").and_then(|_| socket.recv(&mut buffer)).is_err() {
            if Instant::now() > limit {
                return Err(wrong(format!("no answer on {} within {PATIENCE:?}", self.addr)));
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(wrong(format!("it ended with {status}")));
            }
        }
        while socket.recv(&mut buffer).is_ok() {}
        socket.set_read_timeout(Some(PATIENCE)).attempt("set a time limit")?;
        for size in [1, 64, 512, 1400, size] {
            let datagram: Vec<u8> = (0..size).map(|at| (at * 17) as u8).collect();
            let result = socket.send(&datagram).and_then(|_| socket.recv(&mut buffer));
            let len = result.map_err(|error| wrong(format!("{size} bytes: {error}")))?;
            if buffer[..len] != datagram {
                return Err(wrong(format!("{size} bytes came back as {len} others")));
            }
        }
        for round in 0..8u8 {
            (0..8).try_for_each(|number| socket.send(&[round, number]).map(drop)).attempt("send")?;
            for number in 0..8 {
                let len = socket.recv(&mut buffer).map_err(|error| wrong(format!("8 at once: {error}")))?;
                if buffer[..len] != [round, number] {
                    return Err(wrong("8 at once came back in another order".into()));
                }
            }
        }
        Ok(())
    }

    /// CPU time used so far, by all of its threads.
    pub fn cpu(&self) -> Result<Duration> {
        let time = self.clock.now().attempt(format_args!("read the CPU clock of {}: it may have ended", self.name))?;
        Ok(time.into())
    }

    /// Context switches so far, of all of its threads (proc_pid_status(5)).
    pub fn context_switches(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        tasks.map(|task| field(&task.path().join("status"), "ctxt_switches:").iter().sum::<u64>()).sum()
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        field(Path::new(&format!("/proc/{}/status", self.child.id())), "VmRSS:").iter().sum()
    }

    /// Datagrams that found its receive buffer full: the last column of /proc/net/udp.
    pub fn kernel_drops(&self) -> u64 {
        let port = format!(":{:04X}", self.addr.port());
        let table = fs::read_to_string("/proc/net/udp").unwrap_or_default();
        let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let own = lines.filter(|columns| columns.get(1).is_some_and(|local| local.ends_with(&port)));
        own.filter_map(|columns| columns.last()?.parse::<u64>().ok()).sum()
    }

    /// System calls by name while `work` runs, counted by strace: it slows the subject down, so nothing is timed here.
    pub fn calls(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, u64>> {
        let log = std::env::temp_dir().join(format!("echo-lab-compare-{}", self.child.id()));
        let id = self.child.id().to_string();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(&log).args(["-p", &id]).stderr(Stdio::null());
        let mut tracer = strace.spawn().attempt("start strace (Debian: apt-get install strace)")?;
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
        let mut calls = BTreeMap::new();
        for line in text.attempt("read what strace wrote")?.lines() {
            let call = line.split_once(char::is_whitespace).map_or("", |(_, call)| call.trim_start());
            if let Some((name, _)) = call.split_once('(').filter(|(name, _)| !name.contains(['<', ' ', '+'])) {
                *calls.entry(name.to_string()).or_default() += 1;
            }
        }
        Ok(calls)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Restricts a process (0: this one) to one core.
pub fn pin(pid: Pid, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core).and_then(|()| sched_setaffinity(pid, &cores)).attempt(format_args!("pin to core {core}"))
}

/// The numbers behind all names in `path` that end with `name`.
fn field(path: &Path, name: &str) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let values = text.lines().filter_map(|line| line.split_once(name));
    values.filter_map(|(_, value)| value.trim().trim_end_matches(" kB").parse().ok()).collect()
}

fn free_address() -> Result<SocketAddr> {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").attempt("find a free port")?;
        let addr = socket.local_addr().attempt("find a free port")?;
        // TCP ports of that number may be in use; a peer that listens on both is not ours to judge.
        match std::net::TcpListener::bind(addr) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            _ => return Ok(addr),
        }
    }
}
