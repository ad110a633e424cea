//! The page: page.html filled with the results. Its charts are tables whose cells hold lines on a common scale, so that
//! text stays text: it can be read aloud, searched and enlarged. Only the sweeps are drawn as curves.

use crate::results::{Figures, Percentiles, Results, Sweep};
use crate::stats::Estimate;
use echo_lab::{Attempt, Result, catalog};
use include_dir::{Dir, include_dir};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use std::collections::BTreeMap;

static SOURCES: Dir = include_dir!("$CARGO_MANIFEST_DIR/src/bin");
static TRACES: Dir = include_dir!("$CARGO_MANIFEST_DIR/docs/traces");

/// The page as one file, which needs nothing else.
pub fn html(results: &Results) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("page", include_str!("page.html")).attempt("read the template of the page")?;
    let subjects = &results.subjects;
    let page = Page {
        results,
        servers: subjects.iter().map(server).collect(),
        cpu: ratios(subjects, |it| it.closed_loop.x_cpu.estimate, results.noise.x_cpu),
        eps: ratios(subjects, |it| it.closed_loop.x_eps.estimate, results.noise.x_eps),
        calls: calls(subjects),
        latency: latencies(subjects),
        sweeps: results.sweeps.iter().map(curves).collect(),
    };
    let template = environment.get_template("page").attempt("read the template of the page")?;
    template.render(Serde(page)).attempt("fill the template of the page")
}

/// What the template is given: the results, and for each chart the places of its lines. Rows are in the order of
/// `results.subjects`.
#[derive(Serialize)]
struct Page<'r> {
    results: &'r Results,
    servers: Vec<Server>,
    cpu: Ratios,
    eps: Ratios,
    calls: Vec<[Vec<Part>; 2]>,
    latency: Latencies,
    sweeps: Vec<Curves>,
}

/// A logarithmic scale from 0 to 100.
struct Scale {
    low: f64,
    high: f64,
}

#[derive(Serialize)]
struct Tick {
    at: f64,
    label: String,
}

impl Scale {
    /// Over all `values`, with a little room at the ends.
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        Self { low: low / 1.05, high: high * 1.05 }
    }

    fn at(&self, value: f64) -> f64 {
        100.0 * (value / self.low).ln() / (self.high / self.low).ln()
    }

    fn ticks(&self, values: &[f64], label: impl Fn(f64) -> String) -> Vec<Tick> {
        let inside = values.iter().filter(|value| (self.low..=self.high).contains(*value));
        inside.map(|value| Tick { at: self.at(*value), label: label(*value) }).collect()
    }
}

/// The ratios of all servers on one scale.
#[derive(Serialize)]
struct Ratios {
    ticks: Vec<Tick>,
    /// The noise, from and to.
    noise: [f64; 2],
    /// Low, median and high of each server.
    rows: Vec<[f64; 3]>,
}

fn ratios(subjects: &[Figures], of: impl Fn(&Figures) -> Estimate, noise: Estimate) -> Ratios {
    let estimates: Vec<_> = subjects.iter().map(of).collect();
    // Where nothing can be told the band reaches to 0, which is not on a logarithmic scale.
    let band = [(1.0 - noise.noise()).max(0.1), 1.0 + noise.noise()];
    let scale = Scale::over(estimates.iter().flat_map(|it| [it.low, it.high]).chain(band));
    Ratios {
        ticks: scale.ticks(&[0.05, 0.1, 0.2, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 3.0, 5.0, 10.0], |it| it.to_string()),
        noise: band.map(|value| scale.at(value)),
        rows: estimates.iter().map(|it| [it.low, it.median, it.high].map(|value| scale.at(value))).collect(),
    }
}

/// The calls of one kind of load: for each server a bar, in percent of the longest.
#[derive(Serialize)]
struct Part {
    name: String,
    count: f64,
    width: f64,
    /// Which of the styles of the page: a call has the same in all bars.
    style: usize,
}

fn calls(subjects: &[Figures]) -> Vec<[Vec<Part>; 2]> {
    let maps = |it: &Figures| {
        let calls = it.calls.as_ref();
        let map = |map: Option<&BTreeMap<String, f64>>| map.cloned().unwrap_or_default();
        [map(calls.map(|calls| &calls.one_outstanding)), map(calls.map(|calls| &calls.loaded))]
    };
    let all: Vec<_> = subjects.iter().map(maps).collect();
    let longest = all.iter().flatten().map(|map| map.values().sum::<f64>()).fold(1.0, f64::max);
    let mut total = BTreeMap::<&String, f64>::new();
    all.iter().flatten().flatten().for_each(|(name, count)| *total.entry(name).or_default() += count);
    let mut names: Vec<_> = total.keys().copied().collect();
    names.sort_by(|a, b| total[b].total_cmp(&total[a]));
    let bar = |map: &BTreeMap<String, f64>| {
        // What happens less than once in two hundred echoes would not be seen.
        let seen = names.iter().enumerate().filter(|(_, name)| map.get(**name).is_some_and(|count| *count >= 0.005));
        let part = |(style, name): (usize, &&String)| {
            let count = map[*name];
            Part { name: (*name).clone(), count, width: 100.0 * count / longest, style }
        };
        seen.map(part).collect()
    };
    all.iter().map(|maps| [bar(&maps[0]), bar(&maps[1])]).collect()
}

/// Latencies on one scale: for each server the marks of the corrected and of the uncorrected percentiles.
#[derive(Serialize)]
struct Latencies {
    ticks: Vec<Tick>,
    rows: Vec<[Vec<Tick>; 2]>,
}

fn latencies(subjects: &[Figures]) -> Latencies {
    let values = |it: &Percentiles| {
        [("50", it.p50), ("90", it.p90), ("99", it.p99), ("99.9", it.p99_9), ("max", it.max)]
            .map(|(name, nanos)| (name, nanos.max(1) as f64 / 1000.0))
    };
    let both = |it: &Figures| [values(&it.open_loop.corrected_ns), values(&it.open_loop.uncorrected_ns)];
    let all: Vec<_> = subjects.iter().map(both).collect();
    let scale = Scale::over(all.iter().flatten().flatten().map(|(_, micros)| *micros));
    let marks = |values: &[(&str, f64); 5]| {
        values.iter().map(|(name, micros)| Tick { at: scale.at(*micros), label: name.to_string() }).collect()
    };
    Latencies {
        ticks: scale.ticks(&[1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0], |micros| match micros < 1000.0 {
            true => format!("{micros} µs"),
            false => format!("{} ms", micros / 1000.0),
        }),
        rows: all.iter().map(|[corrected, uncorrected]| [marks(corrected), marks(uncorrected)]).collect(),
    }
}

/// What is shown of one server beside others.
#[derive(Serialize)]
struct Server {
    shows: &'static str,
    source: Option<&'static str>,
    trace: Option<&'static str>,
}

fn server(figures: &Figures) -> Server {
    // Without its flags; the trace is that of a server without any.
    let name = figures.name.split(' ').next().unwrap_or_default();
    let text = |folder: &'static Dir, file: String| folder.get_file(file)?.contents_utf8();
    let shows = catalog::find(name).map_or("A server from elsewhere, given with --peer.", |row| row.shows);
    // A server that is a folder shows its main part.
    let source = text(&SOURCES, format!("{name}.rs")).or_else(|| text(&SOURCES, format!("{name}/main.rs")));
    let trace = if name == figures.name { text(&TRACES, format!("{name}.txt")) } else { None };
    Server { shows, source, trace }
}

/// A sweep as curves, in a box of 100 by 100.
#[derive(Serialize)]
struct Curves {
    x: Vec<Tick>,
    y: Vec<Tick>,
    curves: Vec<Curve>,
}

#[derive(Serialize)]
struct Curve {
    name: String,
    /// x and y.
    points: Vec<[f64; 2]>,
    /// Where its name stands: as near to its end as the others let it.
    label: f64,
    /// Microseconds at each value of the sweep, as text.
    values: Vec<String>,
}

fn curves(sweep: &Sweep) -> Curves {
    let points = &sweep.points;
    let x = Scale::over(points.iter().map(|point| point.value as f64));
    let rows = sweep.rows();
    let y = Scale::over(rows.iter().flat_map(|(_, costs)| costs).flatten().copied());
    let curve = |(name, costs): &(&str, Vec<Option<f64>>)| {
        let there = points.iter().zip(costs);
        let there = there.filter_map(|(point, cost)| Some([x.at(point.value as f64), 100.0 - y.at((*cost)?)]));
        let points: Vec<_> = there.collect();
        let label = points.last().map_or(0.0, |point| point[1]);
        let values = costs.iter().map(|cost| cost.map_or("–".into(), |cost| format!("{cost:.1}"))).collect();
        Curve { name: name.to_string(), points, label, values }
    };
    let mut curves: Vec<_> = rows.iter().map(curve).collect();
    curves.sort_by(|a, b| a.label.total_cmp(&b.label));
    let step = (100.0 / curves.len().max(1) as f64).min(5.0);
    let mut lowest = 0.0;
    for curve in &mut curves {
        curve.label = curve.label.max(lowest);
        lowest = curve.label + step;
    }
    // Those pushed out at the bottom move up again.
    let mut highest = 100.0;
    for curve in curves.iter_mut().rev() {
        curve.label = curve.label.min(highest);
        highest = curve.label - step;
    }
    let values: Vec<_> = points.iter().map(|point| point.value as f64).collect();
    let steps = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0];
    let y_ticks = y.ticks(&steps, |micros| format!("{micros} µs"));
    let y_ticks = y_ticks.into_iter().map(|tick| Tick { at: 100.0 - tick.at, ..tick }).collect();
    Curves { x: x.ticks(&values, |value| value.to_string()), y: y_ticks, curves }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_logarithmic() {
        let scale = Scale::over([1.0, 10.0, 100.0].into_iter());
        assert!((scale.at(10.0) - 50.0).abs() < 1e-9);
        assert!(scale.at(1.0) > 0.0 && scale.at(100.0) < 100.0);
        assert_eq!(scale.ticks(&[0.5, 1.0, 200.0], |value| value.to_string()).len(), 1);
    }
    /// On a machine so busy that the reference is twice itself.
    #[test]
    fn noise_of_any_size_can_be_drawn() {
        for high in [1.0, 1.5, 2.0, 30.0] {
            let noise = Estimate { median: 1.0, low: 0.5, high };
            let drawn = ratios(&[], |_| noise, noise).noise;
            assert!(drawn.iter().all(|at| (0.0..=100.0).contains(at)), "{high}: {drawn:?}");
        }
    }
}
