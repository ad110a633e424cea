//! The command line, and the order of a run.

use crate::load::{Load, Shape, Tally};
use crate::results::{Condition, Failure, Figures, Latency, Noise, Results, Settings, environment, export};
use crate::stats::Estimate;
use crate::subject::{Program, Subject, pin};
use clap::Parser;
use echo_lab::catalog::{self, Kind};
use echo_lab::report::print_line;
use echo_lab::{Attempt, Error, Result, stop};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exit status when a condition fails or cannot be decided.
const CONDITION_FAILED: u8 = 99;
/// The name under which the reference is measured against itself.
const AGAIN: &str = "the reference again";

/// What does each echo server cost on this machine? Compares them, each with a reference measured directly before
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Echo servers of this build (default: all)
    servers: Vec<String>,
    /// List the servers of this build
    #[arg(long)]
    list: bool,
    /// Another echo server: a command for the shell that listens on {addr} or {port} of 127.0.0.1. May be repeated
    #[arg(long, value_name = "NAME=COMMAND", value_parser = peer)]
    peer: Vec<(String, String)>,
    /// The server that the others are compared with
    #[arg(long, value_name = "SERVER", default_value = "echo-blocking")]
    reference: String,
    /// Fewer and shorter slices: a first look, with wider intervals
    #[arg(long)]
    quick: bool,
    /// Datagrams outstanding
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: u16,
    /// Client sockets over which they are spread
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    flows: u16,
    /// Bytes of each datagram
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u16).range(16..=65507))]
    size: u16,
    /// A condition, such as 'echo-epoll-edge.x_cpu < 1.2'; exit status 99 if one fails. May be repeated
    #[arg(long, value_name = "CONDITION")]
    assert: Vec<Condition>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    export_json: Option<PathBuf>,
}

fn peer(text: &str) -> std::result::Result<(String, String), String> {
    let (name, command) = text.split_once('=').ok_or("the form is NAME=COMMAND")?;
    if !command.contains("{addr}") && !command.contains("{port}") {
        return Err("the command has to contain {addr} or {port}".into());
    }
    Ok((name.into(), command.into()))
}

pub fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let own: Vec<_> = catalog::ROWS.iter().filter(|row| row.kind == Kind::Udp && row.built).collect();
    if args.list {
        own.iter().try_for_each(|row| print_line(format_args!("{:18} {}", row.name, row.shows)))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.flows > args.window {
        return Ok(usage(&format!("--flows {} needs a --window at least as large, not {}", args.flows, args.window)));
    }
    let folder = std::env::current_exe().attempt("find this program's folder")?;
    let mut programs: Vec<_> =
        own.iter().map(|row| (row.name.to_string(), Program::Own(folder.with_file_name(row.name)))).collect();
    programs.extend(args.peer.iter().map(|(name, command)| (name.clone(), Program::Peer(command.clone()))));
    let asked = args.assert.iter().map(Condition::subject);
    for name in args.servers.iter().map(String::as_str).chain([args.reference.as_str()]).chain(asked) {
        if !programs.iter().any(|(known, _)| known == name) {
            let nearest = programs
                .iter()
                .max_by(|(a, _), (b, _)| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            let nearest = nearest.map_or("", |(nearest, _)| nearest);
            return Ok(usage(&format!("no server {name:?} in this build; did you mean {nearest}? --list shows all")));
        }
    }
    let is_peer = |name: &String| args.peer.iter().any(|(peer, _)| peer == name);
    programs.retain(|(name, _)| {
        args.servers.is_empty() || args.servers.contains(name) || *name == args.reference || is_peer(name)
    });
    // SAFETY: the action does nothing.
    unsafe { stop::on_signal(|| ()) }?;
    let results = measure(&args, &programs)?;
    print_line(results.table().trim_end())?;
    if let Some(path) = &args.export_json {
        export(path, &results)?;
    }
    let failed: Vec<_> = args.assert.iter().filter_map(|condition| condition.check(&results).err()).collect();
    failed.iter().for_each(|what| eprintln!("{what}"));
    Ok(match (failed.is_empty(), results.failures.is_empty()) {
        (false, _) => ExitCode::from(CONDITION_FAILED),
        (_, false) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

fn usage(sentence: &str) -> ExitCode {
    eprintln!("error: {sentence}");
    ExitCode::from(2)
}

/// One subject, its client, and what its slices gave.
struct Runner {
    subject: Subject,
    load: Load,
    total: Tally,
    eps: Vec<f64>,
    cpu: Vec<f64>,
    x_eps: Vec<f64>,
    x_cpu: Vec<f64>,
    switches: u64,
    failure: Option<String>,
}

/// Echoes per second, and nanoseconds of the server's CPU time per echo.
struct Slice {
    eps: f64,
    cpu: f64,
}

impl Runner {
    fn new(name: &str, program: &Program, core: Option<usize>, shape: Shape) -> Result<Self> {
        let subject = Subject::start(name, program, core, shape.size)?;
        let load = Load::new(subject.addr, shape).attempt(format_args!("connect to {name}"))?;
        let (eps, cpu, x_eps, x_cpu) = Default::default();
        Ok(Self { subject, load, total: Tally::new(), eps, cpu, x_eps, x_cpu, switches: 0, failure: None })
    }

    fn slice(&mut self, duration: Duration) -> Result<Slice> {
        let (cpu, switches) = (self.subject.cpu()?, self.subject.context_switches());
        let tally = self.load.run(duration).attempt(format_args!("load {}", self.subject.name))?;
        let cpu = self.subject.cpu()? - cpu;
        self.switches += self.subject.context_switches().saturating_sub(switches);
        self.total.add(&tally);
        if tally.received == 0 {
            return Err(Error::new(format!("{} answered nothing in a whole slice", self.subject.name)));
        }
        let echoes = tally.received as f64;
        Ok(Slice { eps: echoes / tally.elapsed.as_secs_f64(), cpu: cpu.as_nanos() as f64 / echoes })
    }
}

fn measure(args: &Args, programs: &[(String, Program)]) -> Result<Results> {
    let (rounds, slice) = if args.quick { (11, 30) } else { (27, 60) };
    let duration = Duration::from_millis(slice);
    let shape = Shape { flows: args.flows.into(), window: args.window.into(), size: args.size.into() };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pinned = cores >= 2;
    match pinned {
        true => pin(Pid::from_raw(0), 1)?,
        false => eprintln!("warning: one core: servers and client take turns on it, which the figures contain"),
    }
    let core = pinned.then_some(0);

    let mut failures = Vec::new();
    let mut runners = Vec::new();
    let (_, program) = programs.iter().find(|(name, _)| *name == args.reference).expect("checked with the arguments");
    let mut reference = Runner::new(&args.reference, program, core, shape)?;
    runners.push(Runner::new(AGAIN, program, core, shape)?);
    for (name, program) in programs.iter().filter(|(name, _)| *name != args.reference) {
        match Runner::new(name, program, core, shape) {
            Ok(runner) => runners.push(runner),
            Err(error) => failures.push(Failure { name: name.clone(), reason: error.to_string() }),
        }
    }

    let start = Instant::now();
    for round in 0..rounds {
        fastrand::shuffle(&mut runners);
        for runner in runners.iter_mut().filter(|runner| runner.failure.is_none()) {
            if stop::requested() {
                return Err(Error::new("interrupted: every server has been ended, nothing is reported"));
            }
            let base = reference.slice(duration)?;
            match runner.slice(duration) {
                Ok(slice) => {
                    runner.eps.push(slice.eps);
                    runner.cpu.push(slice.cpu);
                    runner.x_eps.push(slice.eps / base.eps);
                    runner.x_cpu.push(slice.cpu / base.cpu);
                    reference.eps.push(base.eps);
                    reference.cpu.push(base.cpu);
                }
                Err(error) => runner.failure = Some(error.to_string()),
            }
        }
        progress(round + 1, rounds, start);
    }

    let again = runners.iter().position(|runner| runner.subject.name == AGAIN).expect("it was added above");
    let again = runners.swap_remove(again);
    let noise =
        (Estimate::of(&again.x_eps).zip(Estimate::of(&again.x_cpu))).map(|(x_eps, x_cpu)| Noise { x_eps, x_cpu });
    let noise = noise.ok_or_else(|| Error::new("the reference could not be measured against itself"))?;
    (reference.x_eps, reference.x_cpu) = (vec![1.0], vec![1.0]);
    runners.push(reference);
    let mut subjects = Vec::new();
    for mut runner in runners {
        match runner.failure.take() {
            Some(reason) => failures.push(Failure { name: runner.subject.name.clone(), reason }),
            None => subjects.extend(figures(runner, &noise, duration)),
        }
    }
    subjects.sort_by(|a, b| a.x_cpu.median.total_cmp(&b.x_cpu.median));
    Ok(Results {
        schema: 1,
        command: std::env::args().skip(1).collect(),
        environment: environment(pinned),
        settings: Settings { flows: shape.flows, window: shape.window, size: shape.size, rounds, slice_ms: slice },
        reference: args.reference.clone(),
        noise,
        subjects,
        failures,
    })
}

fn figures(mut runner: Runner, noise: &Noise, duration: Duration) -> Option<Figures> {
    let total = &runner.total;
    let echoes = total.received.max(1) as f64;
    let (x_eps, x_cpu) = (Estimate::of(&runner.x_eps)?, Estimate::of(&runner.x_cpu)?);
    let (eps, cpu) = (Estimate::of(&runner.eps)?, Estimate::of(&runner.cpu)?);
    // The noise on both sides of 1, as wide as it was found on the wider one.
    let width = (noise.x_cpu.high - 1.0).max(1.0 - noise.x_cpu.low).max(0.0);
    let figures = Figures {
        name: runner.subject.name.clone(),
        echoes_per_second: eps.median,
        cpu_ns_per_echo: cpu.median,
        x_eps,
        x_cpu,
        tie: x_cpu.overlaps(1.0 - width, 1.0 + width),
        context_switches_per_echo: runner.switches as f64 / echoes,
        memory_kib: runner.subject.memory(),
        received: total.received,
        lost: total.lost,
        lost_in_receive_buffer: runner.subject.kernel_drops(),
        duplicates: total.duplicates,
        reordered: total.reordered,
        corrupt: total.corrupt,
        latency_ns: Latency::from(&total.latency),
        calls_per_echo_one_outstanding: None,
        calls_per_echo_loaded: None,
    };
    let one = Shape { flows: 1, window: 1, size: 64 };
    let alone =
        Load::new(runner.subject.addr, one).ok().and_then(|mut load| calls(&runner.subject, &mut load, duration));
    let loaded = calls(&runner.subject, &mut runner.load, duration);
    Some(Figures { calls_per_echo_one_outstanding: alone, calls_per_echo_loaded: loaded, ..figures })
}

/// System calls for each echo under `load`; `None` where strace cannot be used.
fn calls(subject: &Subject, load: &mut Load, duration: Duration) -> Option<BTreeMap<String, f64>> {
    let mut echoes = 0;
    let work = || load.run(duration).attempt("load").map(|tally| echoes = tally.received);
    let calls = subject.calls(work).ok()?;
    Some(calls.into_iter().map(|(name, count)| (name, count as f64 / echoes.max(1) as f64)).collect())
}

/// On a terminal only: how far, and how much longer.
fn progress(done: usize, rounds: usize, start: Instant) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let left = start.elapsed().mul_f64((rounds - done) as f64 / done as f64).as_secs();
        let end = if done == rounds { "\r\x1b[K" } else { "" };
        let _ = write!(out, "\rround {done} of {rounds}, {left} s left {end}");
    }
}
