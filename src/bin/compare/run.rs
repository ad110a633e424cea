//! The order of a run.

use crate::args::{self, Args};
use crate::calls::Meter;
use crate::load::{Load, Shape, Tally};
use crate::results::{
    CallsPerEcho, Closed, Failure, Figures, Open, Parameter, Percentiles, Point, PointFigures, Ratio, Results,
    Settings, Sweep, environment,
};
use crate::stats::{Estimate, Noise, ranks};
use crate::subject::{Program, Subject, pin};
use crate::{export, table};
use clap::{ColorChoice, Parser};
use echo_lab::report::{log_line, print_line};
use echo_lab::{Attempt, Error, Result, stop};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exit status when a condition fails or cannot be decided.
const CONDITION_FAILED: u8 = 99;
/// The name under which the reference is measured against itself.
const AGAIN: &str = "the reference again";
/// How much more than the fastest server the client has to manage.
const SPARE: f64 = 1.4;
/// How long a server may leave all that it is sent without an answer.
const SILENCE: Duration = Duration::from_secs(1);

pub fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if args.list {
        args::own(args.tcp).try_for_each(|row| print_line(format_args!("{:22} {}", row.name, row.shows)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let programs = match args.programs() {
        Ok(programs) => programs,
        Err(sentence) => {
            log_line(format_args!("error: {sentence}"));
            return Ok(ExitCode::from(2));
        }
    };
    args.splice.iter().try_for_each(|path| export::splice(path, args.tcp, None))?;
    // SAFETY: the action does nothing.
    unsafe { stop::on_signal(|| ()) }?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut lab = Lab { cores, notes: Vec::new(), bar: ProgressBar::hidden() };
    match lab.core() {
        Some(_) => pin(1).attempt("pin this process to core 1")?,
        None => lab.notes.push("one core: servers and client take turns on it, which the figures contain".into()),
    }
    if args.self_test {
        return lab.self_test(&args, &programs);
    }
    let (results, tallies) = lab.measure(&args, &programs)?;
    let text = table::terminal(&results);
    let coloured = match args.color {
        ColorChoice::Auto => anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never,
        choice => choice == ColorChoice::Always,
    };
    match coloured {
        true => print_line(text.trim_end())?,
        false => print_line(anstream::adapter::strip_str(text.trim_end()))?,
    }
    export::all(&args, &results, &tallies)?;
    let failed: Vec<_> = args.assert.iter().filter_map(|condition| condition.check(&results).err()).collect();
    failed.iter().for_each(log_line);
    Ok(match (failed.is_empty(), results.failures.is_empty()) {
        (false, _) => ExitCode::from(CONDITION_FAILED),
        (_, false) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// What the parts of a run share.
struct Lab {
    cores: usize,
    notes: Vec<String>,
    bar: ProgressBar,
}

/// What is measured, and how long.
#[derive(Clone)]
struct Plan {
    shape: Shape,
    rounds: usize,
    slice: Duration,
    /// Open loop as well, at so many datagrams per second.
    rate: Option<u32>,
}

/// One subject, its client, and what its slices gave.
struct Runner {
    subject: Subject,
    load: Load,
    closed: Work,
    open: Work,
    eps: Vec<f64>,
    cpu: Vec<f64>,
    x_eps: Vec<f64>,
    x_cpu: Vec<f64>,
    failure: Option<String>,
}

/// What came of a load, and what it cost the server.
struct Work {
    tally: Tally,
    cpu: Duration,
    switches: u64,
}

impl Work {
    fn none() -> Self {
        Self { tally: Tally::new(), cpu: Duration::ZERO, switches: 0 }
    }

    fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        self.cpu += other.cpu;
        self.switches += other.switches;
    }

    /// `count` for each echo.
    fn per_echo(&self, count: u64) -> f64 {
        count as f64 / self.tally.received.max(1) as f64
    }
}

/// Echoes per second, and nanoseconds of the server's CPU time per echo.
struct Slice {
    eps: f64,
    cpu: f64,
}

impl Runner {
    fn new(name: &str, program: &Program, core: Option<usize>, plan: &Plan) -> Result<Self> {
        let subject = Subject::start(name, program, core, &plan.shape)?;
        let load = Load::new(Some(subject.addr), &plan.shape).attempt(format_args!("make a client for {name}"))?;
        let (eps, cpu, x_eps, x_cpu) = Default::default();
        let (closed, open) = (Work::none(), Work::none());
        Ok(Self { subject, load, closed, open, eps, cpu, x_eps, x_cpu, failure: None })
    }

    /// A slice of load.
    fn load(&mut self, duration: Duration, rate: Option<u32>) -> Result<Work> {
        let start = Instant::now();
        loop {
            let (cpu, switches) = (self.subject.cpu()?, self.subject.context_switches());
            let tally = self.load.run(duration, rate).attempt(format_args!("load {}", self.subject.name))?;
            let cpu = self.subject.cpu()? - cpu;
            if tally.received > 0 {
                return Ok(Work { tally, cpu, switches: self.subject.context_switches().saturating_sub(switches) });
            }
            // A slice without an answer tells of the machine, which others use. A second of them tells of the server.
            if start.elapsed() > SILENCE {
                return Err(Error::new(format!("{} answered nothing for {SILENCE:?}", self.subject.name)));
            }
        }
    }

    fn closed(&mut self, duration: Duration) -> Result<Slice> {
        let work = self.load(duration, None)?;
        self.closed.add(&work);
        let eps = work.tally.received as f64 / work.tally.elapsed.as_secs_f64();
        Ok(Slice { eps, cpu: work.per_echo(work.cpu.as_nanos() as u64) })
    }

    fn open(&mut self, duration: Duration, rate: u32) -> Result<()> {
        let work = self.load(duration, Some(rate))?;
        self.open.add(&work);
        Ok(())
    }

    fn keep(&mut self, slice: &Slice, base: &Slice) {
        self.eps.push(slice.eps);
        self.cpu.push(slice.cpu);
        self.x_eps.push(slice.eps / base.eps);
        self.x_cpu.push(slice.cpu / base.cpu);
    }

    fn point(&self, noise: &Noise) -> Option<PointFigures> {
        let ratio = |values, noise: &Estimate| {
            let estimate = Estimate::of(values)?;
            let tie = estimate.overlaps(1.0 - noise.noise(), 1.0 + noise.noise());
            Some(Ratio { estimate, tie })
        };
        Some(PointFigures {
            name: self.subject.name.clone(),
            echoes_per_second: Estimate::of(&self.eps)?.median,
            cpu_ns_per_echo: Estimate::of(&self.cpu)?.median,
            x_eps: ratio(&self.x_eps, &noise.x_eps)?,
            x_cpu: ratio(&self.x_cpu, &noise.x_cpu)?,
        })
    }
}

/// Subjects that ran beside the reference.
struct Paired {
    runners: Vec<Runner>,
    noise: Noise,
    failures: Vec<Failure>,
}

impl Lab {
    /// Where the servers run, if there is a choice.
    fn core(&self) -> Option<usize> {
        (self.cores >= 2).then_some(0)
    }

    fn measure(&mut self, args: &Args, programs: &[(String, Program)]) -> Result<(Results, Vec<(String, Tally)>)> {
        let (rounds, slice) = if args.quick { (11, 30) } else { (27, 60) };
        let slice = Duration::from_millis(slice);
        let plan = Plan { shape: args.shape(), rounds, slice, rate: Some(args.rate) };
        let environment = environment(self.cores, self.core().is_some());
        let sweeps: Vec<_> = args.sweep.iter().map(|parameter| (*parameter, points(*parameter, &plan))).collect();
        let steps = |plan: &Plan| (plan.rounds * programs.len()) as u64;
        let of_sweeps: u64 = sweeps.iter().flat_map(|(_, points)| points).map(|(_, plan)| steps(plan)).sum();
        self.bar = ProgressBar::new(steps(&plan) + of_sweeps);
        let style = ProgressStyle::with_template("{bar:40} {msg}, {eta} left").attempt("set up the progress bar")?;
        self.bar.set_style(style);

        let Paired { runners, noise, mut failures } = self.paired(&plan, programs)?;
        self.bar.set_message("system calls");
        let meter = Meter::new(args.calls);
        let uncounted = |reason| self.notes.push(format!("system calls were not counted: {reason}"));
        let meter = meter.map_err(uncounted).ok();
        self.notes.extend(meter.iter().filter_map(|meter| meter.note.clone()));
        let (mut subjects, mut tallies) = (Vec::new(), Vec::new());
        for mut runner in runners {
            let calls = meter.as_ref().map(|meter| calls(meter, &mut runner, &plan)).transpose();
            let calls = calls.unwrap_or_else(|reason| {
                self.notes.push(format!("{}: system calls were not counted: {reason}", runner.subject.name));
                None
            });
            subjects.extend(figures(&runner, &noise, calls));
            tallies.push((runner.subject.name.clone(), runner.open.tally));
        }
        let intervals: Vec<_> = subjects.iter().map(|figures| figures.closed_loop.x_cpu.estimate).collect();
        subjects.iter_mut().zip(ranks(&intervals, noise.x_cpu.noise())).for_each(|(figures, rank)| figures.rank = rank);
        let cost = |figures: &Figures| figures.closed_loop.x_cpu.estimate.median;
        subjects.sort_by(|a, b| a.rank.cmp(&b.rank).then(cost(a).total_cmp(&cost(b))));

        let mut swept = Vec::new();
        for (parameter, plans) in sweeps {
            let mut points = Vec::new();
            for (value, plan) in plans {
                let Paired { runners, noise, failures } = self.paired(&plan, programs)?;
                let mut subjects: Vec<_> = runners.iter().filter_map(|runner| runner.point(&noise)).collect();
                subjects.sort_by(|a, b| a.cpu_ns_per_echo.total_cmp(&b.cpu_ns_per_echo));
                points.push(Point { value, noise, subjects, failures });
            }
            swept.push(Sweep { parameter, points });
        }
        self.bar.finish_and_clear();
        failures.sort_by(|a, b| a.name.cmp(&b.name));
        let results = Results {
            schema: 1,
            command: std::env::args().skip(1).collect(),
            environment,
            settings: Settings {
                flows: plan.shape.flows,
                window: plan.shape.window,
                sizes: plan.shape.sizes,
                gso: plan.shape.gso,
                tcp: plan.shape.tcp,
                rate: args.rate,
                idle: args.idle.into(),
                rounds,
                slice_ms: slice.as_millis() as u64,
                calls_counted_by: meter.map(|meter| meter.source),
            },
            reference: args.reference.clone(),
            noise,
            subjects,
            failures,
            notes: std::mem::take(&mut self.notes),
            sweeps: swept,
        };
        Ok((results, tallies))
    }

    /// All subjects at once, in slices, each next to one of the reference, which is the first program.
    fn paired(&mut self, plan: &Plan, programs: &[(String, Program)]) -> Result<Paired> {
        // The client has the connections to all servers at once.
        let each = if plan.shape.tcp { plan.shape.flows + plan.shape.idle } else { 0 };
        allow_descriptors(each * (programs.len() + 1));
        let mut failures = Vec::new();
        let mut runners = Vec::new();
        let (name, program) = &programs[0];
        let mut reference = Runner::new(name, program, self.core(), plan)?;
        let mut again = Runner::new(AGAIN, program, self.core(), plan)?;
        for (name, program) in &programs[1..] {
            self.bar.set_message(format!("starting {name}"));
            match Runner::new(name, program, self.core(), plan) {
                Ok(runner) => runners.push(runner),
                Err(error) => failures.push(Failure { name: name.clone(), reason: error.to_string() }),
            }
        }
        'rounds: for round in 1..=plan.rounds {
            self.bar.set_message(format!("round {round} of {}", plan.rounds));
            fastrand::shuffle(&mut runners);
            for runner in runners.iter_mut().chain([&mut again]).filter(|runner| runner.failure.is_none()) {
                not_interrupted()?;
                self.bar.inc(1);
                let base = match reference.closed(plan.slice) {
                    Ok(base) => base,
                    Err(error) => {
                        reference.failure = Some(format!("{error}; the rounds before it are kept"));
                        break 'rounds;
                    }
                };
                let slice = runner.closed(plan.slice);
                match slice
                    .and_then(|slice| plan.rate.map_or(Ok(()), |rate| runner.open(plan.slice, rate)).map(|()| slice))
                {
                    Ok(slice) => {
                        runner.keep(&slice, &base);
                        reference.keep(&base, &base);
                    }
                    Err(error) => runner.failure = Some(error.to_string()),
                }
            }
        }
        let within = again.x_cpu.iter().filter(|ratio| (0.9..=1.1).contains(*ratio)).count();
        let within_ten_percent = within as f64 / again.x_cpu.len().max(1) as f64;
        let noise = Estimate::of(&again.x_eps).zip(Estimate::of(&again.x_cpu));
        let noise = noise.map(|(x_eps, x_cpu)| Noise { x_eps, x_cpu, within_ten_percent }).ok_or_else(|| {
            let why = again.failure.or(reference.failure.clone()).unwrap_or_default();
            Error::new(format!("the reference could not be measured against itself: {why}"))
        })?;
        // Its latency was measured on the second process of the reference.
        reference.open = again.open;
        runners.push(reference);
        let failed = |runner: &Runner| {
            let reason = runner.failure.clone()?;
            Some(Failure { name: runner.subject.name.clone(), reason })
        };
        failures.extend(runners.iter().filter_map(failed));
        runners.retain(|runner| runner.failure.is_none());
        Ok(Paired { runners, noise, failures })
    }

    /// The client sends to itself: it does all that it does with a server, and there is no server. That against each.
    fn self_test(&mut self, args: &Args, programs: &[(String, Program)]) -> Result<ExitCode> {
        let plan = Plan { shape: args.shape(), rounds: 11, slice: Duration::from_millis(30), rate: None };
        let mut alone = Load::new(None, &plan.shape).attempt("make a client")?;
        let mut runners = Vec::new();
        for (name, program) in programs {
            runners.push((Runner::new(name, program, self.core(), &plan)?, Vec::new()));
        }
        for _ in 0..plan.rounds {
            fastrand::shuffle(&mut runners);
            for (runner, ratios) in &mut runners {
                not_interrupted()?;
                let slice = runner.closed(plan.slice)?;
                let tally = alone.run(plan.slice, None).attempt("load the client with itself")?;
                runner.eps.push(slice.eps);
                ratios.push(tally.received as f64 / tally.elapsed.as_secs_f64() / slice.eps);
            }
        }
        let mut enough = true;
        runners.sort_by(|(a, _), (b, _)| a.subject.name.cmp(&b.subject.name));
        for (runner, ratios) in &runners {
            if let (Some(ratio), Some(eps)) = (Estimate::of(ratios), Estimate::of(&runner.eps)) {
                enough &= ratio.median >= SPARE;
                let Estimate { median, low, high } = ratio;
                let name = &runner.subject.name;
                print_line(format_args!(
                    "{name:22} {:9.0} echoes/s, the client alone {median:.2} times as many ({low:.2}-{high:.2})",
                    eps.median
                ))?;
            }
        }
        let verdict = if enough { "fast enough" } else { "too slow: it may limit what is measured" };
        print_line(format_args!("client: {verdict} (bound: {SPARE})"))?;
        Ok(if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The values of a sweep, each with its plan.
fn points(parameter: Parameter, plan: &Plan) -> Vec<(usize, Plan)> {
    let quick = Plan { rounds: 9, slice: Duration::from_millis(30), rate: None, ..plan.clone() };
    let shape = &quick.shape;
    let point = |value| match parameter {
        Parameter::Sockets => {
            Plan { shape: Shape { flows: 1, window: 1, idle: value - 1, ..shape.clone() }, ..quick.clone() }
        }
        Parameter::Size => {
            // As many as a receive buffer of the default size takes.
            let window = shape.window.min(100_000 / (value + 1000)).max(1);
            let flows = shape.flows.min(window);
            Plan { shape: Shape { flows, window, sizes: vec![value], ..shape.clone() }, ..quick.clone() }
        }
        Parameter::Window => {
            let flows = shape.flows.min(value);
            Plan { shape: Shape { flows, window: value, ..shape.clone() }, ..quick.clone() }
        }
    };
    let values: &[usize] = match parameter {
        // The client would need 10 000 connections to each server at once.
        Parameter::Sockets => &[10, 100, 1000],
        Parameter::Size => &[16, 64, 256, 1024, 4096, 16_384, 65_507],
        Parameter::Window => &[1, 4, 16, 64, 256],
    };
    values.iter().map(|value| (*value, point(*value))).collect()
}

/// Lets the servers open so many sockets. What is beyond the hard limit they report themselves.
fn allow_descriptors(sockets: usize) {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let needed = (sockets as u64 + 64).max(soft).min(hard);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, needed, hard);
    }
}

fn not_interrupted() -> Result<()> {
    match stop::requested() {
        true => Err(Error::new("interrupted: every server has been ended, nothing is reported")),
        false => Ok(()),
    }
}

fn figures(runner: &Runner, noise: &Noise, calls: Option<CallsPerEcho>) -> Option<Figures> {
    let PointFigures { name, echoes_per_second, cpu_ns_per_echo, x_eps, x_cpu } = runner.point(noise)?;
    let (closed, open) = (&runner.closed.tally, &runner.open.tally);
    Some(Figures {
        name,
        rank: 0,
        closed_loop: Closed {
            echoes_per_second,
            cpu_ns_per_echo,
            x_eps,
            x_cpu,
            context_switches_per_echo: runner.closed.per_echo(runner.closed.switches),
            received: closed.received,
            lost: closed.lost,
            lost_in_receive_buffer: runner.subject.kernel_drops(),
            duplicates: closed.duplicates,
            reordered: closed.reordered,
            corrupt: closed.corrupt,
            latency_ns: Percentiles::from(&closed.latency),
        },
        open_loop: Open {
            received: open.received,
            lost: open.lost,
            unsent: open.unsent,
            cpu_ns_per_echo: runner.open.per_echo(runner.open.cpu.as_nanos() as u64),
            context_switches_per_echo: runner.open.per_echo(runner.open.switches),
            corrected_ns: Percentiles::from(&open.corrected),
            uncorrected_ns: Percentiles::from(&open.latency),
        },
        calls,
        memory_kib: runner.subject.memory(),
    })
}

/// System calls for each echo, in passes of their own.
fn calls(meter: &Meter, runner: &mut Runner, plan: &Plan) -> Result<CallsPerEcho> {
    let one = Shape { flows: 1, window: 1, sizes: vec![64], gso: false, tcp: plan.shape.tcp, idle: 0 };
    let mut one = Load::new(Some(runner.subject.addr), &one).attempt("make a client")?;
    let count = |load: &mut Load, duration, rate| {
        let mut echoes = 0;
        let work = || load.run(duration, rate).attempt("load").map(|tally| echoes = tally.received);
        let calls = meter.count(runner.subject.id(), work)?;
        Ok::<_, Error>(calls.into_iter().map(|(name, count)| (name, count as f64 / echoes.max(1) as f64)).collect())
    };
    // A server may have a thread for the connection: it is to be there when the counters are attached.
    one.run(Duration::from_millis(5), Some(1000)).attempt("load")?;
    // One outstanding, and apart, so that even a server that is traced has gone back to its wait.
    let one_outstanding = count(&mut one, Duration::from_millis(100), Some(1000))?;
    Ok(CallsPerEcho { one_outstanding, loaded: count(&mut runner.load, plan.slice, None)? })
}
