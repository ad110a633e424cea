//! The results in files.

use crate::args::Args;
use crate::load::Tally;
use crate::results::{Figures, Percentiles, Results};
use crate::{page, table};
use echo_lab::{Attempt, Error, Result};
use hdrhistogram::Histogram;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Writes all files that are asked for.
pub fn all(args: &Args, results: &Results, tallies: &[(String, Tally)]) -> Result<()> {
    if let Some(path) = &args.export_json {
        write(path, serde_json::to_string_pretty(results).attempt("make JSON")? + "\n")?;
    }
    if let Some(path) = &args.export_csv {
        write(path, csv(results)?)?;
    }
    if let Some(path) = &args.export_markdown {
        write(path, table::markdown(results))?;
    }
    if let Some(path) = &args.export_html {
        write(path, page::html(results)?)?;
    }
    if let Some(folder) = &args.export_hdr {
        fs::create_dir_all(folder).attempt(format_args!("make the folder {}", folder.display()))?;
        for (name, tally) in tallies {
            write(&folder.join(format!("{name}.hgrm")), hdr(&tally.corrected))?;
            write(&folder.join(format!("{name}.uncorrected.hgrm")), hdr(&tally.latency))?;
        }
    }
    args.splice.iter().try_for_each(|path| splice(path, args.tcp, Some(results)))
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).attempt(format_args!("write {}", path.display()))
}

fn csv(results: &Results) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let rows: Vec<_> = results.subjects.iter().map(columns).collect();
    for (number, row) in rows.iter().enumerate() {
        if number == 0 {
            writer.write_record(row.iter().map(|(name, _)| name)).attempt("make CSV")?;
        }
        writer.write_record(row.iter().map(|(_, value)| value)).attempt("make CSV")?;
    }
    writer.into_inner().attempt("make CSV")
}

/// The figures of one server, named as in JSON.
fn columns(figures: &Figures) -> Vec<(String, String)> {
    let (closed, open) = (&figures.closed_loop, &figures.open_loop);
    let mut row: Vec<(String, String)> = Vec::new();
    let mut put = |name: &str, value: &dyn std::fmt::Display| row.push((name.into(), value.to_string()));
    put("name", &figures.name);
    put("rank", &figures.rank);
    put("echoes_per_second", &closed.echoes_per_second);
    put("cpu_ns_per_echo", &closed.cpu_ns_per_echo);
    for (name, ratio) in [("x_eps", closed.x_eps), ("x_cpu", closed.x_cpu)] {
        put(name, &ratio.estimate.median);
        put(&format!("{name}_low"), &ratio.estimate.low);
        put(&format!("{name}_high"), &ratio.estimate.high);
        put(&format!("{name}_tie"), &ratio.tie);
    }
    put("context_switches_per_echo", &closed.context_switches_per_echo);
    put("memory_kib", &figures.memory_kib);
    put("received", &closed.received);
    put("lost", &closed.lost);
    put("lost_in_receive_buffer", &closed.lost_in_receive_buffer);
    put("duplicates", &closed.duplicates);
    put("reordered", &closed.reordered);
    put("corrupt", &closed.corrupt);
    let sum = |calls: &std::collections::BTreeMap<String, f64>| calls.values().sum::<f64>().to_string();
    let calls = figures.calls.as_ref();
    put("calls_one_outstanding", &calls.map_or(String::new(), |calls| sum(&calls.one_outstanding)));
    put("calls_loaded", &calls.map_or(String::new(), |calls| sum(&calls.loaded)));
    put("open_loop_received", &open.received);
    put("open_loop_lost", &open.lost);
    put("open_loop_unsent", &open.unsent);
    put("open_loop_cpu_ns_per_echo", &open.cpu_ns_per_echo);
    let latencies = [
        ("latency", &closed.latency_ns),
        ("open_loop_corrected", &open.corrected_ns),
        ("open_loop_uncorrected", &open.uncorrected_ns),
    ];
    for (name, Percentiles { min, p50, p90, p99, p99_9, p99_99, max }) in latencies {
        let values = [("min", min), ("p50", p50), ("p90", p90), ("p99", p99), ("p99_9", p99_9)];
        for (at, value) in values.into_iter().chain([("p99_99", p99_99), ("max", max)]) {
            put(&format!("{name}_{at}_ns"), value);
        }
    }
    row
}

/// The percentile distribution as HdrHistogram's own tools write and plot it, in microseconds.
fn hdr(histogram: &Histogram<u64>) -> String {
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    for step in histogram.iter_quantiles(5) {
        let (value, quantile) = (micros(step.value_iterated_to()), step.quantile_iterated_to());
        let below = histogram.count_between(0, step.value_iterated_to());
        let _ = match quantile < 1.0 {
            true => writeln!(text, "{value:12.3} {quantile:2.12} {below:10} {:14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(text, "{value:12.3} {quantile:2.12} {below:10}"),
        };
    }
    let (mean, deviation) = (histogram.mean() / 1000.0, histogram.stdev() / 1000.0);
    let _ = writeln!(text, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let _ = writeln!(text, "#[Max     = {:12.3}, Total count    = {:12}]", micros(histogram.max()), histogram.len());
    let (buckets, sub) = (histogram.distinct_values(), 2048);
    let _ = writeln!(text, "#[Buckets = {buckets:12}, SubBuckets     = {sub:12}]");
    text
}

const END: &str = "<!-- end of compare -->";

/// Puts the table between the markers of `path`, those for `tcp` or those for UDP; without results, only looks whether
/// they are there.
pub fn splice(path: &Path, tcp: bool, results: Option<&Results>) -> Result<()> {
    let begin = if tcp { "<!-- compare --tcp -->\n" } else { "<!-- compare -->\n" };
    let text = fs::read_to_string(path).attempt(format_args!("read {}", path.display()))?;
    let parts = text.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let missing = || Error::new(format!("cannot find {} and {END} in {}", begin.trim_end(), path.display()));
    let (before, after) = parts.ok_or_else(missing)?;
    let Some(results) = results else { return Ok(()) };
    let environment = &results.environment;
    let block = format!(
        "```text\n$ scripts/compare {}\n{}```\n\n{}, Linux {}, {} cores, {}.\n",
        results.command.join(" "),
        anstream::adapter::strip_str(&table::terminal(results)),
        environment.cpu,
        environment.kernel,
        environment.cores,
        environment.date
    );
    write(path, format!("{before}{begin}{block}{END}{after}"))
}
