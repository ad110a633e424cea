//! The catalogue against the package, and the generated text against what generates it.

use crate::mutants::{Mutant, files_below};
use crate::server::run;
use crate::trial;
use echo_lab::catalog::{Kind, ROWS, Row};
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// `checks`: the names of all others.
pub fn trials(checks: BTreeSet<String>) -> Vec<Trial> {
    let table: [(&str, fn()); 4] = [
        ("catalogue_lists_the_files", catalogue_lists_the_files),
        ("catalogue_names_the_features", catalogue_names_the_features),
        ("headers_say_how_to_run", headers_say_how_to_run),
        ("readme_table", readme_table),
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

/// The table between the markers in README.md is the catalogue.
fn readme_table() {
    const BEGIN: &str =
        "<!-- catalogue: made by `BLESS=1 cargo test --release --all-features --test suite -- project::` -->\n";
    const END: &str = "<!-- end of catalogue -->";
    let mut table =
        String::from("\n| binary | question it answers | feature | calls for each echo |\n| --- | --- | --- | --- |\n");
    for row in ROWS {
        let Row { name, shows, .. } = row;
        let features = row.features.iter().map(|feature| format!("`{feature}`")).collect::<Vec<_>>().join(", ");
        let calls = match (row.calls, row.kind) {
            (Some(calls), _) => format!("[{}](docs/traces/{name}.txt)", calls.per_echo),
            (None, Kind::Probe) => format!("[trace](docs/traces/{name}.txt)"),
            (None, Kind::Xdp) => "0".into(),
            (None, _) => String::new(),
        };
        table += &format!("| [`{name}`]({}) | {shows} | {features} | {calls} |\n", source(name));
    }
    let readme = read("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("the first marker");
    let (_, after) = rest.split_once(END).expect("the second marker");
    check_generated("README.md", &format!("{before}{BEGIN}{table}\n{END}{after}"));
}

/// A binary that cannot work on this system says so in one sentence.
pub fn unsupported(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &[]);
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with(&format!("Error: {} needs ", row.name)) && stderr.lines().count() == 1, "{stderr}");
}
