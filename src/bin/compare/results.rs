//! What was found, as a table and as JSON, and the conditions that it is held against.

use crate::stats::Estimate;
use comfy_table::{CellAlignment, Table, presets};
use echo_lab::{Attempt, Error, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything that one run found. `schema` grows when a field changes its meaning or goes.
#[derive(Serialize)]
pub struct Results {
    pub schema: u32,
    pub command: Vec<String>,
    pub environment: Environment,
    pub settings: Settings,
    pub reference: String,
    /// The reference against itself: no difference within this can be told.
    pub noise: Noise,
    pub subjects: Vec<Figures>,
    pub failures: Vec<Failure>,
}

#[derive(Serialize)]
pub struct Environment {
    pub version: &'static str,
    pub kernel: String,
    pub cpu: String,
    pub cores: usize,
    pub pinned: bool,
    pub unix_time: u64,
}

#[derive(Serialize)]
pub struct Settings {
    pub flows: usize,
    pub window: usize,
    pub size: usize,
    pub rounds: usize,
    pub slice_ms: u64,
}

#[derive(Serialize)]
pub struct Noise {
    pub x_eps: Estimate,
    pub x_cpu: Estimate,
}

/// A subject that could not be measured, and why.
#[derive(Serialize)]
pub struct Failure {
    pub name: String,
    pub reason: String,
}

#[derive(Serialize)]
pub struct Figures {
    pub name: String,
    pub echoes_per_second: f64,
    pub cpu_ns_per_echo: f64,
    /// Echoes per second against the reference: more is better.
    pub x_eps: Estimate,
    /// CPU time per echo against the reference: less is better.
    pub x_cpu: Estimate,
    /// Within the noise, by CPU.
    pub tie: bool,
    pub context_switches_per_echo: f64,
    pub memory_kib: u64,
    pub received: u64,
    pub lost: u64,
    pub lost_in_receive_buffer: u64,
    pub duplicates: u64,
    pub reordered: u64,
    pub corrupt: u64,
    pub latency_ns: Latency,
    /// By name; `null` where strace could not be used.
    pub calls_per_echo_one_outstanding: Option<BTreeMap<String, f64>>,
    pub calls_per_echo_loaded: Option<BTreeMap<String, f64>>,
}

/// Under the closed loop of the throughput slices: it holds the time that a datagram waited for those before it.
#[derive(Serialize)]
pub struct Latency {
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub p99_99: u64,
    pub max: u64,
}

impl From<&Histogram<u64>> for Latency {
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

impl Results {
    /// The table, cheapest first; subjects within the noise say so instead of a rank.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header([
            "server", "echoes/s", "x_eps", "CPU ns", "x_cpu", "95 %", "calls", "p50 µs", "p99 µs", "lost", "",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for figures in &self.subjects {
            let verdict = match figures.tie {
                _ if figures.name == self.reference => "ref",
                true => "tie",
                false => "",
            };
            let calls = figures.calls_per_echo_loaded.as_ref().map(|calls| calls.values().sum::<f64>());
            table.add_row([
                figures.name.clone(),
                format!("{:.0}", figures.echoes_per_second),
                format!("{:.2}", figures.x_eps.median),
                format!("{:.0}", figures.cpu_ns_per_echo),
                format!("{:.2}", figures.x_cpu.median),
                format!("{:.2}-{:.2}", figures.x_cpu.low, figures.x_cpu.high),
                calls.map_or("?".into(), |calls| format!("{calls:.2}")),
                format!("{:.0}", figures.latency_ns.p50 as f64 / 1000.0),
                format!("{:.0}", figures.latency_ns.p99 as f64 / 1000.0),
                figures.lost.to_string(),
                verdict.into(),
            ]);
        }
        let Estimate { median, low, high } = self.noise.x_cpu;
        let mut text = format!(
            "{}\nreference {}; against itself x_cpu {median:.2} ({low:.2}-{high:.2}): within that is a tie\n",
            table.to_string().trim_end(),
            self.reference
        );
        for Failure { name, reason } in &self.failures {
            text += &format!("{name}: not measured: {reason}\n");
        }
        text
    }
}

/// A condition such as `echo-epoll-edge.x_cpu < 1.2`.
#[derive(Clone, Debug)]
pub struct Condition {
    text: String,
    subject: String,
    figure: String,
    less: bool,
    bound: f64,
}

impl std::str::FromStr for Condition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let form = || Error::new(format!("cannot read {text:?}: the form is SERVER.x_cpu < 1.2, x_eps, < or >"));
        let (at, sign) = text.char_indices().find(|(_, c)| ['<', '>'].contains(c)).ok_or_else(form)?;
        let (subject, figure) = text[..at].trim().rsplit_once('.').ok_or_else(form)?;
        if !["x_cpu", "x_eps"].contains(&figure) {
            return Err(form());
        }
        let bound = text[at + 1..].trim().parse().map_err(|_| form())?;
        let (subject, figure) = (subject.into(), figure.into());
        Ok(Self { text: text.into(), subject, figure, less: sign == '<', bound })
    }
}

impl Condition {
    /// Whose figure it is about.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Holds only if the whole interval is on the right side. Otherwise says what is the matter.
    pub fn check(&self, results: &Results) -> std::result::Result<(), String> {
        let Some(figures) = results.subjects.iter().find(|figures| figures.name == self.subject) else {
            return Err(format!("{}: {} was not measured", self.text, self.subject));
        };
        let value = if self.figure == "x_cpu" { figures.x_cpu } else { figures.x_eps };
        let Estimate { median, low, high } = value;
        let holds = if self.less { high < self.bound } else { low > self.bound };
        let fails = if self.less { low >= self.bound } else { high <= self.bound };
        let what = match (holds, fails) {
            (true, _) => return Ok(()),
            (_, true) => "fails",
            _ => "cannot be decided within the noise",
        };
        Err(format!("{}: {what}: {median:.3} ({low:.3}-{high:.3})", self.text))
    }
}

/// Kernel, processor and the like, as far as they can be read.
pub fn environment(pinned: bool) -> Environment {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Environment {
        version: env!("CARGO_PKG_VERSION"),
        kernel: read("/proc/sys/kernel/osrelease").trim().into(),
        cpu: model.map_or("unknown", |(_, model)| model).into(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        pinned,
        unix_time: time.as_secs(),
    }
}

/// Writes the results as JSON.
pub fn export(path: &std::path::Path, results: &Results) -> Result<()> {
    let json = serde_json::to_string_pretty(results).attempt("make JSON")?;
    std::fs::write(path, json + "\n").attempt(format_args!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_or_refused() {
        let condition: Condition = "echo-poll.x_cpu<1.2".parse().unwrap();
        assert_eq!((condition.subject(), condition.bound, condition.less), ("echo-poll", 1.2, true));
        let condition: Condition = "my.peer.x_eps > 0.9".parse().unwrap();
        assert_eq!((condition.subject(), condition.bound, condition.less), ("my.peer", 0.9, false));
        for text in ["", "x_cpu < 1", "a.x_cpu = 1", "a.latency < 1", "a.x_cpu < x"] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }
}
