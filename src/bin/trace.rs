//! Which system calls does a binary make? Runs it under strace, sends it messages, and prints the calls of its start
//! and those of one echo (or, for a probe, of its whole work), with descriptors, addresses and pointers named.
//!
//! Run:             scripts/trace echo-epoll-edge; flags of the binary follow --: scripts/trace echo-tcp-reactor -- --frames
//! Second terminal: nothing: the messages come from here.
//! In the trace:    what the header of the traced binary says.
//! Left out:        time. strace makes every call slower, and not all alike.
//! Oldest system:   Linux with strace 4.17, for names of calls that may be unknown.

use clap::Parser;
use echo_lab::catalog::{self, Kind, Messages, Row};
use echo_lab::{Attempt, Error, Result, report::log_line, report::print_line, unsupported};
use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs, thread};

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
    let outcome =
        run(row, &args, &log).and_then(|sent| Ok((sent, fs::read_to_string(&log).attempt("read what strace wrote")?)));
    let _ = fs::remove_file(&log);
    let (sent, log) = outcome?;
    let calls = parse(&log);
    match row.kind {
        kind if kind.is_server() => print_server(row, &args, &calls, &sent),
        _ => print_probe(&args, &calls),
    }
}

/// Runs the binary under strace until it has answered the messages and ended. Returns the moments at which each message
/// was sent, and that of the end: a server has made all calls for one message before the next.
fn run(row: &Row, args: &Args, log: &std::path::Path) -> Result<Vec<f64>> {
    let bin = env::current_exe().attempt("find this program's folder")?.with_file_name(row.name);
    // A probe's runtime and its output would drown what it shows; a server has nothing to hide. With ? a name may be
    // unknown: Linux has no epoll_wait on the younger processors.
    let filter = "trace=recvfrom,recvmsg,sendto,sendmsg,write,epoll_create1,epoll_ctl,?epoll_wait,epoll_pwait,?epoll_pwait2,ppoll,pselect6,\
                  timerfd_settime,eventfd2,pipe2,socketpair";
    let mut command = Command::new("strace");
    // -D: the binary, not strace, is the child of this program, and gets its signals.
    command.args(["-D", "-f", "-ttt", "-yy", "-s", "32", "-e", "signal=none", "-o"]).arg(log);
    if row.kind == Kind::Probe {
        command.args(["-e", filter]);
    }
    command.arg(&bin).args(row.trace_flags);
    match row.takes_messages {
        Messages::WhenListening => drop(command.args(["--bind", "127.0.0.1:0"])),
        Messages::WhenWaiting => drop(command.args(["--count", &args.messages.to_string()])),
        Messages::AfterLines => {
            command.args(["--bind", "127.0.0.1:0", "--count", &(2 * args.messages).to_string()]);
        }
        Messages::None => {}
    }
    let command = command.args(&args.flags).stdout(Stdio::piped());
    let child = command.spawn().attempt("start strace (Debian: apt-get install strace)")?;
    let mut child = Ended(child);
    let mut lines = BufReader::new(child.0.stdout.take().ok_or(Error::new("no standard output"))?).lines();

    let mut sent = Vec::new();
    if row.takes_messages != Messages::None {
        let server = listening(&mut lines, row.takes_messages == Messages::WhenWaiting)?;
        let client = Client::new(row.kind, server).attempt("create a client")?;
        let message = message(&args.flags);
        for _ in 0..args.messages {
            match row.takes_messages {
                Messages::AfterLines => drop(lines.next()),
                _ => asleep(child.0.id())?,
            }
            sent.push(now());
            client.send(message).attempt("send a message")?;
            match row.kind.is_server() {
                true => client.recv(message.len()).attempt(format_args!("get an echo from {}", row.name))?,
                false => drop(lines.next()),
            }
        }
        if row.kind.is_server() {
            asleep(child.0.id())?;
            // The client goes, then the server.
            sent.push(now());
        }
    }
    if row.kind.is_server() {
        terminate(&child.0);
    }
    lines.for_each(drop);
    child.0.wait().attempt("wait for the traced binary")?;
    // strace is nobody's child: it has finished when its last line is there.
    let patience = Instant::now() + PATIENCE;
    while !fs::read_to_string(log).is_ok_and(|log| log.trim_end().ends_with("+++")) && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(sent)
}

/// How long anything may take that has to happen, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// In seconds, by the clock of strace -ttt.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What a server with these flags echoes at once: any bytes, a line, or a frame.
fn message(flags: &[String]) -> &'static [u8] {
    let has = |name| flags.iter().any(|flag| flag == name);
    match (has("--frames"), has("--lines")) {
        (true, _) => b"\0\0\0\x04echo",
        (_, true) => b"echo\n",
        _ => b"echo",
    }
}

/// A socket connected to the server.
enum Client {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Client {
    fn new(kind: Kind, server: SocketAddr) -> io::Result<Self> {
        let patience = Some(PATIENCE);
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

    fn recv(&self, len: usize) -> io::Result<()> {
        let mut buffer = vec![0; len];
        match self {
            Self::Udp(socket) => socket.recv(&mut buffer).map(drop),
            Self::Tcp(stream) => (&*stream).read_exact(&mut buffer),
        }
    }
}

/// The last address that the binary listens on, once it waits for messages.
fn listening(lines: &mut Lines<BufReader<ChildStdout>>, until_it_waits: bool) -> Result<SocketAddr> {
    let mut address = None;
    for line in lines {
        let line = line.attempt("read the binary's output")?;
        if let Some(text) = line.strip_prefix("listening on ") {
            address = Some(text.parse().attempt("read the address that the binary listens on")?);
        }
        if !until_it_waits || line == "waiting" {
            break;
        }
    }
    address.ok_or(Error::new("the traced binary ended before it listened"))
}

/// Returns when all threads of the process have slept for a while: it has done all that it had to do.
fn asleep(id: u32) -> Result<()> {
    let limit = Instant::now() + PATIENCE;
    // The state follows the name in parentheses: proc_pid_stat(5). A thread that strace holds is in another.
    let sleeps =
        |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| stat.contains(") S "));
    let mut seen = 0;
    while seen < 10 {
        if Instant::now() > limit {
            return Err(Error::new(format!("the traced binary does not come to rest in {} s", PATIENCE.as_secs())));
        }
        thread::sleep(Duration::from_millis(2));
        let threads = fs::read_dir(format!("/proc/{id}/task")).attempt("list the threads of the traced binary")?;
        seen = if threads.flatten().all(sleeps) { seen + 1 } else { 0 };
    }
    Ok(())
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

/// The calls of each echo, thread by thread: of two threads, which is quicker differs. In each thread an echo begins with the
/// call that waits for it, the last one that was begun before the message was sent.
fn echoes(calls: &[Call], sent: &[f64]) -> Vec<Vec<String>> {
    let threads: BTreeSet<usize> = calls.iter().map(|call| call.thread).collect();
    // At times the allocator of a runtime asks the kernel for memory.
    let own = |thread| calls.iter().filter(move |call| call.thread == thread && !call.text.starts_with("brk("));
    let threads: Vec<Vec<&Call>> = threads.into_iter().map(|thread| own(thread).collect()).collect();
    let echo = |from: f64, to: f64| {
        let busy = threads.iter().map(|calls| {
            let wait = |sent| calls.partition_point(|call| call.at < sent).saturating_sub(1);
            &calls[wait(from)..wait(to)]
        });
        let busy: Vec<_> = busy.filter(|calls| !calls.is_empty()).collect();
        let line = |call: &&Call| match busy.len() {
            1 => normalise(&call.text),
            _ => normalise(&call.to_string()),
        };
        busy.iter().flat_map(|calls| calls.iter().map(line)).collect()
    };
    sent.windows(2).map(|between| echo(between[0], between[1])).collect()
}

/// The calls of a server: those of its start, and those of one echo. The first echo may make some that no other makes.
fn print_server(row: &Row, args: &Args, calls: &[Call], sent: &[f64]) -> Result<()> {
    let Some(listening) = calls.iter().position(|call| call.text.contains("\"listening on ")) else {
        return Err(Error::new(format!("cannot find where {} listens in its trace", row.name)));
    };
    let start = &calls[..=listening];
    let echoes = echoes(calls, sent);
    let Some(first) = echoes.get(1).filter(|echo| !echo.is_empty()) else {
        return Err(Error::new(format!("cannot find two echoes in the trace of {}", row.name)));
    };
    if let Some((at, _)) = echoes.iter().enumerate().skip(1).find(|(_, echo)| *echo != first) {
        log_line(format_args!("warning: echo {} differs from the second: the machine may be busy, try again", at + 1));
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
    // Of a mask that is not there, libraries leave the size to chance.
    if text.contains("epoll_pwait(") {
        text = replace_between(&text, ", NULL, ", ")", |_| Some("SIZE"));
    }
    // Since Linux 6.15 compio asks that its waits do not count as waits for a disk.
    for no_iowait in ["|0x80,", "|IORING_ENTER_NO_IOWAIT,"] {
        text = text.replace(no_iowait, ",");
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
