//! The flags that every echo server takes.

use crate::catalog;
use clap::{ArgMatches, Args, Command, FromArgMatches, value_parser};
use std::net::SocketAddr;

/// The contract's flags. A server with none of its own calls [`parse`]; one with its own flattens this into its parser.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Local address and UDP port; port 0 lets the kernel pick a free one. Binding other than loopback lets others
    /// reach the server, and UDP echo can be used for reflection
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2000")]
    pub bind: SocketAddr,

    /// Datagrams held while sending would block. When so many wait, the server stops receiving (backpressure) and the
    /// kernel's receive buffer takes what arrives
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u16).range(1..=4096))]
    pub queue: u16,

    /// Longest datagram that is echoed; a longer one is counted as too big, never cut
    #[arg(long, value_name = "BYTES", default_value_t = 65507, value_parser = value_parser!(u16).range(..=65527))]
    pub max_size: u16,

    /// End after N echoes
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Ask for a socket receive buffer (SO_RCVBUF) of this size; the kernel's limit is net.core.rmem_max
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u32).range(1..=i32::MAX as i64))]
    pub recv_buffer: Option<u32>,

    /// A line on standard error for each datagram
    #[arg(short, long)]
    pub verbose: bool,

    /// The summary as one JSON object
    #[arg(long)]
    pub json: bool,
}

// The flag of servers that can wait for many sockets. (A doc comment would become the command's description.)
#[derive(Args, Clone, Debug)]
struct Sockets {
    /// Sockets to wait for. One is the server; nothing can reach the others: they show what waiting for many costs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=50_001))]
    sockets: u16,
}

/// The command line of the binary `bin` (`env!("CARGO_BIN_NAME")`), described as the catalogue does.
/// Help ends the process with status 0, wrong usage with status 2.
pub fn parse(bin: &'static str) -> ServerArgs {
    from_matches(&command(bin).get_matches())
}

/// As [`parse`], for a server that can wait for many sockets: how many it is to open beside its own.
pub fn parse_with_idle(bin: &'static str) -> (ServerArgs, u16) {
    let matches = Sockets::augment_args(command(bin)).get_matches();
    (from_matches(&matches), from_matches::<Sockets>(&matches).sockets - 1)
}

fn command(bin: &'static str) -> Command {
    let about = catalog::find(bin).map_or("", |row| row.shows);
    ServerArgs::augment_args(Command::new(bin)).version(env!("CARGO_PKG_VERSION")).about(about)
}

fn from_matches<A: FromArgMatches>(matches: &ArgMatches) -> A {
    A::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
}
