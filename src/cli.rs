//! The flags that every echo server takes.

use crate::catalog;
use clap::{Args, Command, value_parser};
use std::net::SocketAddr;

/// The contract's flags. A server with none of its own calls [`parse`]; one with its own flattens this into them and
/// calls [`parse_as`].
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

/// The flags of every TCP echo server. One with none of its own gets them from [`parse_as`] as they are.
#[derive(Args, Clone, Debug)]
pub struct StreamArgs {
    /// Local address and TCP port; port 0 lets the kernel pick a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2000")]
    pub bind: SocketAddr,

    /// Bytes read from one connection at a time. While some of them wait to be sent, the server does not read from it
    /// (backpressure)
    #[arg(long, value_name = "BYTES", default_value_t = 65536, value_parser = value_parser!(u32).range(1..=16 << 20))]
    pub buffer: u32,

    /// A line on standard error for each connection
    #[arg(short, long)]
    pub verbose: bool,

    /// The summary as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The flags of a server that sends and receives in batches.
#[cfg(feature = "mmsg")]
#[derive(Args)]
pub struct BatchArgs {
    /// Those of every server.
    #[command(flatten)]
    pub server: ServerArgs,

    /// Datagrams received, and sent, in one call
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u16).range(1..=1024))]
    pub batch: u16,
}

/// The command line of the binary `bin` (`env!("CARGO_BIN_NAME")`), described as the catalogue does.
/// Help ends the process with status 0, wrong usage with status 2.
pub fn parse(bin: &'static str) -> ServerArgs {
    parse_as(bin)
}

/// As [`parse`], for a server that flattens [`ServerArgs`] into flags of its own.
pub fn parse_as<A: Args>(bin: &'static str) -> A {
    let about = catalog::find(bin).map_or("", |row| row.shows);
    let command = A::augment_args(Command::new(bin)).version(env!("CARGO_PKG_VERSION")).about(about);
    A::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}
