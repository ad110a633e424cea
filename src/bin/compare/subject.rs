//! An echo server as a process of its own, and what the kernel says about it.

use crate::load::Shape;
use echo_lab::{Attempt, Error, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::time::ClockId;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a subject may take to start, to answer one datagram, or to be traced.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running subject. Dropped, it is killed; should this process be killed, the kernel kills it too.
pub struct Subject {
    pub name: String,
    pub addr: SocketAddr,
    child: Child,
    clock: ClockId,
    stderr: File,
}

/// What to start.
#[derive(Clone, Debug)]
pub enum Program {
    /// A server of this package, and its flags.
    Own(PathBuf, Vec<String>),
    /// A command line with `{addr}` or `{port}` in it, for the shell.
    Peer(String),
}

impl Subject {
    /// Starts a server, on `core` if there is a choice, and checks that it echoes right what the load will send.
    pub fn start(name: &str, program: &Program, core: Option<usize>, shape: &Shape) -> Result<Self> {
        let (mut command, addr) = match program {
            Program::Own(path, flags) => {
                let mut command = Command::new(path);
                command.args(["--bind", "127.0.0.1:0"]).args(flags).stdout(Stdio::piped());
                (command, None)
            }
            Program::Peer(line) => {
                let addr = free_address(shape.tcp)?;
                let line = line.replace("{addr}", &addr.to_string()).replace("{port}", &addr.port().to_string());
                let mut command = Command::new("sh");
                command.args(["-c", &format!("exec {line}")]).stdout(Stdio::null());
                (command, Some(addr))
            }
        };
        let (stderr, copy) = unnamed_file().and_then(|file| Ok((file.try_clone()?, file))).attempt("make a file")?;
        command.stdin(Stdio::null()).stderr(copy);
        let own = Pid::this();
        // SAFETY: prctl(2), getppid(2) and sched_setaffinity(2) are safe between fork and exec, and nothing else happens
        // there.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // This process may have been killed before that.
                if Pid::parent() != own {
                    return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
                }
                core.map_or(Ok(()), |core| Ok(pin(core)?))
            });
        }
        let mut child = command.spawn().attempt(format_args!("start {name}"))?;
        let stdout = child.stdout.take();
        let pid = Pid::from_raw(child.id() as i32);
        let clock = ClockId::pid_cpu_clock_id(pid).attempt(format_args!("read the CPU clock of {name}"))?;
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut subject = Self { name: name.into(), addr: addr.unwrap_or(unknown), child, clock, stderr };
        if let Some(stdout) = stdout {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).attempt(format_args!("read from {name}"))?;
            let addr = line.trim_end().strip_prefix("listening on ").and_then(|addr| addr.parse().ok());
            let said = || if line.is_empty() { subject.last_words() } else { line.clone() };
            subject.addr = addr.ok_or_else(|| Error::new(format!("{name} does not listen: {}", said().trim_end())))?;
        }
        match shape.tcp {
            true => subject.verify_stream(&shape.sizes)?,
            false => subject.verify(&shape.sizes)?,
        }
        Ok(subject)
    }

    /// Echo must be right before it is timed: sizes, content, order.
    fn verify(&mut self, sizes: &[usize]) -> Result<()> {
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
                return Err(wrong(format!("it ended with {status} {}", self.last_words()).trim_end().into()));
            }
        }
        while socket.recv(&mut buffer).is_ok() {}
        socket.set_read_timeout(Some(PATIENCE)).attempt("set a time limit")?;
        for size in [1, 64, 512, 1400].iter().chain(sizes).copied() {
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

    /// As [`verify`](Self::verify), over connections.
    fn verify_stream(&mut self, sizes: &[usize]) -> Result<()> {
        let wrong = |what: String| Error::new(format!("{} does not echo: {what}", self.name));
        let limit = Instant::now() + PATIENCE;
        let mut stream = loop {
            match TcpStream::connect(self.addr) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > limit => {
                    return Err(wrong(format!("no connection to {} within {PATIENCE:?}: {error}", self.addr)));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(wrong(format!("it ended with {status} {}", self.last_words()).trim_end().into()));
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).attempt("set a time limit")?;
        for size in [1, 64, 512, 1400, 65_536].iter().chain(sizes).copied() {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 17) as u8).collect();
            let mut back = vec![0; size];
            let result = stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut back));
            result.map_err(|error| wrong(format!("{size} bytes: {error}")))?;
            if back != bytes {
                return Err(wrong(format!("{size} bytes came back as others")));
            }
        }
        let end = stream.shutdown(Shutdown::Write).and_then(|()| stream.read(&mut [0]));
        match end {
            Ok(0) => Ok(()),
            other => Err(wrong(format!("the end of the stream did not come back, but {other:?}"))),
        }
    }

    /// CPU time used so far, by all of its threads.
    pub fn cpu(&self) -> Result<Duration> {
        let time = self.clock.now().attempt(format_args!("read the CPU clock of {}: it may have ended", self.name))?;
        Ok(time.into())
    }

    /// Why it ended, if it wrote that to standard error: what it calls an error, or the last line.
    fn last_words(&self) -> String {
        let mut text = String::new();
        let mut stderr = &self.stderr;
        let _ = stderr.rewind().and_then(|()| stderr.read_to_string(&mut text));
        let mut lines = text.lines();
        let error = lines.clone().find(|line| line.starts_with("error: "));
        error.or(lines.next_back()).unwrap_or_default().into()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Context switches so far, of all of its threads (proc_pid_status(5)).
    pub fn context_switches(&self) -> u64 {
        let path = |thread| format!("/proc/{}/task/{thread}/status", self.id());
        let switches = |thread| field(Path::new(&path(thread)), "ctxt_switches:").iter().sum::<u64>();
        threads(self.id()).into_iter().map(switches).sum()
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
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Restricts the calling thread, and what it starts, to one core.
pub fn pin(core: usize) -> nix::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cores))
}

/// A file for as long as it is open. A pipe would block a server that writes more than it holds.
fn unnamed_file() -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("echo-lab-compare-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(path).map(|()| file)
}

/// The threads of the process `id`.
pub fn threads(id: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// The numbers behind all names in `path` that end with `name`.
pub fn field(path: &Path, name: &str) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let values = text.lines().filter_map(|line| line.split_once(name));
    values.filter_map(|(_, value)| value.trim().trim_end_matches(" kB").parse().ok()).collect()
}

/// Free now; a peer is started on it at once.
fn free_address(tcp: bool) -> Result<SocketAddr> {
    let address = match tcp {
        true => TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()),
        false => UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()),
    };
    address.attempt("find a free port")
}
