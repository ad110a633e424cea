//! The results for the eye: the table on the terminal and in Markdown.

use crate::results::{Failure, Ratio, Results, Sweep};
use crate::stats::Estimate;
use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};

const HEADERS: [&str; 11] =
    ["#", "server", "echoes/s", "x_eps", "CPU ns", "x_cpu", "95 %", "calls", "p50 µs", "p99 µs", "lost"];

/// The table, styled, with all that belongs to it. At most 100 columns.
pub fn terminal(results: &Results) -> String {
    let mut text = String::new();
    let table = main(results, presets::NOTHING).to_string();
    for (number, line) in table.lines().enumerate() {
        let style = match number.checked_sub(1).map(|at| &results.subjects[at]) {
            None => Style::new().bold(),
            Some(figures) if figures.name == results.reference => Style::new().bold(),
            Some(figures) if figures.closed_loop.x_cpu.tie => Style::new(),
            Some(figures) if figures.closed_loop.x_cpu.estimate.median < 1.0 => AnsiColor::Green.on_default(),
            Some(_) => AnsiColor::Yellow.on_default(),
        };
        text += &format!("{style}{}{style:#}\n", line.trim_end());
    }
    text + &explanation(results) + &results.sweeps.iter().map(sweep).collect::<String>() + &remarks(results)
}

/// The table as Markdown.
pub fn markdown(results: &Results) -> String {
    format!("{}\n\n{}", main(results, presets::ASCII_MARKDOWN), explanation(results).replace('\n', "  \n"))
}

fn main(results: &Results, preset: &str) -> Table {
    let mut table = Table::new();
    table.load_preset(preset).set_header(HEADERS);
    for column in table.column_iter_mut().filter(|column| column.index != 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for figures in &results.subjects {
        let closed = &figures.closed_loop;
        let (x_eps, x_cpu) = (closed.x_eps, closed.x_cpu);
        let calls = figures.calls.as_ref().map(|calls| {
            let [one, loaded] = [&calls.one_outstanding, &calls.loaded].map(|calls| calls.values().sum::<f64>());
            format!("{one:.2}/{loaded:.2}")
        });
        let micros = |nanos: u64| format!("{:.0}", nanos as f64 / 1000.0);
        let lost = closed.lost + figures.open_loop.lost;
        table.add_row([
            figures.rank.to_string(),
            figures.name.clone(),
            format!("{:.0}", closed.echoes_per_second),
            ratio(x_eps),
            format!("{:.0}", closed.cpu_ns_per_echo),
            ratio(x_cpu),
            format!("{:.2}-{:.2}", x_cpu.estimate.low, x_cpu.estimate.high),
            calls.unwrap_or("?".into()),
            micros(figures.open_loop.corrected_ns.p50),
            micros(figures.open_loop.corrected_ns.p99),
            lost.to_string(),
        ]);
    }
    table
}

/// A tie is marked: it says nothing about which is better.
fn ratio(ratio: Ratio) -> String {
    format!("{}{:.2}", if ratio.tie { "~" } else { "" }, ratio.estimate.median)
}

fn explanation(results: &Results) -> String {
    let Estimate { median, low, high } = results.noise.x_cpu;
    let settings = &results.settings;
    let waiting = match settings.idle {
        0 => String::new(),
        idle => format!(", {idle} idle sockets"),
    };
    let over = match settings.tcp {
        true => format!("{} connections, {} outstanding{waiting}", settings.flows, settings.window),
        false => format!("Window of {}{waiting}", settings.window),
    };
    format!(
        "x_: paired with {}, slice by slice; against itself x_cpu {median:.2} ({low:.2}-{high:.2}),\n\
         and what is within that is a tie (~). #: 1 and how many are clearly cheaper by CPU.\n\
         {over}; calls with 1 outstanding/with the window; latency at {} {}/s.\n\
         METHODOLOGY.md says how this is measured, and what it does not show.\n",
        results.reference,
        settings.rate,
        settings.unit(),
    )
}

/// CPU time per echo in microseconds, a line for each server, a column for each value.
fn sweep(sweep: &Sweep) -> String {
    let parameter = format!("{:?}", sweep.parameter).to_lowercase();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([parameter].into_iter().chain(sweep.points.iter().map(|point| point.value.to_string())));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (name, costs) in sweep.rows() {
        let cells = costs.iter().map(|cost| cost.map_or("-".into(), |cost| format!("{cost:.2}")));
        table.add_row([name.to_string()].into_iter().chain(cells));
    }
    let mut text = String::from("\nCPU time per echo in µs\n");
    text.extend(table.lines().map(|line| line.trim_end().to_string() + "\n"));
    for point in &sweep.points {
        text += &failures(&point.failures, &format!(" with {}", point.value));
    }
    text
}

fn remarks(results: &Results) -> String {
    let mut text = failures(&results.failures, "");
    for figures in results.subjects.iter().filter(|figures| figures.open_loop.unsent > 0) {
        let (unsent, rate) = (figures.open_loop.unsent, results.settings.rate);
        let unit = results.settings.unit();
        text += &format!("{}: did not keep {rate} {unit}/s: {unsent} were never sent\n", figures.name);
    }
    text.extend(results.notes.iter().map(|note| format!("note: {note}\n")));
    text
}

fn failures(failures: &[Failure], at: &str) -> String {
    failures.iter().map(|Failure { name, reason }| format!("{name}{at}: not measured: {reason}\n")).collect()
}
