//! Which system calls does a binary make? Runs it under strace, sends it messages, and prints the calls of its start
//! and those of one echo (or, for a probe, of its whole work), with descriptors, addresses and pointers named.
//!
//! Run:             scripts/trace echo-epoll-edge
//! Second terminal: nothing: the messages come from here.
//! In the trace:    what the header of the traced binary says.
//! Left out:        time. strace makes every call slower, and not all alike.
//! Oldest system:   Linux with strace 4.10, for -yy.

use clap::Parser;
use echo_lab::catalog::{self, Kind, Row};
use echo_lab::{Attempt, Error, Result, report::log_line, report::print_line, unsupported};
use std::io::{self, BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, iter, thread};

/// Which system calls does a binary make? Needs strace
#[derive(Parser)]
#[command(version)]
struct Args {
    /// A server or probe of the catalogue
    name: String,
    /// Messages to send: datagrams, or on a connection
    #[arg(default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=1000))]
    messages: u16,
    /// Only the steady state, as docs/traces keeps it
    #[arg(long)]
    steady: bool,
    /// More flags for the traced binary
    #[arg(last = true)]
    flags: Vec<String>,
}

fn main() -> Result<()> {
    if !cfg!(target_os = "linux") {
        return unsupported(env!("CARGO_BIN_NAME"), "strace");
    }
    let args = Args::parse();
    let traced = |row: &&Row| !matches!(row.kind, Kind::Tool | Kind::Xdp) && row.built;
    let Some(row) = catalog::find(&args.name).filter(traced) else {
        let known: Vec<_> = catalog::ROWS.iter().filter(traced).map(|row| row.name).collect();
        log_line(format_args!("error: cannot trace {}: this build has {}", args.name, known.join(", ")));
        std::process::exit(2);
    };
    let log = env::temp_dir().join(format!("echo-lab-trace-{}", std::process::id()));
    // A new one: a link of somebody else's under this name is not followed.
    fs::File::create_new(&log).attempt(format_args!("create {}", log.display()))?;
    let outcome = run(row, &args, &log).and_then(|()| fs::read_to_string(&log).attempt("read what strace wrote"));
    let _ = fs::remove_file(&log);
    let calls = parse(&outcome?);
    match row.kind {
        kind if kind.is_server() => print_server(row, &args, &calls),
        _ => print_probe(&args, &calls),
    }
}

/// Runs the binary under strace until it has answered the datagrams and ended.
fn run(row: &Row, args: &Args, log: &std::path::Path) -> Result<()> {
    let bin = env::current_exe().attempt("find this program's folder")?.with_file_name(row.name);
    let multisocket = row.name.starts_with("tokio-multisocket");
    let count = args.messages.to_string();
    let flags: &[&str] = match row.name {
        "future-notify" => &["--polls", "3", "--interval", "20"],
        "mio-empty" => &["--timeout", "20"],
        "mio-mixed" => &["--bind", "127.0.0.1:0", "--interval", "400", "--count", "4"],
        "mio-pipe" => &[],
        "echo-reuseport" => &["--bind", "127.0.0.1:0", "--threads", "1"],
        "echo-tcp-registrar" => &["--bind", "127.0.0.1:0", "--workers", "1"],
        "probe-coop" => &["--burst", "2"],
        "probe-starvation" => &["--busy", "4"],
        "probe-timer-granularity" => &["--rounds", "1", "--without-tokio"],
        name if name.starts_with("probe-") => &[],
        _ if multisocket => &["--count", &count],
        _ => &["--bind", "127.0.0.1:0"],
    };
    // A probe's runtime and its output would drown what it shows; a server has nothing to hide.
    let filter = "trace=recvfrom,sendto,write,epoll_create1,epoll_ctl,epoll_wait,epoll_pwait2,ppoll,timerfd_settime,\
                  eventfd2,pipe2,socketpair";
    let mut command = Command::new("strace");
    // -D: the binary, not strace, is the child of this program, and gets its signals.
    command.args(["-D", "-f", "-ttt", "-yy", "-s", "32", "-e", "signal=none", "-o"]).arg(log);
    if row.kind == Kind::Probe {
        command.args(["-e", filter]);
    }
    let command = command.arg(&bin).args(flags).args(&args.flags).stdout(Stdio::piped());
    let child = command.spawn().attempt("start strace (Debian: apt-get install strace)")?;
    let mut child = Ended(child);
    let mut lines = BufReader::new(child.0.stdout.take().ok_or(Error::new("no standard output"))?).lines();

    let messages = match row.name {
        "future-notify" | "mio-empty" | "mio-pipe" => 0,
        name if name.starts_with("probe-") => 0,
        "mio-mixed" => 2,
        _ => args.messages,
    };
    if messages > 0 {
        let server = listening(&mut lines, multisocket)?;
        let client = Client::new(row.kind, server).attempt("create a client")?;
        for _ in 0..messages {
            match row.name {
                // Each datagram right after an event of its timer.
                "mio-mixed" => drop(lines.next()),
                _ => asleep(child.0.id()),
            }
            client.send(b"echo").attempt("send a message")?;
            match row.kind.is_server() {
                true => drop(client.recv(&mut [0; 16]).attempt(format_args!("get an echo from {}", row.name))?),
                false => drop(lines.next()),
            }
        }
    }
    if row.kind.is_server() {
        terminate(&child.0);
    }
    lines.for_each(drop);
    child.0.wait().attempt("wait for the traced binary")?;
    // strace is nobody's child: it has finished when its last line is there.
    let patience = Instant::now() + Duration::from_secs(5);
    while !fs::read_to_string(log).is_ok_and(|log| log.trim_end().ends_with("+++")) && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A socket connected to the server.
enum Client {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Client {
    fn new(kind: Kind, server: SocketAddr) -> io::Result<Self> {
        let patience = Some(Duration::from_secs(10));
        if kind == Kind::Tcp {
            let stream = TcpStream::connect(server)?;
            stream.set_read_timeout(patience)?;
            return Ok(Self::Tcp(stream));
        }
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(patience)?;
        Ok(Self::Udp(socket))
    }

    fn send(&self, message: &[u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.send(message),
            Self::Tcp(stream) => (&*stream).write(message),
        }
    }

    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.recv(buffer),
            Self::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

/// The last address that the binary listens on, once it waits for messages.
fn listening(lines: &mut Lines<BufReader<ChildStdout>>, multisocket: bool) -> Result<SocketAddr> {
    let mut address = None;
    for line in lines {
        let line = line.attempt("read the binary's output")?;
        if let Some(text) = line.strip_prefix("listening on ") {
            address = Some(text.parse().attempt("read the address that the binary listens on")?);
        }
        if !multisocket || line == "waiting" {
            break;
        }
    }
    address.ok_or(Error::new("the traced binary ended before it listened"))
}

/// Returns when the process has waited for something for a while: it has done all that it had to do.
fn asleep(id: u32) {
    let limit = Instant::now() + Duration::from_secs(5);
    let mut seen = 0;
    while seen < 10 && Instant::now() < limit {
        thread::sleep(Duration::from_millis(2));
        // The state follows the name in parentheses: proc_pid_stat(5).
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        seen = if stat.contains(") S ") { seen + 1 } else { 0 };
    }
}

#[cfg(unix)]
fn terminate(child: &Child) {
    // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
}

#[cfg(not(unix))]
fn terminate(_: &Child) {}

/// Ends the binary whatever happens here.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One system call: the thread that made it, counted from 1, when in seconds, and the text.
struct Call {
    thread: usize,
    at: f64,
    text: String,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.thread, self.text)
    }
}

/// The calls in the order in which they began: of two threads, the one that is woken may return first.
fn parse(log: &str) -> Vec<Call> {
    let mut threads: Vec<u32> = log.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    threads.sort();
    threads.dedup();
    let mut calls = Vec::<Call>::new();
    for line in log.lines() {
        let mut parts = line.splitn(2, char::is_whitespace);
        let (Some(Ok(id)), Some(rest)) = (parts.next().map(str::parse), parts.next()) else { continue };
        let Some((at, text)) = rest.trim_start().split_once(' ') else { continue };
        let thread = 1 + threads.partition_point(|known| *known < id);
        if let Some((_, rest)) = text.split_once(" resumed>").filter(|_| text.starts_with("<... ")) {
            if let Some(call) = calls.iter_mut().rev().find(|call| call.thread == thread) {
                call.text += rest;
            }
        } else if !text.starts_with("+++") && !text.starts_with("---") {
            let at = at.parse().unwrap_or_default();
            calls.push(Call { thread, at, text: text.replace(" <unfinished ...>", "") });
        }
    }
    calls
}

/// A server that begins no call for so many seconds waits for the client.
const PAUSE: f64 = 0.01;

/// The calls of one echo of a server that waits in one thread and reads in another, by thread: which of the two is
/// quicker differs. An echo is what happens from one pause of the client to the next, so it begins after the waits.
fn of_threads(calls: &[Call], is_read: impl Fn(&Call) -> bool) -> Vec<Vec<String>> {
    let echoes = calls.chunk_by(|before, after| after.at - before.at < PAUSE);
    let echoes = echoes.filter(|echo| echo.iter().any(&is_read)).skip(1);
    let lines = |echo: &[Call]| {
        let mut echo: Vec<_> = echo.iter().collect();
        echo.sort_by_key(|call| call.thread);
        echo.into_iter().map(|call| normalise(&call.to_string())).collect()
    };
    echoes.map(lines).collect()
}

/// The calls of one echo of a server whose calls do not say what they received: what happens from one pause of the client
/// to the next. The first ones may be those of a connection.
fn of_ring(calls: &[Call], echoes: usize) -> Vec<Vec<String>> {
    let mut chunks: Vec<_> = calls.chunk_by(|before, after| after.at - before.at < PAUSE).collect();
    // The last one runs into the end.
    chunks.pop();
    let first = chunks.len().saturating_sub(echoes);
    // At times the allocator of a runtime asks the kernel for memory.
    let own = |call: &&Call| !call.text.starts_with("brk(");
    let lines = |chunk: &&[Call]| chunk.iter().filter(own).map(|call| normalise(&call.text)).collect();
    chunks[first..].iter().map(lines).collect()
}

/// The calls of a server: those of its start, and those of one echo. An echo begins with the wait for its datagram.
fn print_server(row: &Row, args: &Args, calls: &[Call]) -> Result<()> {
    let listening = calls.iter().position(|call| call.text.contains("\"listening on "));
    let (Some(listening), Some(names)) = (listening, row.calls) else {
        return Err(Error::new(format!("cannot find where {} listens in its trace", row.name)));
    };
    let (start, steady) = calls.split_at(listening + 1);
    let is = |call: &Call, name: &str| call.text.split_once('(').is_some_and(|(called, _)| called == name);
    let got = |call: &Call| is(call, names.recv) && !call.text.contains(" = -1 ");
    let thread = |name: &str| Some(steady.iter().find(|call| is(call, name))?.thread);
    let waits = names.wait.and_then(thread);
    let hops = waits.is_some_and(|waits| thread(names.recv) != Some(waits));
    let mut bounds = Vec::new();
    let received = steady.iter().enumerate().filter(|(_, call)| got(call)).take(args.messages.into());
    for (at, _) in received {
        let wait = names.wait.and_then(|wait| steady[..at].iter().rposition(|call| is(call, wait)));
        bounds.push(wait.unwrap_or(at));
    }
    let mut echoes: Vec<Vec<String>> = iter::zip(&bounds, bounds.iter().skip(1))
        .map(|(from, to)| steady[*from..*to].iter().map(|call| normalise(&call.text)).collect())
        .collect();
    if hops {
        echoes = of_threads(steady, got);
        // The last one runs into the end.
        echoes.pop();
    }
    if names.is_ring() {
        echoes = of_ring(steady, usize::from(args.messages) - 1);
    }
    let Some(first) = echoes.first() else {
        return Err(Error::new(format!("cannot find two echoes in the trace of {}", row.name)));
    };
    if let Some((at, _)) = echoes.iter().enumerate().find(|(_, echo)| *echo != first) {
        log_line(format_args!("warning: echo {} differs from the first: the machine may be busy, try again", at + 1));
    }
    if !args.steady {
        print_line(format_args!("# start-up: {} calls", start.len()))?;
        start.iter().try_for_each(|call| print_line(&call.text))?;
        print_line(format_args!("\n# one echo: {} calls", first.len()))?;
    }
    first.iter().try_for_each(print_line)
}

/// The calls of a probe, each with its thread. Of many sockets, the steady state is what follows when all are waiting.
fn print_probe(args: &Args, calls: &[Call]) -> Result<()> {
    let waiting = calls.iter().position(|call| call.text.contains("\"waiting"));
    let steady = match waiting {
        Some(at) if args.steady => &calls[at + 1..],
        _ => calls,
    };
    let is_end = |call: &&Call| args.steady && call.text.contains("\"future 0: ");
    let calls = steady.iter().take_while(|call| !is_end(call) && !call.text.starts_with("exit"));
    calls.map(|call| normalise(&call.to_string())).try_for_each(print_line)
}

/// Names what differs from run to run: descriptors, ports, pointers. The rest stays as strace wrote it.
fn normalise(call: &str) -> String {
    let mut text = call.split_whitespace().collect::<Vec<_>>().join(" ");
    // 5<anon_inode:[eventpoll]> and 3<UDP:[127.0.0.1:2000]> become eventpoll and UDP; [3] in select's result goes.
    while let Some((from, to, name)) = descriptor(&text) {
        text.replace_range(from..to, &name);
    }
    for (before, after, name) in [
        ("htons(", ")", "PORT"),
        ("127.0.0.1:", "\\n", "PORT"),
        ("pselect6(", ",", "NFDS"),
        ("(in [", "]", "UDP"),
        ("{fd=", ",", "UDP"),
        (" 0x", ",", "POINTER"),
        ("futex(", ",", "POINTER"),
        ("FUTEX_WAIT_BITSET_PRIVATE, ", ",", "VALUE"),
    ] {
        text = replace_between(&text, before, after, |_| Some(name));
    }
    // mio keeps a token here, tokio the address of a registration.
    replace_between(&text, ", data={", "}", |data| (data.len() > 20).then_some("POINTER"))
        .replace(" 0xPOINTER", " POINTER")
}

fn descriptor(text: &str) -> Option<(usize, usize, String)> {
    let open = text.char_indices().find(|(at, c)| *c == '<' && text[..*at].ends_with(|c: char| c.is_ascii_digit()))?.0;
    let from = text[..open].trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let mut depth = 0;
    let close = text[open..].char_indices().find(|(at, c)| {
        depth += i32::from(*c == '<') - i32::from(*c == '>' && !text[..open + *at].ends_with('-'));
        depth == 0
    })?;
    let to = open + close.0 + 1;
    let inside = &text[open + 1..to - 1];
    let name = match inside.split_once(":[") {
        Some(("anon_inode", name)) => name.trim_end_matches(']'),
        Some((protocol, _)) => protocol,
        None => inside,
    };
    Some((from, to, name.to_string()))
}

/// Puts what `name` gives for it in place of each text between `before` and `after`.
fn replace_between(text: &str, before: &str, after: &str, name: impl Fn(&str) -> Option<&'static str>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(before) {
        let end = tail.find(after).unwrap_or(0);
        let found = &tail[..end];
        out = out + head + before + name(found).filter(|_| end > 0).unwrap_or(found);
        rest = &tail[end..];
    }
    out + rest
}
