//! What a run found. docs/compare.schema.json is made from these types and their comments.

use crate::calls::Source;
use crate::stats::{Estimate, Noise};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
#[cfg(test)]
use std::path::Path;

/// Everything that one run found. `schema` grows when a field changes its meaning or goes; new fields may come.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Results {
    /// The version of this form.
    pub schema: u32,
    /// The arguments of the run.
    pub command: Vec<String>,
    pub environment: Environment,
    pub settings: Settings,
    /// The server that the others are compared with.
    pub reference: String,
    /// The reference against itself: no difference within this can be told.
    pub noise: Noise,
    /// Cheapest first.
    pub subjects: Vec<Figures>,
    pub failures: Vec<Failure>,
    /// What is missing or reduced, why, and what would help.
    pub notes: Vec<String>,
    pub sweeps: Vec<Sweep>,
}

/// Where it ran.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    /// Of this tool and its servers.
    pub version: &'static str,
    /// When it began: RFC 3339, UTC.
    pub date: String,
    pub kernel: String,
    pub cpu: String,
    pub cores: usize,
    /// Servers on core 0, client on core 1.
    pub pinned: bool,
    /// The frequency governor of core 0; `null` where there is none to be seen.
    pub governor: Option<String>,
    /// The processor's vulnerabilities and what the kernel does about them, where it is affected.
    pub mitigations: BTreeMap<String, String>,
    /// The libraries that this build uses, with their versions.
    pub crates: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Settings {
    /// Client sockets; over TCP: connections.
    pub flows: usize,
    /// Datagrams or messages outstanding over all flows, closed loop.
    pub window: usize,
    /// Bytes of the datagrams or messages, in turn.
    pub sizes: Vec<usize>,
    /// Whether it was TCP: messages over connections.
    pub tcp: bool,
    /// Whether the client sends and receives with segmentation offload.
    pub gso: bool,
    /// Datagrams or messages per second, open loop.
    pub rate: u32,
    /// More sockets that each server keeps in its wait.
    pub idle: usize,
    pub rounds: usize,
    pub slice_ms: u64,
    /// How system calls were counted; `null` if that was not possible.
    pub calls_counted_by: Option<Source>,
}

/// A subject that could not be measured, and why.
#[derive(Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failure {
    pub name: String,
    pub reason: String,
}

/// A ratio to the reference, measured directly before.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ratio {
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Within the noise: no difference to the reference.
    pub tie: bool,
}

/// What one subject gave.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Figures {
    pub name: String,
    /// 1 and the number of subjects that are clearly cheaper by CPU: further away than the noise.
    pub rank: usize,
    pub closed_loop: Closed,
    pub open_loop: Open,
    /// System calls for each echo by name; `null` if they could not be counted.
    pub calls: Option<CallsPerEcho>,
    /// Resident, after the load.
    pub memory_kib: u64,
}

/// With the window always full: throughput and cost.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Closed {
    pub echoes_per_second: f64,
    /// Of the server, user and kernel.
    pub cpu_ns_per_echo: f64,
    /// Echoes per second against the reference: more is better.
    pub x_eps: Ratio,
    /// CPU time per echo against the reference: less is better.
    pub x_cpu: Ratio,
    pub context_switches_per_echo: f64,
    pub received: u64,
    pub lost: u64,
    /// Of all that was lost, in open loop too: in the receive buffer of the server.
    pub lost_in_receive_buffer: u64,
    pub duplicates: u64,
    pub reordered: u64,
    pub corrupt: u64,
    /// It holds the time that a datagram or message waited for those before it in the window.
    pub latency_ns: Percentiles,
}

/// At a fixed rate: latency.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Open {
    pub received: u64,
    pub lost: u64,
    /// Due, but not sent: the server did not keep the rate.
    pub unsent: u64,
    pub cpu_ns_per_echo: f64,
    pub context_switches_per_echo: f64,
    /// From the time when a datagram was due.
    pub corrected_ns: Percentiles,
    /// From the time when it was sent: later, if the server stalled.
    pub uncorrected_ns: Percentiles,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CallsPerEcho {
    /// With one datagram outstanding.
    pub one_outstanding: BTreeMap<String, f64>,
    /// With the window full.
    pub loaded: BTreeMap<String, f64>,
}

/// From a histogram with three significant digits.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Percentiles {
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub p99_99: u64,
    pub max: u64,
}

/// One setting varied: fewer rounds, closed loop only.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sweep {
    pub parameter: Parameter,
    pub points: Vec<Point>,
}

/// What a sweep varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Parameter {
    /// Sockets that the server waits for; one of them is active, with one datagram or message outstanding
    Sockets,
    /// Bytes of each datagram or message
    Size,
    /// Datagrams or messages outstanding
    Window,
}

impl Sweep {
    /// The CPU time per echo of each server in microseconds, one for each point where it was measured. In the order of
    /// the first point.
    pub fn rows(&self) -> Vec<(&str, Vec<Option<f64>>)> {
        let mut names: Vec<&str> = Vec::new();
        for figures in self.points.iter().flat_map(|point| &point.subjects) {
            if !names.contains(&figures.name.as_str()) {
                names.push(&figures.name);
            }
        }
        let micros = |figures: &PointFigures| figures.cpu_ns_per_echo / 1000.0;
        let at = |name: &str, point: &Point| point.subjects.iter().find(|figures| figures.name == name).map(micros);
        names.into_iter().map(|name| (name, self.points.iter().map(|point| at(name, point)).collect())).collect()
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Point {
    pub value: usize,
    pub noise: Noise,
    pub subjects: Vec<PointFigures>,
    pub failures: Vec<Failure>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PointFigures {
    pub name: String,
    pub echoes_per_second: f64,
    pub cpu_ns_per_echo: f64,
    pub x_eps: Ratio,
    pub x_cpu: Ratio,
}

impl Settings {
    /// What is sent.
    pub fn unit(&self) -> &'static str {
        if self.tcp { "messages" } else { "datagrams" }
    }
}

impl From<&Histogram<u64>> for Percentiles {
    fn from(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            min: histogram.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max(),
        }
    }
}

/// Kernel, processor and the like, as far as they can be read.
pub fn environment(cores: usize, pinned: bool) -> Environment {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_string());
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let vulnerabilities = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let mitigations = vulnerabilities.filter_map(|entry| {
        let state = read(entry.path().to_str()?).filter(|state| state != "Not affected")?;
        Some((entry.file_name().into_string().ok()?, state))
    });
    Environment {
        version: env!("CARGO_PKG_VERSION"),
        date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        cpu: model.map_or("unknown", |(_, model)| model).into(),
        cores,
        pinned,
        governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        mitigations: mitigations.collect(),
        crates: crates(),
    }
}

/// The direct dependencies of this package, as Cargo.lock has them.
fn crates() -> BTreeMap<String, String> {
    let lock = include_str!("../../../Cargo.lock");
    let packages: Vec<&str> = lock.split("\n[[package]]\n").collect();
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_string())
    };
    let own = packages.iter().find(|package| value(package, "name").as_deref() == Some(env!("CARGO_PKG_NAME")));
    let needs = |name: &str| own.is_some_and(|own| own.contains(&format!("\n \"{name}\"")));
    let named = packages.iter().filter_map(|package| Some((value(package, "name")?, value(package, "version")?)));
    named.filter(|(name, _)| needs(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_is_documented() {
        let schema = serde_json::to_string_pretty(&schemars::schema_for!(Results)).unwrap() + "\n";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/compare.schema.json");
        if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
            fs::write(&path, &schema).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == schema, "{} is out of date: rewrite it with BLESS=1 scripts/test", path.display());
    }

    #[test]
    fn percentiles_are_those_of_known_values() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000, 5).unwrap();
        (1..=100_000u64).for_each(|value| histogram.record(value).unwrap());
        let Percentiles { min, p50, p90, p99, p99_9, p99_99, max } = Percentiles::from(&histogram);
        assert_eq!([min, p50, p90, p99, p99_9, p99_99, max], [1, 50_000, 90_000, 99_000, 99_900, 99_990, 100_000]);
    }

    #[test]
    fn crates_are_those_of_the_lock_file() {
        let crates = crates();
        assert!(crates["mio"].starts_with("1."), "{crates:?}");
        assert!(!crates.contains_key("proc-macro2"), "{crates:?}");
    }
}
