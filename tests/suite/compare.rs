//! The side-by-side tool as its user sees it. Its figures are not judged here: the machine that tests is busy.

use crate::server::{PATIENCE, bin, number, run};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::{EPOLL_WAIT, Row, find};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let table: &[(&str, Needs, Run)] = match row.name {
        "compare" => &[
            ("list", Needs::Nothing, list),
            ("bad_usage", Needs::Nothing, bad_usage),
            ("results_as_json", Needs::Nothing, results_as_json),
            ("calls_by_tracepoints", Needs::Tracepoints, |_| calls_counted_by("tracepoints")),
            ("calls_by_strace", Needs::Strace, |_| calls_counted_by("strace")),
            ("exports", Needs::Nothing, exports),
            ("knows_a_slower_server", Needs::Strace, knows_a_slower_server),
            ("table_says_what_was_measured", Needs::Nothing, table),
            ("reference_first_in_random_order", Needs::Strace, order),
            ("splice", Needs::Nothing, splice),
            ("colours", Needs::Nothing, colours),
            ("sweep", Needs::Nothing, sweep),
            ("segmentation_offload", Needs::Nothing, gso),
            ("connections", Needs::Tracepoints, connections),
            ("overload_shows", Needs::Nothing, overload),
            ("reference_that_ends", Needs::Nothing, reference_that_ends),
            ("client_alone", Needs::Nothing, self_test),
            ("conditions", Needs::Nothing, conditions),
            ("subjects_that_fail", Needs::Nothing, subjects_that_fail),
            ("flags_of_a_server", Needs::Tracepoints, flags_of_a_server),
            ("many_threads_and_few_descriptors", Needs::Tracepoints, few_descriptors),
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
        (&["--peer", "echo-poll=x {port}"], "--peer echo-poll: there is a server of that name"),
        (&["--gso", "--size", "64,100"], "--gso cuts a send into datagrams of one --size"),
        (&["--idle", "5"], "--tcp"),
        (&["--sweep", "sockets"], "--sweep sockets needs --tcp; for UDP see probe-many-sockets"),
        (&["--tcp", "--gso"], "cannot be used with"),
        (&["--tcp", "echo-tokio"], "no server \"echo-tokio\" in this build; did you mean echo-tcp-tokio?"),
        (&["--connections", "9", "--window", "8"], "--flows 9 needs a --window"),
        (&["--sweep", "colour"], "possible values: sockets, size, window"),
        (&["echo-epol-edge --flag"], "no server \"echo-epol-edge\" in this build; did you mean echo-epoll-edge?"),
    ] {
        let (status, stdout, stderr) = run(row.name, flags);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{flags:?}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{flags:?}: {stderr}");
    }
}

/// TCP: over many connections, in pieces, with idle ones beside them, and with a server of somebody else's.
fn connections(_: &Row) {
    let epoll = bin("echo-tcp-epoll");
    let peer = format!("theirs={} --bind {{addr}}", epoll.display());
    let flags =
        ["--tcp", "echo-tcp-epoll", "--peer", &peer, "--connections", "20", "--idle", "100", "--size", "64,30000"];
    let (status, stdout, stderr, results) = quick(&[&flags[..], &["--sweep", "sockets"]].concat());
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("\n20 connections, 20 outstanding, 100 idle sockets;"), "{stdout}");
    assert_eq!((&results["reference"], &results["settings"]["tcp"]), (&"echo-tcp-threads".into(), &true.into()));
    let mut names: Vec<_> = subjects(&results).iter().map(|subject| subject["name"].as_str().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["echo-tcp-epoll", "echo-tcp-threads", "theirs"]);
    for subject in subjects(&results) {
        for fault in ["lost", "duplicates", "reordered", "corrupt"] {
            assert_eq!(number(&subject["closed_loop"][fault]), 0, "{fault}: {subject}");
        }
        let calls = subject["calls"]["one_outstanding"].as_object().unwrap();
        let calls: f64 = calls.values().map(float).sum();
        let expected = if subject["name"] == "echo-tcp-threads" { 2.0 } else { 3.0 };
        assert!((calls - expected).abs() < 0.2, "{subject}");
    }
    let points = results["sweeps"][0]["points"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| number(&point["value"])).collect::<Vec<_>>(), [10, 100, 1000]);
}

/// Runs it with `--quick` and these flags: status, output, and the results, which are as the schema says.
fn quick(flags: &[&str]) -> (Option<i32>, String, String, Value) {
    quick_while(flags, |_| ())
}

/// As [`quick`], while `meanwhile` does something to it.
fn quick_while(flags: &[&str], meanwhile: impl FnOnce(&Child)) -> (Option<i32>, String, String, Value) {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let file = temporary(&format!("{}.json", RUNS.fetch_add(1, Ordering::Relaxed)));
    let path = file.to_str().unwrap();
    let mut command = Command::new(bin("compare"));
    command.args(["--quick", "--export-json", path]).args(flags);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    meanwhile(&child);
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let status = output.status.code();
    let json = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    fs::remove_file(&file).unwrap();
    let results = serde_json::from_str(&json).unwrap();
    let schema = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compare.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let faults: Vec<_> =
        jsonschema::validator_for(&schema).unwrap().iter_errors(&results).map(|e| e.to_string()).collect();
    assert!(faults.is_empty(), "{faults:?}");
    (status, stdout, stderr, results)
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("echo-lab-{}-{name}", std::process::id()))
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn subjects(results: &Value) -> &[Value] {
    results["subjects"].as_array().unwrap()
}

fn results_as_json(_: &Row) {
    let (status, stdout, stderr, results) = quick(&["echo-tokio", "--window", "16", "--size", "100,20"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.lines().all(|line| line.chars().count() <= 100), "{stdout}");
    assert_eq!((number(&results["schema"]), number(&results["settings"]["window"])), (1, 16));
    assert_eq!(results["settings"]["sizes"], serde_json::json!([100, 20]));
    assert_eq!(number(&results["environment"]["cores"]) as usize, thread::available_parallelism().unwrap().get());
    assert_eq!(subjects(&results).len(), 2);
    for subject in subjects(&results) {
        let (closed, open) = (&subject["closed_loop"], &subject["open_loop"]);
        assert!(float(&closed["echoes_per_second"]) > 100.0 && float(&closed["cpu_ns_per_echo"]) > 100.0);
        assert!(float(&open["cpu_ns_per_echo"]) > 100.0);
        for ratio in ["x_eps", "x_cpu"].map(|name| &closed[name]) {
            let [low, median, high] = ["low", "median", "high"].map(|name| float(&ratio[name]));
            assert!(0.0 < low && low <= median && median <= high, "{ratio}");
        }
        for fault in ["lost", "duplicates", "corrupt"] {
            assert_eq!(number(&closed[fault]), 0, "{fault}: {subject}");
        }
        for latency in [&closed["latency_ns"], &open["corrected_ns"], &open["uncorrected_ns"]] {
            let latency = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"].map(|at| number(&latency[at]));
            assert!(latency.is_sorted() && latency[0] > 0, "{latency:?}");
        }
        assert!(float(&open["corrected_ns"]["p50"]) >= float(&open["uncorrected_ns"]["p50"]));
        assert!(stdout.contains(subject["name"].as_str().unwrap()), "{stdout}");
    }
}

fn calls_counted_by(way: &str) {
    let (status, _, stderr, results) = quick(&["echo-tokio", "--calls", way]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert_eq!((&results["settings"]["calls_counted_by"], &results["notes"]), (&way.into(), &serde_json::json!([])));
    for subject in subjects(&results) {
        // As in its trace, but for the waits that it is spared while the machine is too busy to space the echoes.
        let calls = subject["calls"]["one_outstanding"].as_object().unwrap().values().map(float).sum::<f64>();
        let expected = find(subject["name"].as_str().unwrap()).and_then(|row| row.calls).unwrap().per_echo as f64;
        assert!((1.95..expected + 0.1).contains(&calls), "{subject}");
        for sends in ["one_outstanding", "loaded"].map(|load| float(&subject["calls"][load]["sendto"])) {
            assert!((0.95..1.05).contains(&sends), "{subject}");
        }
        assert!(float(&subject["calls"]["loaded"]["recvfrom"]) >= 0.95);
        let waits = &subject["calls"]["one_outstanding"][EPOLL_WAIT];
        assert_eq!(waits.is_null(), subject["name"] == "echo-blocking", "{subject}");
    }
}

/// One whose calls are traced costs more for each echo, and does fewer. Intervals are wide while others use the machine.
fn knows_a_slower_server(_: &Row) {
    let traced = format!("traced=strace -D -f -o /dev/null {} --bind {{addr}}", bin("echo-blocking").display());
    let (status, stdout, _, results) = quick(&["echo-blocking", "--peer", &traced]);
    assert_eq!(status, Some(0), "{stdout}");
    let traced = subjects(&results).iter().find(|subject| subject["name"] == "traced").expect("measured");
    let [x_eps, x_cpu] = ["x_eps", "x_cpu"].map(|ratio| float(&traced["closed_loop"][ratio]["median"]));
    assert!(x_eps < 0.8 && x_cpu > 1.2, "{traced}");
}

/// Each column of the table, against the results. The load is too much, so that no two percentiles are the same.
fn table(_: &Row) {
    let (_, stdout, _, results) = quick(&["echo-tokio", "--rate", "10000000"]);
    for subject in subjects(&results) {
        let (closed, open) = (&subject["closed_loop"], &subject["open_loop"]);
        let ratio = |of: &Value| format!("{}{:.2}", if of["tie"] == true { "~" } else { "" }, float(&of["median"]));
        let calls = ["one_outstanding", "loaded"].map(|load| {
            let calls = subject["calls"][load].as_object();
            calls.map(|calls| format!("{:.2}", calls.values().map(float).sum::<f64>()))
        });
        let micros = |percentile: &str| format!("{:.0}", float(&open["corrected_ns"][percentile]) / 1000.0);
        let expected = [
            number(&subject["rank"]).to_string(),
            subject["name"].as_str().unwrap().into(),
            format!("{:.0}", float(&closed["echoes_per_second"])),
            ratio(&closed["x_eps"]),
            format!("{:.0}", float(&closed["cpu_ns_per_echo"])),
            ratio(&closed["x_cpu"]),
            format!("{:.2}-{:.2}", float(&closed["x_cpu"]["low"]), float(&closed["x_cpu"]["high"])),
            calls.into_iter().collect::<Option<Vec<_>>>().map_or("?".into(), |calls| calls.join("/")),
            micros("p50"),
            micros("p99"),
            (number(&closed["lost"]) + number(&open["lost"])).to_string(),
        ];
        let row = stdout.lines().find(|line| line.split_whitespace().nth(1) == Some(expected[1].as_str()));
        assert_eq!(row.expect("a row").split_whitespace().collect::<Vec<_>>(), expected, "{stdout}");
    }
}

/// Each slice of a server comes right after one of the reference, and the servers take turns in a random order. The slices
/// are seen in the client's sends, which go to one server after another.
fn order(row: &Row) {
    const ROUNDS: usize = 11;
    let log = temporary("order");
    let mut command = Command::new("strace");
    command.args(["-yy", "-e", "trace=sendmmsg", "-e", "signal=none", "-o"]).arg(&log).arg(bin(row.name));
    let output = command.args(["--quick", "echo-poll", "echo-select", "echo-mmsg"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    let mut servers: Vec<_> =
        trace.lines().filter_map(|line| Some(line.split_once("->")?.1.split_once(']')?.0)).collect();
    servers.dedup();
    // Beside the three: the reference again.
    let slices: Vec<_> = servers.chunks_exact(2).take(ROUNDS * 4).collect();
    assert!(slices.len() == ROUNDS * 4 && slices.iter().all(|pair| pair[0] == servers[0]), "{servers:?}");
    let rounds: Vec<Vec<_>> = slices.chunks(4).map(|round| round.iter().map(|pair| pair[1]).collect()).collect();
    assert!(rounds.iter().all(|round| round[3] == rounds[0][3]), "{rounds:?}");
    let sorted = |round: &Vec<_>| round.iter().copied().collect::<std::collections::BTreeSet<&str>>();
    assert!(rounds.iter().all(|round| sorted(round) == sorted(&rounds[0]) && sorted(round).len() == 4), "{rounds:?}");
    // By chance once in 6^10.
    assert!(rounds.iter().any(|round| *round != rounds[0]), "always in the same order: {rounds:?}");
}

fn exports(_: &Row) {
    let (csv, markdown, folder) = (temporary("csv"), temporary("markdown"), temporary("hdr"));
    let [csv_path, markdown_path, folder_path] = [&csv, &markdown, &folder].map(|path| path.to_str().unwrap());
    let flags = ["--export-csv", csv_path, "--export-markdown", markdown_path, "--export-hdr", folder_path];
    let (status, _, stderr, results) = quick(&[&["echo-tokio"], &flags[..]].concat());
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let text = fs::read_to_string(csv).unwrap();
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert!(rows.len() == 3 && rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
    let column = rows[0].iter().position(|name| *name == "x_cpu").unwrap();
    for (row, subject) in rows[1..].iter().zip(subjects(&results)) {
        assert_eq!(row[0], subject["name"]);
        assert_eq!(row[column].parse::<f64>().unwrap(), float(&subject["closed_loop"]["x_cpu"]["median"]));
        for file in [format!("{}.hgrm", row[0]), format!("{}.uncorrected.hgrm", row[0])] {
            let text = fs::read_to_string(folder.join(&file)).unwrap();
            let total = text.lines().rfind(|line| !line.starts_with('#')).unwrap().split_whitespace().nth(2).unwrap();
            let open = &subject["open_loop"];
            let unsent = if file.contains("uncorrected") { 0 } else { number(&open["unsent"]) };
            assert_eq!(total.parse::<u64>().unwrap(), number(&open["received"]) + unsent, "{text}");
            assert!(text.contains("#[Max     = "), "{text}");
        }
    }
    let text = fs::read_to_string(markdown).unwrap();
    assert!(text.lines().take(4).all(|line| line.matches('|').count() == 12), "{text}");
}

fn splice(row: &Row) {
    let file = temporary("readme");
    let path = file.to_str().unwrap();
    fs::write(&file, "no markers\n").unwrap();
    let (status, stdout, stderr) = run(row.name, &["--splice", path]);
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("cannot find <!-- compare --> and <!-- end of compare --> in "), "{stderr}");
    let (_, _, stderr) = run(row.name, &["--tcp", "--splice", path]);
    assert!(stderr.contains("cannot find <!-- compare --tcp --> and <!-- end of compare --> in "), "{stderr}");
    fs::write(&file, "before\n<!-- compare -->\nold\n<!-- end of compare -->\nafter\n").unwrap();
    let (status, stdout, _, _) = quick(&["echo-blocking", "--splice", path]);
    assert_eq!(status, Some(0));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("before\n<!-- compare -->\n```text\n$ scripts/compare --quick --export-json "), "{text}");
    assert!(text.ends_with("\n<!-- end of compare -->\nafter\n") && text.contains(stdout.trim_end()), "{text}");
    fs::remove_file(file).unwrap();
}

fn colours(_: &Row) {
    let (_, plain, _, _) = quick(&["echo-blocking"]);
    let (_, coloured, _, _) = quick(&["echo-blocking", "--color", "always"]);
    assert_eq!((plain.contains('\x1b'), coloured.contains("\x1b[1m")), (false, true));
}

fn sweep(_: &Row) {
    let (status, stdout, _, results) = quick(&["echo-epoll-edge", "--sweep", "window"]);
    assert_eq!(status, Some(0), "{stdout}");
    assert_eq!(results["sweeps"][0]["parameter"], "window");
    let points = results["sweeps"][0]["points"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| number(&point["value"])).collect::<Vec<_>>(), [1, 4, 16, 64, 256]);
    assert!(points.iter().all(|point| point["subjects"].as_array().unwrap().len() == 2), "{results}");
    assert!(stdout.contains("\n window "), "{stdout}");
}

fn gso(_: &Row) {
    let (status, stdout, _, results) = quick(&["echo-blocking", "--gso", "--window", "128"]);
    assert_eq!((status, &results["settings"]["gso"]), (Some(0), &true.into()), "{stdout}");
    let closed = &subjects(&results)[0]["closed_loop"];
    let faults = ["lost", "duplicates", "reordered", "corrupt"].map(|fault| number(&closed[fault]));
    assert!(number(&closed["received"]) > 1000 && faults == [0; 4], "{closed}");
}

/// More than a server can answer: what was never sent is counted, and its lateness is in the corrected latency only.
fn overload(_: &Row) {
    let (status, stdout, _, results) = quick(&["echo-blocking", "--rate", "10000000"]);
    let open = &subjects(&results)[0]["open_loop"];
    assert_eq!(status, Some(0));
    assert!(number(&open["unsent"]) > 10_000, "{open}");
    assert!(number(&open["corrected_ns"]["p50"]) > 5 * number(&open["uncorrected_ns"]["p50"]), "{open}");
    assert!(stdout.contains("echo-blocking: did not keep 10000000 datagrams/s: "), "{stdout}");
}

/// The rounds before its end are kept. It ends once the second process of the reference, whose turn comes last in a round, has
/// been loaded: CPU time says so, which its start alone does not take.
fn reference_that_ends(_: &Row) {
    const LOADED: u64 = 5_000_000; // ns
    let dying = format!("dies={} --bind {{addr}}", bin("echo-blocking").display());
    let flags = ["echo-blocking", "--peer", &dying, "--reference", "dies"];
    let (status, stdout, _, results) = quick_while(&flags, |compare| {
        let servers = servers(compare, 3);
        let [reference, again] = [0, 1].map(|number: usize| &servers[number]);
        let used = |server: &Path| {
            let text = fs::read_to_string(server.join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        until("the reference is loaded", || used(again) > LOADED);
        let id = reference.file_name().unwrap().to_str().unwrap().parse().unwrap();
        // SAFETY: no memory is involved; compare has not waited for its server, which runs, so the id is still its own.
        unsafe { libc::kill(id, libc::SIGKILL) };
    });
    assert_eq!((status, subjects(&results).len()), (Some(1), 1), "{stdout}");
    assert!(stdout.contains("dies: not measured: "), "{stdout}");
    assert!(stdout.contains("; the rounds before it are kept"), "{stdout}");
}

/// The figures are not judged: the machine is busy.
fn self_test(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &["--self-test", "echo-epoll-edge"]);
    assert!(status == Some(0) || status == Some(1) && stdout.contains("too slow"), "{stdout}{stderr}");
    assert!(stdout.starts_with("echo-blocking ") && stdout.contains(" times as many ("), "{stdout}");
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
    assert_eq!(failed, ["dies", "silent"]);
    assert!(stdout.contains("silent: not measured: silent does not echo: no answer on 127.0.0.1:"), "{stdout}");
    assert!(stdout.contains("dies: not measured: "), "{stdout}");
    assert_eq!(subjects(&results).len(), 1);
}

/// The same server twice, with flags and without.
fn flags_of_a_server(_: &Row) {
    let oneshot = "echo-polling --mode oneshot";
    let flags =
        ["echo-polling", oneshot, "echo-polling --no-such-flag", "--assert", "echo-polling --mode oneshot.x_cpu > 0"];
    let (status, stdout, stderr, results) = quick(&flags);
    assert_eq!((status, stderr.as_str()), (Some(1), ""));
    let why = "echo-polling --no-such-flag does not listen: error: unexpected argument '--no-such-flag' found";
    assert!(stdout.contains(why), "{stdout}");
    let calls = |name: &str| {
        let subject = subjects(&results).iter().find(|subject| subject["name"] == name).expect("measured");
        subject["calls"]["one_outstanding"].as_object().unwrap().values().map(float).sum::<f64>()
    };
    let (level, oneshot) = (calls("echo-polling"), calls(oneshot));
    assert!((oneshot - level - 1.0).abs() < 0.2, "{level} and {oneshot} calls");
}

/// Calls that cannot be counted one by one in each thread are counted together.
fn few_descriptors(row: &Row) {
    let file = temporary("few.json");
    let script = "ulimit -n 250 && exec \"$0\" --quick --tcp --connections 20 echo-tcp-epoll --export-json \"$1\"";
    let output = Command::new("bash").args(["-c", script]).arg(bin(row.name)).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    fs::remove_file(&file).unwrap();
    for subject in subjects(&results) {
        let calls = subject["calls"]["loaded"].as_object().unwrap();
        let together = calls.keys().collect::<Vec<_>>() == ["other"];
        assert_eq!(together, subject["name"] == "echo-tcp-threads", "{calls:?}");
    }
    assert_eq!(results["notes"].as_array().unwrap().len(), 0, "{}", results["notes"]);
}

fn children(of: &Child) -> Vec<PathBuf> {
    let id = of.id();
    let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    text.split_whitespace().map(|id| Path::new("/proc").join(id)).collect()
}

/// The servers that it has started, in that order, once there are `count`.
fn servers(compare: &Child, count: usize) -> Vec<PathBuf> {
    until("it has started its servers", || children(compare).len() == count);
    children(compare)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "waited {PATIENCE:?} until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// However it ends, no server is left.
fn ended_by(signal: i32) {
    let mut command = Command::new(bin("compare"));
    let mut compare = command.args(["echo-mio-edge"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let servers = servers(&compare, 3);
    // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
    unsafe { libc::kill(compare.id() as i32, signal) };
    let status = compare.wait().unwrap();
    if signal == libc::SIGINT {
        let stderr = std::io::read_to_string(compare.stderr.take().unwrap()).unwrap();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("Error: interrupted: "), "{stderr}");
    }
    until("no server is left", || servers.iter().all(|server| fs::read_to_string(server.join("stat")).is_err()));
}
