//! For scripts/soak: keeps servers busy for long, and says what became of their memory, their descriptors and their CPU time.
//! Prints a line for each, and ends with status 1 if one of them lost an echo, grew, or did not come to rest.
//! Usage: soak [--echoes N] [--seconds N] [SERVER …]

#[cfg(target_os = "linux")]
#[expect(dead_code, reason = "the suite needs more of it")]
#[path = "../tests/suite/server.rs"]
mod server;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use super::server::{Client, PATIENCE, Server, content, number};
    use clap::Parser;
    use echo_lab::catalog::{Kind, ROWS, Row, find};
    use echo_lab::report::log_line;
    use serde_json::Value;
    use std::fs;
    use std::io::{Read, Write};
    use std::net::{Shutdown, SocketAddr, TcpStream};
    use std::panic::catch_unwind;
    use std::process::ExitCode;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    /// Senders of datagrams, or threads that open and close connections.
    const CLIENTS: u64 = 4;
    /// Datagrams that one sender has on their way: those of all senders fit into the smallest receive buffer.
    const WINDOW: u64 = 16;
    /// What resident memory may grow by after the first tenth, in KiB: page tables and the like, no buffer for each echo.
    const GROWTH: u64 = 256;

    /// Keeps servers busy for long: is anything lost, do memory and descriptors stay as they are?
    #[derive(Parser)]
    struct Args {
        /// Datagrams for each UDP server
        #[arg(long, default_value_t = 10_000_000)]
        echoes: u64,
        /// Seconds of connections that come and go for each TCP server
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Servers; all that work on the loopback interface if none is named
        servers: Vec<String>,
    }

    pub fn main() -> ExitCode {
        let args = Args::parse();
        let can_run = |row: &&Row| row.built && row.works_here() && matches!(row.kind, Kind::Udp | Kind::Tcp);
        let mut rows: Vec<_> = ROWS.iter().filter(can_run).collect();
        if !args.servers.is_empty() {
            rows.clear();
            for name in &args.servers {
                let Some(row) = find(name).filter(can_run) else {
                    log_line(format_args!(
                        "error: cannot soak {name}: no server of this build on the loopback interface"
                    ));
                    return ExitCode::from(2);
                };
                rows.push(row);
            }
        }
        println!(
            "{:22} {:>11} {:>7} {:>17} {:>11} {:>12}",
            "server", "echoes", "seconds", "memory KiB", "descriptors", "CPU ms, idle"
        );
        let mut status = ExitCode::SUCCESS;
        for row in rows {
            // What went wrong has been said by the panic.
            if !catch_unwind(|| soak(row, &args)).unwrap_or(false) {
                println!("{:22} FAILED", row.name);
                status = ExitCode::FAILURE;
            }
        }
        status
    }

    /// Resident memory in KiB, and open descriptors.
    fn held(server: &Server) -> (u64, usize) {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
        (server.memory(), descriptors)
    }

    /// CPU time of all threads: /proc/PID/task/TID/schedstat, in ns.
    fn cpu(server: &Server) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
        let used = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
        Duration::from_nanos(used.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum())
    }

    /// A tenth of the load, to fill what is filled once, then the rest, which must leave everything as it was.
    fn soak(row: &Row, args: &Args) -> bool {
        let server = Server::start(row, &[]);
        let start = Instant::now();
        let load = |part: u32| match row.kind {
            Kind::Udp => echo(server.addr, args.echoes * u64::from(part) / 10),
            _ => churn(server.addr, Duration::from_secs(args.seconds) * part / 10),
        };
        let first = load(1);
        server.until_it_waits();
        let before = held(&server);
        let total = first + load(9);
        server.until_it_waits();
        let took = start.elapsed().as_secs_f64();
        // What belongs to a connection may go a moment after the connection. A server that serves with threads ends them.
        let limit = Instant::now() + PATIENCE;
        while held(&server).1 > before.1 && Instant::now() < limit {
            thread::sleep(Duration::from_millis(10));
        }
        let after = held(&server);
        let used = cpu(&server);
        thread::sleep(Duration::from_secs(1));
        let idle = cpu(&server).saturating_sub(used);
        // A connection that is reset is still owed something.
        let (summary, _) = if row.kind == Kind::Udp { server.stop() } else { server.stop_with_rest() };
        println!(
            "{:22} {total:11} {took:7.1} {:>8} {:>8} {:5} {:5} {:12.2}",
            row.name,
            before.0,
            after.0,
            before.1,
            after.1,
            idle.as_secs_f64() * 1e3
        );
        let count = |name: &str| number(&summary[name]);
        let whole = match row.kind {
            Kind::Udp => (count("received"), count("echoed")) == (total, total),
            _ => (count("accepted"), count("closed")) == (total, total),
        };
        if !whole || summary["kernel_drops"].as_u64().is_some_and(|drops| drops > 0) {
            println!("{:22} not all of {total}: {}", row.name, Value::to_string(&summary));
        }
        whole && after.0 <= before.0 + GROWTH && after.1 <= before.1 && idle < Duration::from_millis(1)
    }

    /// Echoes `count` numbers: all come back, those of each sender in order. How many.
    fn echo(server: SocketAddr, count: u64) -> u64 {
        let each = count / CLIENTS;
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let client = Client::new(server);
                    let mut buffer = [0; 64];
                    for number in 0..each + WINDOW {
                        if number < each {
                            buffer[..8].copy_from_slice(&number.to_be_bytes());
                            client.send(&buffer);
                        }
                        if let Some(expected) = number.checked_sub(WINDOW) {
                            let len = client.0.recv(&mut buffer).unwrap_or_else(|error| panic!("{expected}: {error}"));
                            assert_eq!((len, &buffer[..8]), (64, &expected.to_be_bytes()[..]), "lost or out of order");
                        }
                    }
                });
            }
        });
        each * CLIENTS
    }

    /// Connections that echo something and end, in every way that a client has. How many.
    fn churn(server: SocketAddr, duration: Duration) -> u64 {
        let (end, number) = (Instant::now() + duration, AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while Instant::now() < end {
                        connection(server, number.fetch_add(1, Ordering::Relaxed));
                    }
                });
            }
        });
        number.into_inner()
    }

    fn connection(server: SocketAddr, number: u64) {
        let mut stream = TcpStream::connect(server).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Of all sizes that a socket's buffer takes, mostly small.
        let sent = content(number, [1, 100, 1500, 20_000][number as usize % 4]);
        let mut found = vec![0; sent.len()];
        stream.write_all(&sent).expect("written");
        if number % 5 != 0 {
            stream.read_exact(&mut found).expect("an echo");
            assert!(found == sent, "other bytes came back than the {} sent", sent.len());
        }
        if number % 3 == 0 {
            stream.shutdown(Shutdown::Write).expect("shut down");
            found.clear();
            stream.read_to_end(&mut found).expect("the end");
            assert_eq!(found.len(), if number % 5 == 0 { sent.len() } else { 0 });
        } else {
            // A reset: no port waits for its time to pass, of which there are only some thousand.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set to reset");
        }
    }
}
