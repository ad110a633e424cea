//! The catalogue against the package, and the generated text against what generates it.

use crate::mutants::{Mutant, files_below};
use crate::server::run;
use crate::trial;
use echo_lab::catalog::{Kind, ROWS, Row};
use libtest_mimic::Trial;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// `checks`: the names of all others.
pub fn trials(checks: BTreeSet<String>) -> Vec<Trial> {
    let table: [(&str, fn()); 6] = [
        ("catalogue_lists_the_files", catalogue_lists_the_files),
        ("catalogue_names_the_features", catalogue_names_the_features),
        ("headers_say_how_to_run", headers_say_how_to_run),
        ("examples_stay_readable", examples_stay_readable),
        ("readme_tables", readme_tables),
        ("patterns_are_where_they_are_said_to_be", patterns_are_where_they_are_said_to_be),
    ];
    let mut trials: Vec<_> = table.map(|(name, run)| trial(format!("project::{name}"), None, run)).into();
    // Elsewhere some of the checks do not exist.
    if cfg!(target_os = "linux") {
        let names = trials.iter().map(|trial| trial.name().to_string());
        let checks = checks.into_iter().chain(names).collect();
        trials.push(trial("project::mutants_apply".into(), None, move || mutants_apply(&checks)));
    }
    trials
}

fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

pub fn read(relative: &str) -> String {
    fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// `relative` must hold `expected`; with BLESS=1 it is made so.
pub fn check_generated(relative: &str, expected: &str) {
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::write(path(relative), expected).unwrap_or_else(|error| panic!("{relative}: {error}"));
    }
    let found = fs::read_to_string(path(relative)).unwrap_or_default();
    assert_eq!(found, expected, "{relative} is out of date: rewrite it with BLESS=1 scripts/test");
}

fn catalogue_lists_the_files() {
    let files = fs::read_dir(path("src/bin")).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_str().unwrap().to_string()
    });
    let rows = ROWS.iter().map(|row| row.name.to_string());
    assert_eq!(rows.collect::<BTreeSet<_>>(), files.collect());
}

fn catalogue_names_the_features() {
    let manifest = read("Cargo.toml");
    for row in ROWS {
        let entry = manifest.split("\n\n").find(|part| part.contains(&format!("name = \"{}\"\n", row.name)));
        let required = entry.and_then(|entry| entry.split_once("required-features = ")).map_or("[]", |(_, list)| list);
        assert_eq!(required.trim(), format!("{:?}", row.features), "{}", row.name);
    }
}

/// The file in which a binary begins.
fn source(name: &str) -> String {
    let file = format!("src/bin/{name}.rs");
    if path(&file).exists() { file } else { format!("src/bin/{name}/main.rs") }
}

/// The command in a binary's header works as typed.
fn headers_say_how_to_run() {
    for row in ROWS.iter().filter(|row| row.kind != Kind::Tool) {
        let source = read(&source(row.name));
        let header: Vec<_> = source.lines().take_while(|line| line.starts_with("//!")).collect();
        let line = header.iter().find(|line| line.starts_with("//! Run:")).expect(row.name);
        assert!(line.trim_end().contains(&command(row)), "{}: {line}", row.name);
        for part in ["//! Second terminal:", "//! In the trace:", "//! Left out:", "//! Oldest system:"] {
            assert!(header.iter().any(|line| line.starts_with(part)), "{}: no {part}", row.name);
        }
    }
}

/// Each deliberate defect can be put into its file, and the check that must catch it exists.
fn mutants_apply(checks: &BTreeSet<String>) {
    let files = files_below(&path("src"));
    for mutant in Mutant::all(&path("")) {
        let applied = mutant.apply(&read(&mutant.file));
        assert!(applied.is_ok(), "{}: {applied:?}", mutant.name);
        let known = match mutant.unit_test() {
            Some(test) => {
                let function = format!("fn {}(", test.rsplit("::").next().unwrap_or(test));
                let bin = path("src/bin").join(mutant.bin().unwrap_or_default());
                let own =
                    files.iter().filter(|file| file.with_extension("").starts_with(&bin) == mutant.bin().is_some());
                own.map(|file| fs::read_to_string(file).unwrap()).any(|text| text.contains(&function))
            }
            None => checks.contains(&mutant.caught_by),
        };
        assert!(known, "{}: there is no check {:?}", mutant.name, mutant.caught_by);
    }
}

fn command(row: &Row) -> String {
    let default = row.features.iter().all(|feature| ["mio", "tokio", "futures"].contains(feature));
    let features = if default { String::new() } else { format!(" --features {}", row.features.join(",")) };
    format!("cargo run --bin {}{features}", row.name)
}

/// What a reader meets in a file: few conditions of the system, a loop that fits on a screen, and, where the calls are awaited,
/// not much more than that.
fn examples_stay_readable() {
    for row in ROWS.iter().filter(|row| !matches!(row.kind, Kind::Tool | Kind::Xdp)) {
        let text = read(&source(row.name));
        let conditions = text.matches("#[cfg(").count();
        assert!(conditions <= 3, "{}: {conditions} cfg attributes", row.name);
        // The loop of a runtime that has only operations and no readiness is longer.
        let most = if row.features.contains(&"compio") { 75 } else { 40 };
        let lines = function_lines(&text, "serve");
        assert!(lines <= most, "{}: serve has {lines} lines", row.name);
        if row.kind == Kind::Udp && row.calls.is_some_and(|calls| calls.awaited) {
            // Two tasks take more than one.
            let most = if lines_of(&text, "spawn_local(") > 0 { 90 } else { 45 };
            let code = code_lines(&text);
            assert!(code <= most, "{}: {code} lines of code", row.name);
        }
    }
}

fn lines_of(text: &str, what: &str) -> usize {
    text.lines().filter(|line| line.contains(what)).count()
}

/// The lines of the body of the function `name`; 0 if there is none.
fn function_lines(text: &str, name: &str) -> usize {
    let mut lines = text.lines().skip_while(|line| !line.contains(&format!("fn {name}(")));
    let Some(first) = lines.next() else { return 0 };
    let end = format!("{}}}", &first[..first.len() - first.trim_start().len()]);
    lines.take_while(|line| *line != end).count()
}

/// Lines without comments, blank ones and imports.
fn code_lines(text: &str) -> usize {
    let mut importing = false;
    let counts = |line: &&str| {
        let line = line.trim();
        let import = importing || line.starts_with("use ");
        importing = import && !line.ends_with(';');
        !(import || line.is_empty() || line.starts_with("//"))
    };
    text.lines().filter(counts).count()
}

/// The tables between the markers in README.md are made from the catalogue and from docs/traces.
fn readme_tables() {
    let tables = [
        ("udp", binaries(&[Kind::Udp, Kind::Xdp], "system calls for each echo")),
        ("tcp", binaries(&[Kind::Tcp], "system calls for each echo")),
        ("probes", binaries(&[Kind::Probe], "trace")),
        ("tools", binaries(&[Kind::Tool], "")),
        ("system calls", system_calls()),
    ];
    let readme = tables.into_iter().fold(read("README.md"), |readme, (name, table)| {
        let (begin, end) = (format!("<!-- {name}: BLESS=1 scripts/test -->\n"), format!("<!-- end of {name} -->"));
        let (before, rest) = readme.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
        format!("{before}{begin}\n{table}\n{end}{after}")
    });
    check_generated("README.md", &readme);
}

/// A line for each binary of these kinds; the last column links to its trace.
fn binaries(kinds: &[Kind], last: &str) -> String {
    let mut table = format!("| binary | question it answers | feature | {last} |\n| --- | --- | --- | --- |\n");
    for row in ROWS.iter().filter(|row| kinds.contains(&row.kind)) {
        let Row { name, shows, .. } = row;
        let features = row.features.iter().map(|feature| format!("`{feature}`")).collect::<Vec<_>>().join(", ");
        let trace = match (row.calls, row.kind) {
            (Some(calls), _) => format!("[{}](docs/traces/{name}.txt)", calls.per_echo),
            (None, Kind::Probe) => format!("[trace](docs/traces/{name}.txt)"),
            (None, Kind::Xdp) => "0".into(),
            (None, _) => String::new(),
        };
        table += &format!("| [`{name}`]({}) | {shows} | {features} | {trace} |\n", source(name));
    }
    table
}

/// A line for each system call that docs/traces names: in whose steady state it is.
fn system_calls() -> String {
    let mut users = BTreeMap::<String, Vec<&str>>::new();
    for row in ROWS {
        let Ok(trace) = fs::read_to_string(path(&format!("docs/traces/{}.txt", row.name))) else { continue };
        let calls: BTreeSet<_> = trace.lines().filter_map(system_call).collect();
        calls.into_iter().for_each(|call| users.entry(call.into()).or_default().push(row.name));
    }
    let line = |(call, names): (String, Vec<&str>)| {
        let links: Vec<_> = names.iter().map(|name| format!("[{name}](docs/traces/{name}.txt)")).collect();
        format!("| `{call}` | {} |\n", links.join(", "))
    };
    format!(
        "| system call | in the steady state of |\n| --- | --- |\n{}",
        users.into_iter().map(line).collect::<String>()
    )
}

/// The name before the first parenthesis; a thread may stand before it.
fn system_call(line: &str) -> Option<&str> {
    let name = line.split_once('(')?.0.rsplit(' ').next()?;
    name.starts_with(|c: char| c.is_ascii_lowercase()).then_some(name)
}

/// Each pattern in README.md is where it says: the file is there, and has the functions.
fn patterns_are_where_they_are_said_to_be() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("<!-- patterns -->\n").expect("the first marker");
    let (table, _) = rest.split_once("<!-- end of patterns -->").expect("the second marker");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert!(rows.len() >= 10, "{} patterns", rows.len());
    for row in rows {
        let places: Vec<_> = row.split("](").skip(1).collect();
        assert!(!places.is_empty(), "no link: {row}");
        for place in places {
            let (file, functions) = place.split_once(')').expect("the end of a link");
            let source = read(file);
            let functions: Vec<_> = functions.split('`').skip(1).step_by(2).collect();
            assert!(!functions.is_empty(), "no function: {row}");
            for function in functions {
                assert!(source.contains(&format!("fn {function}")), "{file} has no function {function}: {row}");
            }
        }
    }
}

/// A binary that cannot work on this system says so in one sentence.
pub fn unsupported(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &[]);
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with(&format!("Error: {} needs ", row.name)) && stderr.lines().count() == 1, "{stderr}");
}
