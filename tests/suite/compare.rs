//! The side-by-side tool as its user sees it. Its figures are not judged here: the machine that tests is busy.

use crate::server::{bin, number, run};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let table: &[(&str, Needs, Run)] = match row.name {
        "compare" => &[
            ("list", Needs::Nothing, list),
            ("bad_usage", Needs::Nothing, bad_usage),
            ("results_as_json", Needs::Strace, results_as_json),
            ("conditions", Needs::Nothing, conditions),
            ("subjects_that_fail", Needs::Nothing, subjects_that_fail),
            ("interrupted", Needs::Nothing, |_| ended_by(libc::SIGINT)),
            ("killed", Needs::Nothing, |_| ended_by(libc::SIGKILL)),
        ],
        _ => &[],
    };
    table.iter().map(|(name, needs, run)| check(*name, *needs, run)).collect()
}

fn list(row: &Row) {
    let (status, stdout, _) = run(row.name, &["--list"]);
    assert_eq!(status, Some(0));
    assert!(stdout.starts_with("echo-blocking ") && stdout.contains("\necho-tokio "), "{stdout}");
}

fn bad_usage(row: &Row) {
    for (flags, expected) in [
        (&["echo-blokcing"][..], "did you mean echo-blocking?"),
        (&["--reference", "nobody"], "no server \"nobody\""),
        (&["--flows", "9", "--window", "8"], "--flows 9 needs a --window"),
        (&["--size", "15"], "invalid value '15'"),
        (&["--peer", "name"], "NAME=COMMAND"),
        (&["--peer", "name=command"], "{addr} or {port}"),
        (&["--assert", "echo-blocking.x_cpu"], "the form is"),
        (&["--assert", "nobody.x_cpu < 1"], "no server \"nobody\""),
    ] {
        let (status, stdout, stderr) = run(row.name, flags);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{flags:?}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{flags:?}: {stderr}");
    }
}

/// Runs it with `--quick` and these flags: status, output, and the results.
fn quick(flags: &[&str]) -> (Option<i32>, String, String, Value) {
    let file = std::env::temp_dir().join(format!("echo-lab-results-{}", flags.join("").len()));
    let path = file.to_str().unwrap();
    let (status, stdout, stderr) = run("compare", &[&["--quick", "--export-json", path], flags].concat());
    let json = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    fs::remove_file(&file).unwrap();
    (status, stdout, stderr, serde_json::from_str(&json).unwrap())
}

fn results_as_json(_: &Row) {
    let (status, stdout, stderr, results) = quick(&["echo-tokio", "--window", "16", "--size", "100"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.lines().all(|line| line.chars().count() <= 100), "{stdout}");
    assert_eq!((number(&results["schema"]), number(&results["settings"]["window"])), (1, 16));
    assert_eq!(results["settings"]["size"], 100);
    let subjects = results["subjects"].as_array().unwrap();
    assert_eq!(subjects.len(), 2);
    for subject in subjects {
        let float = |value: &Value| value.as_f64().filter(|value| *value > 0.0).unwrap_or_else(|| panic!("{value}"));
        assert!(float(&subject["echoes_per_second"]) > 100.0 && float(&subject["cpu_ns_per_echo"]) > 100.0);
        for ratio in ["x_eps", "x_cpu"].map(|name| &subject[name]) {
            assert!(
                float(&ratio["low"]) <= float(&ratio["median"]) && float(&ratio["median"]) <= float(&ratio["high"])
            );
        }
        for fault in ["lost", "duplicates", "corrupt"] {
            assert_eq!(number(&subject[fault]), 0, "{fault}: {subject}");
        }
        let latency =
            ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"].map(|at| number(&subject["latency_ns"][at]));
        assert!(latency.is_sorted() && latency[0] > 0, "{latency:?}");
        // recvfrom and sendto, and what a runtime adds.
        let sends = float(&subject["calls_per_echo_one_outstanding"]["sendto"]);
        assert!((0.95..1.05).contains(&sends), "{subject}");
        assert!(float(&subject["calls_per_echo_loaded"]["recvfrom"]) >= 0.95);
        assert!(stdout.contains(subject["name"].as_str().unwrap()), "{stdout}");
    }
}

fn conditions(_: &Row) {
    let flags = ["echo-blocking", "--assert", "echo-blocking.x_cpu < 1.5", "--assert", "echo-blocking.x_eps > 0.5"];
    let (status, _, stderr, _) = quick(&flags);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let (status, _, stderr, _) = quick(&["echo-blocking", "--assert", "echo-blocking.x_cpu > 1.5"]);
    assert_eq!((status, stderr.as_str()), (Some(99), "echo-blocking.x_cpu > 1.5: fails: 1.000 (1.000-1.000)\n"));
}

/// One that never answers, and one that ends in the middle: both are named, the others are kept.
fn subjects_that_fail(_: &Row) {
    let dying = format!("dies={} --bind {{addr}} --count 3000", bin("echo-blocking").display());
    let (status, stdout, _, results) =
        quick(&["echo-blocking", "--peer", "silent=sleep 60; true {port}", "--peer", &dying]);
    assert_eq!(status, Some(1));
    let failed: Vec<_> = results["failures"].as_array().unwrap().iter().map(|failure| &failure["name"]).collect();
    assert_eq!(failed, ["silent", "dies"]);
    assert!(stdout.contains("silent: not measured: silent does not echo: no answer on 127.0.0.1:"), "{stdout}");
    assert!(stdout.contains("dies: not measured: "), "{stdout}");
    assert_eq!(results["subjects"].as_array().unwrap().len(), 1);
}

fn children(of: &Child) -> Vec<PathBuf> {
    let id = of.id();
    let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    text.split_whitespace().map(|id| Path::new("/proc").join(id)).collect()
}

/// However it ends, no server is left.
fn ended_by(signal: i32) {
    let mut command = Command::new(bin("compare"));
    let mut compare = command.args(["echo-mio-edge"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let limit = Instant::now() + Duration::from_secs(10);
    while children(&compare).len() < 3 && Instant::now() < limit {
        thread::sleep(Duration::from_millis(5));
    }
    let servers = children(&compare);
    assert_eq!(servers.len(), 3);
    // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
    unsafe { libc::kill(compare.id() as i32, signal) };
    let status = compare.wait().unwrap();
    if signal == libc::SIGINT {
        let stderr = std::io::read_to_string(compare.stderr.take().unwrap()).unwrap();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("Error: interrupted: "), "{stderr}");
    }
    let limit = Instant::now() + Duration::from_secs(5);
    while servers.iter().any(|server| server.exists()) {
        assert!(Instant::now() < limit, "{servers:?} are left");
        thread::sleep(Duration::from_millis(5));
    }
}
