//! Binaries of this build as processes, and clients for them.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "faults and traces are checked on Linux"))]

use echo_lab::catalog::Row;
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The binary `name`: cargo puts the tests' own in a folder below the binaries. scripts/mutants has others.
pub fn bin(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("this program's own path");
    let folder = std::env::var_os("ECHO_LAB_BIN").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| tests.ancestors().nth(2).expect("two folders above").into());
    folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// A running binary. Dropped, it is killed.
pub struct Server {
    /// Where it listens (for a probe of many sockets: the last).
    pub addr: SocketAddr,
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    log: Option<PathBuf>,
}

/// What is left of a process that has ended.
pub struct Ended {
    pub status: ExitStatus,
    /// Standard output after the line that said where it listens.
    pub lines: Vec<String>,
    pub stderr: String,
    /// What strace wrote, if the process ran under it.
    pub trace: String,
}

impl Server {
    /// Starts `row` on a free port of 127.0.0.1.
    pub fn start(row: &Row, flags: &[&str]) -> Self {
        let mut command = Command::new(bin(row.name));
        if row.kind.is_server() {
            command.arg("--json");
            if !flags.contains(&"--bind") {
                command.args(["--bind", "127.0.0.1:0"]);
            }
        }
        Self::spawn(command.args(flags), None)
    }

    /// As [`start`](Self::start), under strace. With -D the server, not strace, is the child.
    pub fn strace(row: &Row, options: &[&str], flags: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("echo-lab-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let log = std::env::temp_dir().join(unique);
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-e", "signal=none", "-o"]).arg(&log).args(options).arg(bin(row.name));
        if row.kind.is_server() {
            command.args(["--json", "--bind", "127.0.0.1:0"]);
        }
        // strace counts the calls that it makes fail in each thread for itself.
        if row.name == "echo-reuseport" {
            command.args(["--threads", "1"]);
        }
        Self::spawn(command.args(flags), Some(log))
    }

    /// As [`start`](Self::start), with examples/count_alloc.rs put under it: [`Ended::allocations`].
    #[cfg(target_os = "linux")]
    pub fn counting(row: &Row, flags: &[&str]) -> Self {
        let library = bin("examples").join("libcount_alloc.so");
        assert!(library.exists(), "{} is missing: cargo build --examples", library.display());
        let mut command = Command::new(bin(row.name));
        command.env("LD_PRELOAD", library).args(["--json", "--bind", "127.0.0.1:0"]);
        Self::spawn(command.args(flags), None)
    }

    /// Starts `command`, which is to say where it listens.
    pub fn spawn(command: &mut Command, log: Option<PathBuf>) -> Self {
        Self::spawn_with(command, log, Stdio::piped())
    }

    /// As [`spawn`](Self::spawn), with this as its standard error.
    pub fn spawn_with(command: &mut Command, log: Option<PathBuf>, stderr: Stdio) -> Self {
        let (mut server, line) = Self::spawn_with_line(command, log, stderr);
        let addr = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("first line is {line:?}"));
        server.addr = addr.parse().expect("an address");
        server
    }

    /// Starts `command`, which listens nowhere, and says `first` when it is ready.
    #[cfg(target_os = "linux")]
    pub fn spawn_until(command: &mut Command, first: &str) -> Self {
        let (server, line) = Self::spawn_with_line(command, None, Stdio::piped());
        assert_eq!(line, first);
        server
    }

    /// Starts `command`: with its first line.
    fn spawn_with_line(command: &mut Command, log: Option<PathBuf>, stderr: Stdio) -> (Self, String) {
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("starts");
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let stderr = stderr.map(|stderr| thread::spawn(move || read_all(stderr)));
        let server = Self { addr: SocketAddr::from(([0; 4], 0)), child, lines, stderr, log };
        let Ok(line) = server.lines.recv_timeout(PATIENCE) else {
            panic!("said nothing, then {:?}", server.wait().stderr);
        };
        (server, line)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    #[cfg(target_os = "linux")]
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// How many descriptors it has open.
    #[cfg(target_os = "linux")]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// The next line on standard output.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// The next line on standard output, if it is there already.
    pub fn ready_line(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    #[cfg(unix)]
    pub fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0);
        // A thread that is at work stops a little later.
        #[cfg(target_os = "linux")]
        if signal == libc::SIGSTOP {
            self.until_all_threads("stopped", &["T", "t"]);
        }
    }

    /// Resident memory in KiB.
    #[cfg(target_os = "linux")]
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Runs `run` while strace is attached to the server.
    #[cfg(unix)]
    pub fn traced(&self, run: impl FnOnce()) {
        self.traced_with(&[], run);
    }

    /// As [`traced`](Self::traced), with these options of strace.
    #[cfg(unix)]
    pub fn traced_with(&self, options: &[&str], run: impl FnOnce()) {
        let pid = self.pid().to_string();
        let mut tracer = Command::new("strace");
        tracer.args(["-f", "-o", "/dev/null", "-p", &pid]).args(options).stderr(Stdio::piped());
        let mut tracer = tracer.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(tracer.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "{said}");
        run();
        // SAFETY: no memory is involved; the tracer has not been waited for, so the id is still its own.
        unsafe { libc::kill(tracer.id() as i32, libc::SIGINT) };
        tracer.wait().unwrap();
    }

    /// Returns when all of its threads sleep in a call: it waits, and has nothing left to look at.
    #[cfg(target_os = "linux")]
    pub fn until_it_waits(&self) {
        self.until_all_threads("waiting", &["S"]);
    }

    /// Returns when each thread has one of these states of proc_pid_status(5), twice in a row: one may wake another.
    #[cfg(target_os = "linux")]
    fn until_all_threads(&self, what: &str, states: &[&str]) {
        let limit = Instant::now() + PATIENCE;
        let threads = format!("/proc/{}/task", self.pid());
        let all = || {
            let mut threads = std::fs::read_dir(&threads).unwrap().flatten();
            threads.all(|thread| {
                let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                states.iter().any(|state| status.contains(&format!("State:\t{state}")))
            })
        };
        while !(all() && all()) {
            assert!(Instant::now() < limit, "not {what} after {PATIENCE:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Ended {
        let limit = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > limit => panic!("still running after {PATIENCE:?}"),
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        let stderr = self.stderr.take().map(|reader| reader.join().unwrap()).unwrap_or_default();
        assert!(!stderr.contains("panicked"), "{stderr}");
        let lines = self.lines.iter().collect();
        Ended { status, lines, stderr, trace: self.log.as_deref().map(read_log).unwrap_or_default() }
    }

    /// Tells a server to stop: it must end with status 0, account for everything, and have nothing left to send.
    #[cfg(unix)]
    pub fn stop(self) -> (Value, Ended) {
        let (summary, ended) = self.stop_with_rest();
        let unsent = summary.get("unsent").unwrap_or(&summary["unsent_bytes"]);
        assert_eq!(number(unsent), 0, "{summary}");
        (summary, ended)
    }

    /// As [`stop`](Self::stop), but something may be left: a peer has gone, does not read, or has not sent all of a message.
    #[cfg(unix)]
    pub fn stop_with_rest(self) -> (Value, Ended) {
        self.signal(libc::SIGTERM);
        let ended = self.wait();
        let summary = summary(&ended);
        (summary, ended)
    }

    /// Where there are no signals, a server is simply killed.
    #[cfg(not(unix))]
    pub fn stop(self) {}

    /// As [`stop`](Self::stop).
    #[cfg(not(unix))]
    pub fn stop_with_rest(self) {}

    /// So many datagrams at once: sent while it is stopped. All come back, in order.
    #[cfg(unix)]
    pub fn echo_burst(&self, client: &Client, count: u32) {
        self.signal(libc::SIGSTOP);
        (0..count).for_each(|number| client.send(&number.to_be_bytes()));
        self.signal(libc::SIGCONT);
        (0..count).for_each(|number| assert_eq!(client.recv(), number.to_be_bytes()));
    }

    pub fn client(&self) -> Client {
        Client::new(self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = &self.log {
            let _ = std::fs::remove_file(log);
        }
    }
}

#[cfg(target_os = "linux")]
impl Ended {
    /// How many allocations examples/count_alloc.rs has counted.
    pub fn allocations(&self) -> u64 {
        let line = self.stderr.lines().find_map(|line| line.strip_prefix("allocations: "));
        line.expect("a count").parse().unwrap()
    }
}

/// The summary of a server that ended well. Each datagram or byte that it received has been accounted for.
pub fn summary(ended: &Ended) -> Value {
    assert!(ended.status.success(), "{:?} {}", ended.status, ended.stderr);
    let text = ended.lines.last().expect("a summary");
    let summary: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"));
    if let Some(received) = summary.get("received_bytes") {
        let known = ["echoed_bytes", "unsent_bytes"].map(|name| number(&summary[name]));
        assert_eq!(number(received), known.iter().sum::<u64>(), "{summary}");
    }
    if let Some(received) = summary.get("received") {
        let known = ["echoed", "too_big", "send_errors", "unsent"].map(|name| number(&summary[name]));
        let refused = ["source_port_zero", "own_port"].map(|name| number(&summary["refused"][name]));
        let accounted = known.iter().sum::<u64>() + refused.iter().sum::<u64>();
        assert_eq!(number(received), accounted, "{summary}");
    }
    summary
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// strace is nobody's child: its log is complete when it says that the process exited.
fn read_log(log: &Path) -> String {
    let limit = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(log).unwrap();
        if text.trim_end().ends_with("+++") || Instant::now() > limit {
            return text;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn read_all(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `len` bytes of a stream of which each byte says where it is.
pub fn content(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|at| (at ^ (at >> 8) ^ (at >> 17)) as u8).collect()
}

/// Runs `name` to its end: its status, standard output and standard error.
pub fn run(name: &str, flags: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(bin(name)).args(flags).stdin(Stdio::null()).output().expect("starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A socket that talks to one server.
pub struct Client(pub UdpSocket);

impl Client {
    pub fn new(server: SocketAddr) -> Self {
        Self::at(if server.is_ipv4() { "127.0.0.1" } else { "::1" }, server)
    }

    /// One at the address `ip`.
    pub fn at(ip: &str, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub fn send(&self, datagram: &[u8]) {
        self.0.send(datagram).expect("sent");
    }

    /// The next datagram, which has to come.
    pub fn recv(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65536];
        let len = self.recv_into(&mut buffer).expect("an echo");
        buffer.truncate(len);
        buffer
    }

    /// A receive with a time limit is never restarted by the kernel (signal(7)).
    fn recv_into(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.recv(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Sends, and receives the same again.
    pub fn echo(&self, datagram: &[u8]) {
        self.send(datagram);
        assert!(self.recv() == datagram, "another datagram came back than the {} bytes sent", datagram.len());
    }

    /// Echoes the numbers of `range`, one at a time.
    pub fn echo_numbers(&self, range: std::ops::Range<u32>) {
        range.for_each(|number| self.echo(&number.to_be_bytes()));
    }

    /// Echoes `count` numbers, of which `outstanding` are on their way at a time: they come back in order.
    pub fn echo_windowed(&self, count: u32, outstanding: u32) {
        for number in 0..count + outstanding {
            if number < count {
                self.send(&number.to_be_bytes());
            }
            if let Some(expected) = number.checked_sub(outstanding) {
                assert_eq!(self.recv(), expected.to_be_bytes());
            }
        }
    }

    /// The number in the next datagram, if one comes within `timeout`.
    pub fn number_within(&self, timeout: Duration) -> Option<u32> {
        self.0.set_read_timeout(Some(timeout)).unwrap();
        let mut bytes = [0; 4];
        let result = self.recv_into(&mut bytes);
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        match result {
            Ok(len) => Some(u32::from_be_bytes(bytes[..len].try_into().expect("a number"))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }
}
