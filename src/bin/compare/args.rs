//! The command line.

use crate::calls::Source;
use crate::condition::Condition;
use crate::load::Shape;
use crate::results::Parameter;
use crate::subject::Program;
use clap::{ColorChoice, Parser, value_parser};
use echo_lab::catalog::{Kind, ROWS, Row};
use std::path::PathBuf;

/// What does each echo server cost on this machine? Compares them, each with a reference measured directly before
#[derive(Parser)]
#[command(version)]
pub struct Args {
    /// Echo servers of this build (default: all); one with flags of its own in quotes: 'echo-polling --mode edge'
    pub servers: Vec<String>,

    /// List the servers of this build
    #[arg(long)]
    pub list: bool,

    /// Another echo server: a command for the shell that listens on {addr} or {port} of 127.0.0.1. May be repeated
    #[arg(long, value_name = "NAME=COMMAND", value_parser = peer)]
    pub peer: Vec<(String, String)>,

    /// The TCP servers: each flow is a connection, and messages take the place of datagrams
    #[arg(long, conflicts_with = "gso")]
    pub tcp: bool,

    /// The server that the others are compared with. With --tcp: echo-tcp-threads
    #[arg(
        long,
        value_name = "SERVER",
        default_value = "echo-blocking",
        default_value_if("tcp", "true", "echo-tcp-threads")
    )]
    pub reference: String,

    /// Fewer and shorter slices: a first look, with wider intervals
    #[arg(long)]
    pub quick: bool,

    /// Is the client fast enough? Compares it, sending to itself, with each server; exit status 1 if it is not 1.4 times
    /// as fast as the fastest
    #[arg(long)]
    pub self_test: bool,

    /// Closed loop: datagrams or messages outstanding (default: 64; with --gso 150, so that each flow fills its sends;
    /// with --tcp one for each connection)
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=10_000))]
    window: Option<u16>,

    /// Client sockets over which they are spread. With --gso: 3. With --tcp: 50 connections
    #[arg(long, visible_alias = "connections", value_name = "N", default_value_t = 4, default_value_ifs([("gso", "true", "3"), ("tcp", "true", "50")]), value_parser = value_parser!(u16).range(1..=10_000))]
    flows: u16,

    /// Bytes of each datagram or message; several, separated by commas, are taken in turn
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64", value_parser = value_parser!(u16).range(16..=65507))]
    pub size: Vec<u16>,

    /// Send and receive with segmentation offload (UDP_SEGMENT, UDP_GRO)
    #[arg(long)]
    pub gso: bool,

    /// Open loop, for latency: datagrams or messages per second
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub rate: u32,

    /// With --tcp: N more connections, on which nothing comes
    #[arg(long, value_name = "N", requires = "tcp", default_value_t = 0, value_parser = value_parser!(u16).range(..=50_000))]
    pub idle: u16,

    /// Vary a setting as well, with fewer rounds for each value. May be repeated
    #[arg(long, value_name = "SETTING")]
    pub sweep: Vec<Parameter>,

    /// Count system calls in this way (default: tracepoints if permitted, else strace)
    #[arg(long, value_name = "WAY")]
    pub calls: Option<Source>,

    /// A condition, such as 'echo-epoll-edge.x_cpu < 1.2'; exit status 99 if one fails or cannot be decided within the
    /// noise. May be repeated
    #[arg(long, value_name = "CONDITION")]
    pub assert: Vec<Condition>,

    /// Write the results as JSON (docs/compare.schema.json)
    #[arg(long, value_name = "FILE")]
    pub export_json: Option<PathBuf>,

    /// Write a line of comma-separated figures for each server
    #[arg(long, value_name = "FILE")]
    pub export_csv: Option<PathBuf>,

    /// Write the table as Markdown
    #[arg(long, value_name = "FILE")]
    pub export_markdown: Option<PathBuf>,

    /// Write the latencies of each server as HdrHistogram text: SERVER.hgrm, SERVER.uncorrected.hgrm
    #[arg(long, value_name = "FOLDER")]
    pub export_hdr: Option<PathBuf>,

    /// Write the page: charts, and servers side by side with source and trace; one file, which needs nothing else
    #[arg(long, value_name = "FILE")]
    pub export_html: Option<PathBuf>,

    /// Put the table and this command between the markers `<!-- compare -->` (`<!-- compare --tcp -->`) and
    /// `<!-- end of compare -->`
    #[arg(long, value_name = "FILE")]
    pub splice: Option<PathBuf>,

    /// Colours in the table: auto is on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

fn peer(text: &str) -> Result<(String, String), String> {
    let (name, command) = text.split_once('=').ok_or("the form is NAME=COMMAND")?;
    if !command.contains("{addr}") && !command.contains("{port}") {
        return Err("the command has to contain {addr} or {port}".into());
    }
    Ok((name.into(), command.into()))
}

/// The servers that this build can compare.
pub fn own(tcp: bool) -> impl Iterator<Item = &'static Row> {
    let kind = if tcp { Kind::Tcp } else { Kind::Udp };
    ROWS.iter().filter(move |row| row.kind == kind && row.built && row.works_here())
}

impl Args {
    /// The load that is asked for.
    pub fn shape(&self) -> Shape {
        let sizes = self.size.iter().copied().map(usize::from).collect();
        let (flows, window) = (self.flows.into(), self.window().into());
        Shape { flows, window, sizes, gso: self.gso, tcp: self.tcp, idle: self.idle.into() }
    }

    fn window(&self) -> u16 {
        let default = match (self.tcp, self.gso) {
            (true, _) => self.flows,
            (_, true) => 150,
            _ => 64,
        };
        self.window.unwrap_or(default)
    }

    /// The servers to compare, the reference first; or what is wrong with the arguments.
    pub fn programs(&self) -> Result<Vec<(String, Program)>, String> {
        if self.flows > self.window() {
            return Err(format!("--flows {} needs a --window at least as large, not {}", self.flows, self.window()));
        }
        if self.sweep.contains(&Parameter::Sockets) && !self.tcp {
            return Err("--sweep sockets needs --tcp; for UDP see probe-many-sockets".into());
        }
        if self.gso && self.size.len() > 1 {
            return Err("--gso cuts a send into datagrams of one --size, not several".into());
        }
        let folder = std::env::current_exe().map_err(|error| format!("cannot find this program's folder: {error}"))?;
        let mut programs: Vec<_> = own(self.tcp)
            .map(|row| (row.name.to_string(), Program::Own(folder.with_file_name(row.name), Vec::new())))
            .collect();
        for (name, command) in &self.peer {
            if programs.iter().any(|(known, _)| known == name) {
                return Err(format!("--peer {name}: there is a server of that name; take another"));
            }
            programs.push((name.clone(), Program::Peer(command.clone())));
        }
        let asked = self.servers.iter().map(String::as_str).chain([self.reference.as_str()]);
        for name in asked.chain(self.assert.iter().map(Condition::subject)) {
            if programs.iter().any(|(known, _)| known == name) {
                continue;
            }
            let (server, flags) = name.split_once(' ').unwrap_or((name, ""));
            let flags: Vec<_> = flags.split_whitespace().map(str::to_string).collect();
            let program = match programs.iter().find(|(known, _)| known == server) {
                Some((_, Program::Own(path, _))) => Program::Own(path.clone(), flags),
                _ => {
                    let likeness = |(known, _): &(String, Program)| strsim::jaro_winkler(known, server);
                    let nearest = programs.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
                    let nearest = nearest.map_or("", |(nearest, _)| nearest);
                    return Err(format!(
                        "no server {server:?} in this build; did you mean {nearest}? --list shows all"
                    ));
                }
            };
            programs.push((name.to_string(), program));
        }
        let named = |name: &String| self.servers.contains(name) || self.peer.iter().any(|(peer, _)| peer == name);
        programs.retain(|(name, _)| *name == self.reference || named(name) || self.servers.is_empty());
        programs.sort_by_key(|(name, _)| *name != self.reference);
        Ok(programs)
    }
}
