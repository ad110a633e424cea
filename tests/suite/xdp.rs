//! The contract, on a veth pair: each check has two network namespaces of its own, which end with its thread.

use crate::command_line::help;
use crate::conformance::echo_from_many;
use crate::server::{Client, Ended, PATIENCE, Server, bin, content, number, summary};
use crate::signals::{at_random_moments, stops_under_flood};
use crate::traces::steady;
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use socket2::{Domain, Protocol, Socket, Type};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks() -> Vec<Check> {
    let table: [(&str, Needs, Run); 22] = [
        ("sizes", Needs::Namespaces, |row| in_namespaces(row, |pair| sizes(pair, V4))),
        ("sizes_ipv6", Needs::Namespaces, |row| in_namespaces(row, |pair| sizes(pair, V6))),
        ("order_of_one_sender", Needs::Namespaces, |row| in_namespaces(row, order)),
        ("many_senders", Needs::Namespaces, |row| in_namespaces(row, many_senders)),
        ("no_call_for_an_echo", Needs::Namespaces, |row| in_namespaces(row, no_call)),
        ("echoes_while_the_process_is_stopped", Needs::Namespaces, |row| in_namespaces(row, while_stopped)),
        ("leaves_alone_what_is_not_for_it", Needs::Namespaces, |row| in_namespaces(row, leaves_alone)),
        ("refused_sources", Needs::Namespaces, |row| in_namespaces(row, refused)),
        ("refused_sources_ipv6", Needs::Namespaces, |row| in_namespaces(row, refused_ipv6)),
        ("checksums", Needs::Namespaces, |row| in_namespaces(row, checksums)),
        ("count", Needs::Namespaces, |row| in_namespaces(row, count)),
        ("too_big", Needs::Namespaces, |row| in_namespaces(row, too_big)),
        ("summary_text", Needs::Namespaces, |row| in_namespaces(row, summary_text)),
        ("sigterm", Needs::Namespaces, |row| in_namespaces(row, |pair| one_signal(pair, libc::SIGTERM))),
        ("sigint", Needs::Namespaces, |row| in_namespaces(row, |pair| one_signal(pair, libc::SIGINT))),
        ("sigkill", Needs::Namespaces, |row| in_namespaces(row, killed)),
        ("signals_at_random_moments", Needs::Namespaces, |row| in_namespaces(row, random_moments)),
        ("sigterm_under_flood", Needs::Namespaces, |row| in_namespaces(row, flood)),
        ("errors", Needs::Namespaces, |row| in_namespaces(row, errors)),
        ("old_kernel", Needs::Namespaces, |row| in_namespaces(row, old_kernel)),
        ("verifier_says_no", Needs::Namespaces, |row| in_namespaces(row, verifier_says_no)),
        ("help", Needs::Nothing, help),
    ];
    table.map(|(name, needs, run)| check(name, needs, run)).into()
}

const V4: &str = "10.177.0.1";
const V6: &str = "fd77::1";

/// Whether this process may make namespaces.
pub fn can_run() -> bool {
    static CAN: LazyLock<bool> = LazyLock::new(|| {
        let namespace = thread::spawn(|| new_namespace().is_ok()).join().unwrap();
        namespace && Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    *CAN
}

/// The network of the calling thread becomes a new one, which lives as long as the file is open, or the thread lives.
pub fn new_namespace() -> io::Result<File> {
    // SAFETY: no memory is involved.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => File::open("/proc/thread-self/ns/net"),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A veth pair: one end in the namespace of the calling thread, the client's; one in that of the server.
struct Pair {
    row: &'static Row,
    server: File,
    client: File,
    /// On the client's end: without any program there, what is sent to it from a program is dropped.
    pass: Option<Server>,
}

fn in_namespaces(row: &'static Row, run: impl Fn(&Pair) + Send + 'static) {
    let check = thread::spawn(move || {
        let client = new_namespace().unwrap();
        let server = thread::spawn(|| new_namespace().unwrap()).join().unwrap();
        let mut pair = Pair { row, server, client, pass: None };
        let other = format!("/proc/{}/fd/{}", std::process::id(), pair.server.as_raw_fd());
        pair.ip(&pair.client, &["link", "add", "echo0", "type", "veth", "peer", "name", "echo0", "netns", &other]);
        for (namespace, last) in [(&pair.server, 1), (&pair.client, 2)] {
            let [v4, v6] = [format!("10.177.0.{last}/24"), format!("fd77::{last}/64")];
            pair.ip(namespace, &["link", "set", "lo", "up"]);
            pair.ip(namespace, &["address", "add", &v4, "dev", "echo0"]);
            pair.ip(namespace, &["address", "add", &v6, "dev", "echo0", "nodad"]);
            pair.ip(namespace, &["link", "set", "echo0", "up"]);
        }
        // Until the kernel has taken notice that both ends are up, it sends nothing by them.
        let limit = Instant::now() + PATIENCE;
        while [&pair.server, &pair.client]
            .iter()
            .any(|end| !pair.ip(end, &["link", "show", "echo0"]).contains("state UP"))
        {
            assert!(Instant::now() < limit, "the veth pair is not up");
            thread::sleep(Duration::from_millis(5));
        }
        let mut command = pair.command(&pair.client, bin(row.name));
        let passing = Server::spawn_until(command.args(["--interface", "echo0", "--pass"]), "passing on echo0");
        pair.pass = Some(passing);
        run(&pair);
    });
    if let Err(panic) = check.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Pair {
    fn command(&self, namespace: &File, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let descriptor = namespace.as_raw_fd();
        let mut command = Command::new(program);
        // SAFETY: setns(2) is safe between fork and exec; the descriptor is open in the child, too.
        unsafe {
            command.pre_exec(move || match libc::setns(descriptor, libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        };
        command
    }

    fn ip(&self, namespace: &File, arguments: &[&str]) -> String {
        let output = self.command(namespace, "ip").args(arguments).output().unwrap();
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether the server's end has a program in its driver.
    fn is_attached(&self) -> bool {
        self.ip(&self.server, &["link", "show", "echo0"]).contains("prog/xdp")
    }

    fn start(&self, ip: &str, flags: &[&str]) -> Server {
        let mut command = self.command(&self.server, bin(self.row.name));
        let server = Server::spawn(command.args(self.flags(ip)).arg("--json").args(flags), None);
        assert!(self.is_attached());
        server
    }

    fn flags(&self, ip: &str) -> Vec<String> {
        let bind = SocketAddr::new(ip.parse().unwrap(), 0);
        ["--interface", "echo0", "--bind", &bind.to_string()].map(str::to_string).into()
    }

    /// Runs the server to its end, which comes soon: its status and standard error.
    fn fails(&self, change: impl FnOnce(&mut Command), flags: &[&str]) -> (Option<i32>, String) {
        let mut command = self.command(&self.server, bin(self.row.name));
        change(command.args(flags));
        let output = command.output().unwrap();
        assert_eq!(output.stdout, b"");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

/// A client in the namespace of the calling thread.
fn client(server: SocketAddr) -> Client {
    Client::at(if server.is_ipv4() { "0.0.0.0" } else { "::" }, server)
}

fn sizes(pair: &Pair, ip: &str) {
    let server = pair.start(ip, &[]);
    let client = client(server.addr);
    let longest = if ip == V4 { 1472 } else { 1452 };
    let sizes = (0..20).chain([100, 1000, longest - 3, longest - 2, longest - 1, longest]);
    for (seed, len) in sizes.clone().enumerate() {
        client.echo(&content(seed as u64, len));
    }
    // Longer ones are fragments on the way: they go to the socket.
    for (seed, len) in [longest + 1, 9000, 65507].into_iter().enumerate() {
        client.echo(&content(seed as u64, len));
    }
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), sizes.count() as u64 + 3, "{summary}");
    // One for each long datagram, and one for the signal.
    assert_eq!(number(&summary["waits"]), 4, "{summary}");
}

fn order(pair: &Pair) {
    let server = pair.start(V4, &[]);
    client(server.addr).echo_windowed(1000, 16);
    server.stop();
}

fn many_senders(pair: &Pair) {
    let server = pair.start(V4, &[]);
    // The threads that it starts are in this thread's namespace.
    echo_from_many(server.addr, client);
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), 1000, "{summary}");
}

/// The process is not even woken: so it allocates nothing for a datagram, too.
fn no_call(pair: &Pair) {
    let log = std::env::temp_dir().join(format!("echo-lab-xdp-{}", std::process::id()));
    let mut command = pair.command(&pair.server, "strace");
    command.args(["-D", "-f", "-e", "signal=none", "-o"]).arg(&log).arg(bin(pair.row.name)).arg("--json");
    let server = Server::spawn(command.args(pair.flags(V4)), Some(log));
    server.until_it_waits();
    client(server.addr).echo_numbers(0..1000);
    let (summary, ended) = server.stop();
    assert_eq!((number(&summary["echoed"]), number(&summary["waits"])), (1000, 1), "{summary}");
    let calls = steady(&ended.trace);
    assert!(calls[0].starts_with("ppoll(") && calls[0].contains("ERESTARTNOHAND"), "{calls:#?}");
    assert!(!calls.iter().any(|call| call.starts_with("recvfrom") && !call.contains("EAGAIN")), "{calls:#?}");
    assert!(!calls.iter().any(|call| call.starts_with("sendto")), "{calls:#?}");
    for what in ["BPF_MAP_CREATE", "BPF_PROG_LOAD", "BPF_LINK_CREATE"] {
        assert!(ended.trace.contains(what), "{}", ended.trace);
    }
}

fn while_stopped(pair: &Pair) {
    let server = pair.start(V4, &[]);
    server.signal(libc::SIGSTOP);
    client(server.addr).echo_numbers(0..100);
    server.signal(libc::SIGCONT);
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), 100, "{summary}");
}

/// Other ports, addresses and protocols are the kernel's; so is the same port by another interface, where the socket answers.
fn leaves_alone(pair: &Pair) {
    pair.ip(&pair.server, &["address", "add", "10.177.0.3/24", "dev", "echo0"]);
    let server = pair.start(V4, &[]);
    let mut next = server.addr;
    next.set_port(server.addr.port() ^ 1);
    for elsewhere in [next, SocketAddr::from(([10, 177, 0, 3], server.addr.port()))] {
        let client = client(elsewhere);
        client.send(b"for nobody");
        let error = client.0.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{elsewhere}: {error}");
    }
    let error = std::net::TcpStream::connect(server.addr).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    client(server.addr).echo_numbers(0..10);

    let (addr, descriptor) = (server.addr, pair.server.as_raw_fd());
    let same_host = thread::spawn(move || {
        // SAFETY: no memory is involved; the descriptor outlives this thread, which is joined.
        assert_eq!(unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) }, 0);
        client(addr).echo_numbers(0..5);
    });
    same_host.join().unwrap();
    let (summary, _) = server.stop();
    assert_eq!((number(&summary["received"]), number(&summary["waits"])), (15, 6), "{summary}");
}

/// A UDP datagram over IPv4 from any source. A `checksum` of `None` is computed.
fn datagram(source: (Ipv4Addr, u16), target: SocketAddr, data: &[u8], checksum: Option<u16>) -> Vec<u8> {
    let SocketAddr::V4(target) = target else { panic!("{target} is not IPv4") };
    let length = 8 + data.len() as u16;
    let udp = [[source.1, target.port(), length, 0].map(u16::to_be_bytes).concat(), data.to_vec()].concat();
    // The kernel fills in the lengths and the checksum of the IP header (raw(7)).
    let mut packet =
        [&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0][..], &source.0.octets(), &target.ip().octets(), &udp].concat();
    let checksum = checksum.unwrap_or_else(|| !sum(&packet));
    packet[26..28].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The one's complement sum of a UDP datagram with its addresses (RFC 768): 0xffff with the right checksum.
fn sum(packet: &[u8]) -> u16 {
    let udp = packet[20..].chunks(2).map(|it| u32::from(it[0]) << 8 | it.get(1).map_or(0, |byte| u32::from(*byte)));
    let addresses = packet[12..20].chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1]));
    let mut sum = udp.chain(addresses).sum::<u32>() + 17 + packet.len() as u32 - 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn raw(protocol: i32) -> Socket {
    let raw = Socket::new(Domain::IPV4, Type::from(libc::SOCK_RAW), Some(Protocol::from(protocol))).unwrap();
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    raw
}

fn refused(pair: &Pair) {
    let server = pair.start(V4, &[]);
    let own = Ipv4Addr::new(10, 177, 0, 1);
    let here = Ipv4Addr::new(10, 177, 0, 2);
    let raw = raw(libc::IPPROTO_RAW);
    let port = server.addr.port();
    let send = |source| raw.send_to(&datagram(source, server.addr, b"evil", None), &server.addr.into()).unwrap();
    for _ in 0..5 {
        send((here, 0));
        send((own, port));
        send((here, port));
    }
    // No source of a datagram: passed to the kernel, which drops it.
    for nobody in [[224, 0, 0, 1], [127, 0, 0, 1], [255; 4]] {
        send((nobody.into(), 4000));
    }
    // Not UDP, though it looks like it; and with more in the packet than in the datagram, which is for the socket.
    let mut packet = datagram((here, 4000), server.addr, b"other", None);
    packet[9] = 253; // For experiments (RFC 3692).
    raw.send_to(&packet, &server.addr.into()).unwrap();
    let mut packet = datagram((here, 4000), server.addr, b"short", None);
    packet.extend(b"and more");
    raw.send_to(&packet, &server.addr.into()).unwrap();
    let client = client(server.addr);
    client.echo_numbers(0..20);
    let (summary, _) = server.stop();
    let refused = &summary["refused"];
    assert_eq!((number(&refused["source_port_zero"]), number(&refused["own_port"])), (5, 10), "{summary}");
    assert_eq!((number(&summary["received"]), number(&summary["waits"])), (36, 2), "{summary}");
}

/// Only the source port can be chosen by a raw socket over IPv6. The kernel computes the checksum.
fn refused_ipv6(pair: &Pair) {
    let server = pair.start(V6, &[]);
    let raw = Socket::new(Domain::IPV6, Type::from(libc::SOCK_RAW), Some(Protocol::UDP)).unwrap();
    let on: libc::c_int = 6;
    let port = server.addr.port();
    // SAFETY: the option, the place of the checksum (ipv6(7)), is read from `on`, whose size is given.
    let set =
        unsafe { libc::setsockopt(raw.as_raw_fd(), libc::SOL_IPV6, libc::IPV6_CHECKSUM, (&raw const on).cast(), 4) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    let mut target = server.addr;
    target.set_port(0);
    for source in [0, 0, 0, port, 4000] {
        let header = [source, port, 8 + 4, 0].map(u16::to_be_bytes).concat();
        raw.send_to(&[&header[..], b"evil"].concat(), &target.into()).unwrap();
    }
    client(server.addr).echo_numbers(0..20);
    let (summary, _) = server.stop();
    let refused = &summary["refused"];
    // The server's own port of another host is refused as well.
    assert_eq!((number(&refused["source_port_zero"]), number(&refused["own_port"])), (3, 1), "{summary}");
    assert_eq!((number(&summary["echoed"]), number(&summary["waits"])), (21, 1), "{summary}");
}

/// A sender on the same machine leaves the checksum unfinished: it has to be right afterwards. Any other, and none, stays.
fn checksums(pair: &Pair) {
    let server = pair.start(V4, &[]);
    let (socket, listener) = (client(server.addr), raw(libc::IPPROTO_UDP));
    let next = || {
        let mut packet = [0; 2048];
        let len = (&listener).read(&mut packet).unwrap();
        packet[..len].to_vec()
    };
    for len in (0..70).chain([500, 1471, 1472]) {
        socket.echo(&content(len as u64, len));
        let packet = next();
        assert_eq!(packet.len(), 28 + len);
        assert_eq!(sum(&packet), 0xffff, "{len} bytes");
    }
    // A checksum that comes out as 0, which would say that there is none, is all ones (RFC 768).
    let here = Ipv4Addr::new(10, 177, 0, 2);
    let port = socket.0.local_addr().unwrap().port();
    let word = !sum(&datagram((here, port), server.addr, &[0; 2], Some(0)));
    socket.echo(&word.to_be_bytes());
    assert_eq!(next()[26..28], [0xff; 2]);

    let sender = raw(libc::IPPROTO_RAW);
    for (checksum, data) in [(None, &b"right"[..]), (Some(0), b"none"), (Some(0x1234), b"wrong")] {
        let sent = datagram((here, 4000), server.addr, data, checksum);
        sender.send_to(&sent, &server.addr.into()).unwrap();
        let packet = next();
        assert_eq!((&packet[26..28], &packet[28..]), (&sent[26..28], data), "the checksum and the data as they came");
    }
    server.stop();
}

fn count(pair: &Pair) {
    let server = pair.start(V4, &["--count", "5"]);
    let client = client(server.addr);
    client.echo_numbers(0..5);
    client.send(b"many");
    assert_eq!(client.number_within(Duration::from_millis(100)), None);
    let summary = summary(&server.wait());
    assert_eq!((number(&summary["received"]), number(&summary["echoed"])), (5, 5));
    assert!(!pair.is_attached());
}

fn too_big(pair: &Pair) {
    let server = pair.start(V4, &["--max-size", "100", "--count", "2"]);
    let client = client(server.addr);
    client.echo(&content(1, 100));
    client.send(&content(2, 101)); // For the program,
    client.send(&content(3, 65507)); // for the socket.
    thread::sleep(Duration::from_millis(100));
    client.echo(&content(4, 99));
    assert_eq!(number(&summary(&server.wait())["too_big"]), 2);
}

fn summary_text(pair: &Pair) {
    let mut command = pair.command(&pair.server, bin(pair.row.name));
    let server = Server::spawn(command.args(pair.flags(V4)).args(["--count", "2"]), None);
    client(server.addr).echo_numbers(0..2);
    let ended = server.wait();
    assert!(ended.status.success());
    assert_eq!(ended.lines.len(), 1, "{:?}", ended.lines);
    assert!(ended.lines[0].starts_with("received 2, echoed 2, refused 0"), "{:?}", ended.lines);
    assert!(ended.stderr.starts_with("warning: 10.177.0.1:"), "{}", ended.stderr);
}

fn one_signal(pair: &Pair, signal: i32) {
    let server = pair.start(V4, &[]);
    client(server.addr).echo_numbers(0..3);
    server.signal(signal);
    let ended = server.wait();
    assert_eq!(number(&summary(&ended)["echoed"]), 3);
    assert!(!pair.is_attached());
}

/// Nothing is left behind, and the next one can start.
fn killed(pair: &Pair) {
    for _ in 0..3 {
        let server = pair.start(V4, &[]);
        client(server.addr).echo_numbers(0..3);
        server.signal(libc::SIGKILL);
        let Ended { status, .. } = server.wait();
        assert!(!status.success());
        let limit = Instant::now() + PATIENCE;
        while pair.is_attached() {
            assert!(Instant::now() < limit, "the program is still there");
        }
    }
}

fn random_moments(pair: &Pair) {
    at_random_moments(20, || {
        let server = pair.start(V4, &[]);
        let client = client(server.addr);
        (server, client)
    });
}

fn flood(pair: &Pair) {
    let server = pair.start(V4, &[]);
    let client = client(server.addr);
    let summary = stops_under_flood(server, &client);
    assert!(number(&summary["echoed"]) > 0, "{summary}");
}

fn errors(pair: &Pair) {
    let nothing = |_: &mut Command| ();
    let table = [
        (vec!["--interface", "nosuch0"], "Error: cannot find the interface nosuch0; ip link lists them: "),
        (
            vec!["--interface", "echo0", "--bind", "0.0.0.0:2000"],
            "Error: cannot echo for 0.0.0.0:2000: try one address of echo0\n",
        ),
        (vec!["--interface", "echo0", "--bind", "192.0.2.1:2000"], "Error: cannot bind UDP 192.0.2.1:2000: "),
        (vec!["--interface", "lo"], "Error: cannot attach the program to lo: "),
    ];
    for (flags, expected) in table {
        let (status, stderr) = pair.fails(nothing, &flags);
        assert!(status == Some(1) && stderr.starts_with(expected), "{flags:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let (status, stderr) = pair.fails(nothing, &[]);
    assert!(status == Some(2) && stderr.contains("--interface <NAME>"), "{stderr}");

    // CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF (capabilities(7)).
    let drop_capabilities = |command: &mut Command| {
        // SAFETY: prctl(2) is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                match [12, 21, 38, 39].iter().all(|capability| libc::prctl(libc::PR_CAPBSET_DROP, *capability) == 0) {
                    true => Ok(()),
                    false => Err(io::Error::last_os_error()),
                }
            })
        };
    };
    let (status, stderr) = pair.fails(drop_capabilities, &["--interface", "echo0", "--bind", "127.0.0.1:0"]);
    assert_eq!(status, Some(1), "{stderr}");
    assert!(
        stderr.ends_with("Operation not permitted (os error 1); try as root, or with CAP_BPF and CAP_NET_ADMIN\n"),
        "{stderr}"
    );

    // One program an interface, one server a port.
    let server = pair.start(V4, &[]);
    let at = server.addr.to_string();
    let (status, stderr) = pair.fails(nothing, &["--interface", "echo0", "--bind", &at]);
    assert!(status == Some(1) && stderr.starts_with(&format!("Error: cannot bind UDP {at}: ")), "{stderr}");
    let (status, stderr) = pair.fails(nothing, &["--interface", "echo0", "--bind", "127.0.0.1:0"]);
    assert!(
        status == Some(1) && stderr.ends_with("; it has a program already; try ip link set dev NAME xdp off\n"),
        "{stderr}"
    );
    client(server.addr).echo_numbers(0..3);
    server.stop();
}

/// One that does not know a command, or an instruction, says EINVAL.
fn old_kernel(pair: &Pair) {
    for (call, what) in [(1, "create a BPF map"), (2, "load the program"), (3, "attach the program to echo0")] {
        let expected = format!("Error: cannot {what}: Invalid argument (os error 22); it needs Linux 5.12\n");
        assert_eq!(spoilt(pair, &format!("error=EINVAL:when={call}")), (Some(1), expected));
    }
}

/// The program is made one instruction long: the verifier's reason, not only the kernel's EINVAL, is in the sentence.
fn verifier_says_no(pair: &Pair) {
    let type_and_count = if cfg!(target_endian = "big") { "0000000600000001" } else { "0600000001000000" };
    let (status, stderr) = spoilt(pair, &format!("poke_enter=@arg2={type_and_count}:when=2..3"));
    let expected =
        "Error: cannot load the program: Invalid argument (os error 22); it needs Linux 5.12; the verifier says: ";
    assert!(status == Some(1) && stderr.starts_with(expected), "{stderr}");
    assert!(stderr.ends_with("last insn is not an exit or jmp\n") && stderr.lines().count() == 1, "{stderr}");
}

/// What the server says when something is done to its calls of bpf(2).
fn spoilt(pair: &Pair, how: &str) -> (Option<i32>, String) {
    let mut command = pair.command(&pair.server, "strace");
    command.args(["-o", "/dev/null", "-e", "trace=bpf", "-e", &format!("inject=bpf:{how}")]);
    let output = command.arg(bin(pair.row.name)).args(["--interface", "echo0", "--bind", "127.0.0.1:0"]).output();
    let output = output.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}
