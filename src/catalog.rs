//! The one table of all binaries. README, tests and tools read it; a test holds it against Cargo.toml and src/bin.

/// What a binary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A UDP echo server, with the flags of [`crate::cli`].
    Udp,
    /// A UDP echo server in the driver of a network interface, for which the loopback interface is no place.
    Xdp,
    /// A TCP echo server, with the flags of [`crate::cli::StreamArgs`].
    Tcp,
    /// A program that shows one behaviour of a library.
    Probe,
    /// A program that measures, or works on the others.
    Tool,
}

impl Kind {
    /// Whether it listens, echoes, and ends with a summary.
    pub fn is_server(self) -> bool {
        matches!(self, Kind::Udp | Kind::Xdp | Kind::Tcp)
    }
}

/// Where a binary does its work; elsewhere it says in one sentence what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Systems {
    /// Wherever Rust's standard library has sockets.
    All,
    /// POSIX systems.
    Unix,
    /// Linux and FreeBSD.
    LinuxFreeBsd,
    /// Linux.
    Linux,
}

/// The system calls of one server, as strace names them on Linux.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Receives a datagram, or reads from a connection.
    pub recv: &'static str,
    /// Sends a datagram, or writes to a connection.
    pub send: &'static str,
    /// Waits for readiness, if it is not the receive that waits.
    pub wait: Option<&'static str>,
    /// Calls for each echo with one datagram or message outstanding.
    pub per_echo: usize,
    /// Whether the program awaits its receives and sends: what would have blocked is the runtime's to see and to count.
    pub awaited: bool,
    /// Whether the summary says how often it waited. Not every runtime tells.
    pub counts_waits: bool,
}

/// How strace names epoll_wait(2). Linux has it only on the processors of its first decades; elsewhere the C library makes an
/// epoll_pwait of it.
pub const EPOLL_WAIT: &str = match cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
    true => "epoll_wait",
    false => "epoll_pwait",
};

/// The call that submits operations to an io_uring and waits for their completions.
const RING: &str = "io_uring_enter";

impl Calls {
    /// Whether its receives and sends are operations of an io_uring: no system calls, so nothing that strace could show or
    /// make fail.
    pub fn is_ring(&self) -> bool {
        self.recv == RING
    }
}

/// What a server allocates after its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocations {
    /// Nothing.
    None,
    /// At most so many times for each wait: its library does.
    PerWait(u64),
    /// At most so many times for each datagram: its library does.
    PerEcho(u64),
}

/// The memory that a TCP server holds of one connection, at most. The kernel's own buffers are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Bytes for what the server knows of a connection, whatever it does: with a thread for each, also the thread's stack.
    pub fixed: usize,
    /// Buffers of `--buffer` bytes while the connection is idle.
    pub idle: usize,
    /// Buffers of `--buffer` bytes if the peer never reads.
    pub silent: usize,
    /// Whole messages of `--max-frame` bytes if the peer never reads, in the modes that echo those.
    pub messages: usize,
}

impl Held {
    /// Bytes of an idle connection.
    pub fn of_idle(&self, buffer: usize) -> usize {
        self.fixed + self.idle * buffer
    }

    /// Bytes of a connection whose peer never reads, where messages have `message` bytes at most; 0 without messages.
    pub fn of_silent(&self, buffer: usize, message: usize) -> usize {
        self.fixed + self.silent * buffer + self.messages * message
    }
}

/// When a binary that is traced can be sent messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    /// Never: it makes its own work.
    None,
    /// Once it has said that it listens.
    WhenListening,
    /// Once all its sockets listen, and it has said that it waits.
    WhenWaiting,
    /// One after each line that it prints by itself.
    AfterLines,
}

/// Which of a machine's addresses answers, if a server is bound to all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// The one that was asked.
    FromAsked,
    /// The one that the route to the peer picks: the interface that the server shows does not tell which one was asked.
    FromRoute,
}

/// One binary.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The binary's name, and its file in `src/bin`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The cargo features it needs.
    pub features: &'static [&'static str],
    /// Whether this build has those features.
    pub built: bool,
    /// Where it works.
    pub systems: Systems,
    /// Its system calls, for a server.
    pub calls: Option<Calls>,
    /// What it allocates after its start, for a server.
    pub allocations: Allocations,
    /// Which address answers on a wildcard address, for a server.
    pub answers: Answers,
    /// What it holds of each connection, for a TCP server.
    pub held: Held,
    /// Whether a TCP server reads until nothing is left. One that takes a read of less than it asked for as the last leaves
    /// what stands behind a mark of urgent data (tcp(7)) until more arrives.
    pub reads_all: bool,
    /// The flags with which a TCP server echoes whole messages.
    pub modes: &'static [&'static str],
    /// The flags with which docs/traces shows it.
    pub trace_flags: &'static [&'static str],
    /// When it can be sent messages.
    pub takes_messages: Messages,
    /// The question it answers, in one sentence.
    pub shows: &'static str,
}

impl Row {
    /// Whether it works on this system.
    pub fn works_here(&self) -> bool {
        match self.systems {
            Systems::All => true,
            Systems::Unix => cfg!(unix),
            Systems::LinuxFreeBsd => cfg!(any(target_os = "linux", target_os = "freebsd")),
            Systems::Linux => cfg!(target_os = "linux"),
        }
    }
}

/// The row of the binary `name`.
pub fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

/// All binaries, simplest first.
pub const ROWS: &[Row] = &[
    udp("echo-blocking", &[], true, Systems::All, None, 2, "What does echo cost with nothing but blocking calls?"),
    udp(
        "echo-select",
        &["select"],
        cfg!(feature = "select"),
        Systems::Unix,
        Some("pselect6"),
        3,
        "How does one thread wait for reading and writing with select?",
    ),
    udp(
        "echo-poll",
        &["poll"],
        cfg!(feature = "poll"),
        Systems::LinuxFreeBsd,
        Some("ppoll"),
        3,
        "What does poll do better than select?",
    ),
    udp(
        "echo-poll-drain",
        &["poll"],
        cfg!(feature = "poll"),
        Systems::LinuxFreeBsd,
        Some("ppoll"),
        4,
        "What does it save to wait once for many datagrams?",
    ),
    udp(
        "echo-epoll-level",
        &["epoll"],
        cfg!(feature = "epoll"),
        Systems::Linux,
        Some(EPOLL_WAIT),
        3,
        "What does level-triggered epoll do better than poll?",
    ),
    udp(
        "echo-epoll-edge",
        &["epoll"],
        cfg!(feature = "epoll"),
        Systems::Linux,
        Some(EPOLL_WAIT),
        4,
        "What does edge-triggered epoll ask of the program?",
    ),
    udp(
        "echo-mio-level",
        &["mio"],
        cfg!(feature = "mio"),
        Systems::All,
        Some(EPOLL_WAIT),
        4,
        "How does a program get level-triggered behaviour from mio, which is edge-triggered?",
    ),
    udp(
        "echo-mio-edge",
        &["mio"],
        cfg!(feature = "mio"),
        Systems::All,
        Some(EPOLL_WAIT),
        4,
        "How is mio meant to be used?",
    ),
    awaiting(udp(
        "echo-tokio-await",
        &["tokio"],
        cfg!(feature = "tokio"),
        Systems::All,
        Some(EPOLL_WAIT),
        5,
        "What does a tokio program cost as it is usually written?",
    )),
    awaiting(udp(
        "echo-tokio",
        &["tokio"],
        cfg!(feature = "tokio"),
        Systems::All,
        Some(EPOLL_WAIT),
        5,
        "How does one tokio task receive while its sends are blocked?",
    )),
    udp(
        "echo-tokio-ready",
        &["tokio"],
        cfg!(feature = "tokio"),
        Systems::All,
        Some(EPOLL_WAIT),
        5,
        "What does it save to wait for readiness, and to make the calls oneself?",
    ),
    awaiting(udp(
        "echo-tokio-mpsc",
        &["tokio"],
        cfg!(feature = "tokio"),
        Systems::All,
        Some(EPOLL_WAIT),
        5,
        "What if a reader and a writer task share a bounded channel?",
    )),
    Row {
        allocations: Allocations::PerEcho(1),
        ..not_counting_waits(awaiting(udp(
            "echo-smol",
            &["smol"],
            cfg!(feature = "smol"),
            Systems::All,
            Some("epoll_pwait"),
            11,
            "What does a runtime cost that is put together from small crates?",
        )))
    },
    Row {
        allocations: Allocations::PerWait(1),
        ..udp(
            "echo-smol-ready",
            &["smol"],
            cfg!(feature = "smol"),
            Systems::All,
            Some("epoll_pwait"),
            11,
            "What does it save to wait for smol's readiness, and to make the calls oneself?",
        )
    },
    udp(
        "echo-polling",
        &["polling"],
        cfg!(feature = "polling"),
        Systems::All,
        Some("epoll_pwait"),
        8,
        "How do level-triggered, edge-triggered and one-shot events differ in the same loop?",
    ),
    calling(
        "recvmmsg",
        "sendmmsg",
        udp(
            "echo-mmsg",
            &["mmsg"],
            cfg!(feature = "mmsg"),
            Systems::Linux,
            None,
            2,
            "What do calls that carry many datagrams save?",
        ),
    ),
    Row {
        allocations: Allocations::PerWait(2),
        ..calling(
            "recvmmsg",
            "sendmmsg",
            udp(
                "echo-tokio-batch",
                &["tokio", "mmsg"],
                cfg!(all(feature = "tokio", feature = "mmsg")),
                Systems::Linux,
                Some(EPOLL_WAIT),
                6,
                "How does a runtime's readiness go with the kernel's batches?",
            ),
        )
    },
    calling(
        "recvmsg",
        "sendmsg",
        udp(
            "echo-gso",
            &["gso"],
            cfg!(feature = "gso"),
            Systems::Linux,
            None,
            2,
            "What if one call, and one way through the network stack, carries many datagrams?",
        ),
    ),
    calling(
        "recvmmsg",
        "sendmsg",
        udp(
            "echo-quinn-udp",
            &["quinn-udp"],
            cfg!(feature = "quinn-udp"),
            Systems::Linux,
            None,
            2,
            "What does a QUIC stack's crate for offloads do to a socket?",
        ),
    ),
    Row {
        trace_flags: &["--threads", "1"],
        ..udp(
            "echo-reuseport",
            &["reuseport"],
            cfg!(feature = "reuseport"),
            Systems::Linux,
            None,
            2,
            "How do several cores share one port?",
        )
    },
    ringing(udp(
        "echo-uring",
        &["uring"],
        cfg!(feature = "uring"),
        Systems::Linux,
        None,
        2,
        "What if the kernel is told what to do, instead of asked what could be done?",
    )),
    ringing(udp(
        "echo-uring-multishot",
        &["uring"],
        cfg!(feature = "uring"),
        Systems::Linux,
        None,
        1,
        "What if one receive brings datagram after datagram, in buffers that the kernel picks?",
    )),
    Row {
        kind: Kind::Xdp,
        calls: None,
        answers: Answers::FromAsked,
        ..udp(
            "echo-xdp",
            &["xdp"],
            cfg!(feature = "xdp"),
            Systems::Linux,
            None,
            0,
            "What if the network driver sends the datagram back?",
        )
    },
    Row {
        allocations: Allocations::PerEcho(2),
        ..ringing(udp(
            "echo-compio",
            &["compio"],
            cfg!(feature = "compio"),
            Systems::Linux,
            None,
            2,
            "What does a runtime add to io_uring?",
        ))
    },
    Row {
        // A stack, and the buffer that its read waits with.
        held: Held { fixed: 16 << 10, idle: 1, silent: 1, messages: 0 },
        ..tcp(
            "echo-tcp-threads",
            &[],
            true,
            Systems::All,
            None,
            2,
            "What does TCP echo cost with a thread for each connection?",
        )
    },
    tcp(
        "echo-tcp-epoll",
        &["epoll"],
        cfg!(feature = "epoll"),
        Systems::Linux,
        Some(EPOLL_WAIT),
        3,
        "How does one thread serve many connections with epoll?",
    ),
    tcp(
        "echo-tcp-eventloop",
        &["eventloop"],
        cfg!(feature = "eventloop"),
        Systems::All,
        Some(EPOLL_WAIT),
        3,
        "What is an event loop made of, on Linux, on the BSDs and on Windows?",
    ),
    tcp(
        "echo-tcp-mio",
        &["mio"],
        cfg!(feature = "mio"),
        Systems::All,
        Some(EPOLL_WAIT),
        4,
        "How does one thread serve many connections with mio?",
    ),
    Row {
        held: Held { fixed: 2048, idle: 1, silent: 1, messages: 0 },
        // tokio forgets that a connection was readable after such a read.
        reads_all: false,
        ..awaiting(tcp(
            "echo-tcp-tokio",
            &["tokio"],
            cfg!(feature = "tokio"),
            Systems::All,
            Some(EPOLL_WAIT),
            3,
            "What does a task for each connection cost, in place of a thread?",
        ))
    },
    Row {
        reads_all: false,
        ..tcp(
            "echo-tcp-tokio-pooled",
            &["tokio"],
            cfg!(feature = "tokio"),
            Systems::All,
            Some(EPOLL_WAIT),
            3,
            "How does a task wait for its connection without holding a buffer?",
        )
    },
    Row {
        held: Held { fixed: 2048, idle: 0, silent: 1, messages: 1 },
        modes: &["--lines", "--frames"],
        trace_flags: &["--workers", "1"],
        ..tcp(
            "echo-tcp-registrar",
            &["mio"],
            cfg!(feature = "mio"),
            Systems::All,
            Some(EPOLL_WAIT),
            6,
            "What if one thread polls, and others register and work?",
        )
    },
    Row {
        // One message is held. The allocator keeps some of the room in which others have grown.
        held: Held { fixed: 2048, idle: 0, silent: 1, messages: 2 },
        modes: &["--frames"],
        ..tcp(
            "echo-tcp-reactor",
            &["mio"],
            cfg!(feature = "mio"),
            Systems::All,
            Some(EPOLL_WAIT),
            4,
            "What if a program only says how it reacts to messages and commands?",
        )
    },
    ringing(tcp(
        "echo-tcp-uring",
        &["uring"],
        cfg!(feature = "uring"),
        Systems::Linux,
        None,
        1,
        "How does one thread serve many connections with io_uring?",
    )),
    Row {
        trace_flags: &["--polls", "3", "--interval", "20"],
        ..probe("future-notify", &["futures"], cfg!(feature = "futures"), "Who polls a future again, and when?")
    },
    Row {
        trace_flags: &["--timeout", "20"],
        ..probe("mio-empty", &["mio"], cfg!(feature = "mio"), "What does mio do with nothing registered?")
    },
    Row {
        trace_flags: &["--interval", "400"],
        takes_messages: Messages::AfterLines,
        ..probe(
            "mio-mixed",
            &["mio"],
            cfg!(feature = "mio"),
            "How do socket events and events of another thread meet in one poll?",
        )
    },
    probe("mio-pipe", &["mio"], cfg!(feature = "mio"), "What does a wake-up cost while nobody is polling?"),
    Row {
        takes_messages: Messages::WhenWaiting,
        ..probe(
            "tokio-multisocket-join",
            &["tokio"],
            cfg!(feature = "tokio"),
            "How many futures does join_all poll for one datagram?",
        )
    },
    Row {
        takes_messages: Messages::WhenWaiting,
        ..probe(
            "tokio-multisocket-spawn",
            &["tokio"],
            cfg!(feature = "tokio"),
            "How many tasks are polled for one datagram, with a task for each socket?",
        )
    },
    Row {
        takes_messages: Messages::WhenWaiting,
        ..probe(
            "tokio-multisocket-futuresunordered",
            &["tokio"],
            cfg!(feature = "tokio"),
            "How many futures does FuturesUnordered poll for one datagram?",
        )
    },
    Row {
        systems: Systems::Linux,
        ..probe(
            "probe-edge-undrained",
            &["epoll"],
            cfg!(feature = "epoll"),
            "What becomes of the datagrams that an edge-triggered reader leaves behind?",
        )
    },
    Row {
        systems: Systems::Linux,
        trace_flags: &["--busy", "4"],
        ..probe("probe-starvation", &["epoll"], cfg!(feature = "epoll"), "Who waits while a loop drains a busy socket?")
    },
    Row {
        systems: Systems::Linux,
        trace_flags: &["--rounds", "1", "--without-tokio"],
        ..probe(
            "probe-timer-granularity",
            &["epoll", "tokio"],
            cfg!(all(feature = "epoll", feature = "tokio")),
            "How short can a wait be?",
        )
    },
    Row {
        systems: Systems::Linux,
        trace_flags: &["--sockets", "3", "--rounds", "1"],
        ..probe(
            "probe-many-sockets",
            &["select", "poll", "epoll"],
            cfg!(all(feature = "select", feature = "poll", feature = "epoll")),
            "What does a wait cost when one socket is active among many?",
        )
    },
    Row {
        systems: Systems::Linux,
        trace_flags: &["--rounds", "1", "--burst", "2"],
        ..probe(
            "probe-register-per-wait",
            &["epoll"],
            cfg!(feature = "epoll"),
            "What does a socket that stays registered with epoll cost each send?",
        )
    },
    Row { systems: Systems::Linux, ..probe("probe-icmp", &[], true, "Who hears that nobody listens?") },
    Row {
        systems: Systems::Linux,
        ..probe(
            "probe-wildcard-source",
            &["gso"],
            cfg!(feature = "gso"),
            "Which of its addresses does a server answer from that listens on all of them?",
        )
    },
    Row {
        trace_flags: &["--burst", "2"],
        ..probe(
            "probe-coop",
            &["tokio"],
            cfg!(feature = "tokio"),
            "How much may one tokio task do before the others get their turn?",
        )
    },
    probe(
        "probe-two-wakers",
        &["tokio"],
        cfg!(feature = "tokio"),
        "Who is woken when two tasks wait for the same socket?",
    ),
    probe(
        "probe-join-threshold",
        &["futures"],
        cfg!(feature = "futures"),
        "Why does join_all poll 30 futures for one wake-up, and one of 31?",
    ),
    Row {
        systems: Systems::All,
        ..tool(
            "pingpong",
            &["pingpong"],
            cfg!(feature = "pingpong"),
            "How long does a message take there and back, in one thread and between two?",
        )
    },
    Row { systems: Systems::All, ..tool("say", &[], true, "What does an echo server answer, and how soon?") },
    tool("trace", &[], true, "Which system calls does a binary make?"),
    tool("compare", &["compare"], cfg!(feature = "compare"), "What does each approach cost on this machine?"),
];

const fn udp(
    name: &'static str,
    features: &'static [&'static str],
    built: bool,
    systems: Systems,
    wait: Option<&'static str>,
    per_echo: usize,
    shows: &'static str,
) -> Row {
    let calls = Some(Calls { recv: "recvfrom", send: "sendto", wait, per_echo, awaited: false, counts_waits: true });
    let held = Held { fixed: 0, idle: 0, silent: 0, messages: 0 };
    let (reads_all, modes) = (true, &[]);
    Row {
        name,
        kind: Kind::Udp,
        features,
        built,
        systems,
        calls,
        allocations: Allocations::None,
        answers: Answers::FromRoute,
        held,
        reads_all,
        modes,
        trace_flags: &[],
        takes_messages: Messages::WhenListening,
        shows,
    }
}

const fn tcp(
    name: &'static str,
    features: &'static [&'static str],
    built: bool,
    systems: Systems,
    wait: Option<&'static str>,
    per_echo: usize,
    shows: &'static str,
) -> Row {
    let held = Held { fixed: 2048, idle: 0, silent: 1, messages: 0 };
    let row = udp(name, features, built, systems, wait, per_echo, shows);
    Row { kind: Kind::Tcp, answers: Answers::FromAsked, held, ..row }
}

/// With calls of its own, which carry control data.
const fn calling(recv: &'static str, send: &'static str, row: Row) -> Row {
    let calls = match row.calls {
        Some(calls) => Some(Calls { recv, send, ..calls }),
        None => None,
    };
    Row { calls, answers: Answers::FromAsked, ..row }
}

/// With receives and sends that it awaits.
const fn awaiting(row: Row) -> Row {
    let calls = match row.calls {
        Some(calls) => Some(Calls { awaited: true, ..calls }),
        None => None,
    };
    Row { calls, ..row }
}

/// With waits of which its runtime does not tell.
const fn not_counting_waits(row: Row) -> Row {
    let calls = match row.calls {
        Some(calls) => Some(Calls { counts_waits: false, ..calls }),
        None => None,
    };
    Row { calls, ..row }
}

/// With operations of an io_uring in place of system calls.
const fn ringing(row: Row) -> Row {
    Row { answers: row.answers, ..calling(RING, RING, row) }
}

const fn probe(name: &'static str, features: &'static [&'static str], built: bool, shows: &'static str) -> Row {
    let row = udp(name, features, built, Systems::All, None, 0, shows);
    Row { kind: Kind::Probe, calls: None, takes_messages: Messages::None, ..row }
}

const fn tool(name: &'static str, features: &'static [&'static str], built: bool, shows: &'static str) -> Row {
    Row { kind: Kind::Tool, systems: Systems::Linux, ..probe(name, features, built, shows) }
}
