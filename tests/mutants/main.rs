//! Tries the mutants of this folder: puts each into a copy of the sources, builds what it changes, runs the one check that
//! must fail, and says whether it did. Usage: scripts/mutants [FILTER], a part of a name, a file or a check.
//!
//! Everything happens in `target/mutants`: `tree` is the copy, `build` cargo's folder for it, and `bin` the binaries that the
//! suite starts (ECHO_LAB_BIN): those of this tree, except the mutated ones.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;
use table::{Mutant, files_below};

type Result<T> = std::result::Result<T, String>;

/// How long one check may take: none waits that long for anything.
const PATIENCE_SECONDS: &str = "300";

fn main() -> echo_lab::Result<ExitCode> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let caught = try_all(&filter).map_err(echo_lab::Error::new)?;
    Ok(if caught { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether all that match the filter are caught.
fn try_all(filter: &str) -> Result<bool> {
    let place = Place::new()?;
    let mut mutants = Mutant::all(&place.root);
    mutants.retain(|it| [&it.name, &it.file, &it.caught_by].iter().any(|text| text.contains(filter)));
    place.copy_sources()?;
    // Those caught by unit tests come last: these are built in debug mode.
    mutants.sort_by_key(|mutant| mutant.unit_test().is_some());
    let suite = place.suite()?;
    let mut passes = BTreeMap::new();
    let mut unit_tests_pass = false;
    let mut survived = Vec::new();
    println!("{:64} {:34} {:64} {:>7}", "defect", "file", "caught by", "seconds");
    for mutant in &mutants {
        let start = Instant::now();
        let Mutant { name, file, caught_by, .. } = mutant;
        if mutant.unit_test().is_some() && !unit_tests_pass {
            place.unit_tests_pass(&mutants)?;
            unit_tests_pass = true;
        }
        if mutant.unit_test().is_none() && !passes.contains_key(caught_by) {
            place.link_binaries(&place.built, |_| true)?;
            passes.insert(caught_by, suite.run(caught_by, true));
        }
        let unspoilt = passes.get(caught_by).cloned().unwrap_or(Ok(()));
        let tried = unspoilt.map_err(|why| format!("without the defect, {why}"));
        let tried = tried.and_then(|()| place.try_one(mutant, &suite));
        let caught = if tried.is_ok() { caught_by } else { "NOT CAUGHT" };
        println!("{name:64} {file:34} {caught:64} {:7.1}", start.elapsed().as_secs_f64());
        survived.extend(tried.err().map(|why| format!("{file}: {name}: {why}")));
    }
    println!("{} mutants, {} not caught", mutants.len(), survived.len());
    survived.iter().for_each(|why| println!("{why}"));
    Ok(survived.is_empty())
}

struct Place {
    root: PathBuf,
    /// The binaries without a mutant.
    built: PathBuf,
    tree: PathBuf,
    build: PathBuf,
    bin: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let own = std::env::current_exe().map_err(|error| format!("cannot find this program's path: {error}"))?;
        let built = own.ancestors().nth(2).ok_or("this program is not in cargo's folder")?.to_path_buf();
        let place = built.parent().unwrap_or(&built).join("mutants");
        let [tree, build, bin] = ["tree", "build", "bin"].map(|name| place.join(name));
        for folder in [&tree, &bin.join("examples")] {
            fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        }
        Ok(Self { root, built, tree, build, bin })
    }

    /// Makes the copy like the sources. A file that is the same is left alone, so that cargo does not build it anew.
    fn copy_sources(&self) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(&self.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = succeeds(&mut git)?;
        let files = String::from_utf8_lossy(&listed.stdout).into_owned();
        let files: BTreeSet<_> = files.split_terminator('\0').filter(|file| self.root.join(file).is_file()).collect();
        for file in &files {
            let text = read(&self.root.join(file))?;
            if fs::read(self.tree.join(file)).ok().as_ref() != Some(&text) {
                write(&self.tree.join(file), &text)?;
            }
        }
        // A file that is gone from the sources would still be a binary of the copy.
        for file in files_below(&self.tree) {
            let name = file.strip_prefix(&self.tree).unwrap_or(&file).to_string_lossy().into_owned();
            if !files.contains(name.as_str()) {
                fs::remove_file(&file).map_err(|error| format!("cannot remove {}: {error}", file.display()))?;
            }
        }
        Ok(())
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.build).args(arguments);
        // Libraries are those that are built already (cargo 1.91; an older one builds them once more).
        cargo.env("CARGO_BUILD_BUILD_DIR", self.built.parent().unwrap_or(&self.built));
        cargo.args(["--quiet", "--locked", "--all-features"]);
        cargo
    }

    /// Unit tests of the library or of one binary, in the copy.
    fn unit_tests(&self, bin: Option<&str>, names: &[&str]) -> Command {
        let mut cargo = self.cargo(&["test"]);
        match bin {
            Some(bin) => cargo.args(["--bin", bin]),
            None => cargo.arg("--lib"),
        };
        cargo.args(["--", "--exact"]).args(names);
        cargo
    }

    fn unit_tests_pass(&self, mutants: &[Mutant]) -> Result<()> {
        let mut names = BTreeMap::<_, BTreeSet<_>>::new();
        for mutant in mutants {
            if let Some(test) = mutant.unit_test() {
                names.entry(mutant.bin()).or_default().insert(test);
            }
        }
        for (bin, names) in names {
            let names: Vec<_> = names.into_iter().collect();
            let output = succeeds(&mut self.unit_tests(bin, &names))?;
            let passed = format!("ok. {} passed", names.len());
            if !text(&output).contains(&passed) {
                return Err(format!("without a mutant, not all of these unit tests are there: {names:?}"));
            }
        }
        Ok(())
    }

    /// The suite of this tree, built.
    fn suite(&self) -> Result<Suite> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.current_dir(&self.root).args(["test", "--release", "--quiet", "--locked", "--all-features"]);
        cargo.args(["--test", "suite", "--no-run", "--message-format=json-render-diagnostics"]);
        let output = succeeds(cargo.stderr(Stdio::inherit()))?;
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut suites = messages.filter(|message| message["target"]["name"] == "suite");
        let path = suites.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        Ok(Suite { path: path.ok_or("cargo does not say where the suite is")?, bin: self.bin.clone() })
    }

    /// Puts binaries of `from` before the suite. These are hard links: a binary looks for others beside itself.
    fn link_binaries(&self, from: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for folder in ["", "examples"] {
            let list = fs::read_dir(from.join(folder)).into_iter().flatten().flatten();
            for file in list.filter(|file| file.path().is_file() && wanted(&file.file_name().to_string_lossy())) {
                let to = self.bin.join(folder).join(file.file_name());
                let _ = fs::remove_file(&to);
                fs::hard_link(file.path(), &to).map_err(|error| format!("cannot link {}: {error}", to.display()))?;
            }
        }
        Ok(())
    }

    /// Ok if its check fails.
    fn try_one(&self, mutant: &Mutant, suite: &Suite) -> Result<()> {
        let file = self.tree.join(&mutant.file);
        let original = read(&file)?;
        let mutated = mutant.apply(&String::from_utf8_lossy(&original))?;
        write(&file, mutated.as_bytes())?;
        let tried = match mutant.unit_test() {
            Some(test) => self.unit_test_fails(mutant.bin(), test),
            None => self.check_fails(mutant, suite),
        };
        write(&file, &original)?;
        tried
    }

    fn unit_test_fails(&self, bin: Option<&str>, test: &str) -> Result<()> {
        let output = limited(&self.unit_tests(bin, &[test]))?;
        // A test that ends the process, or is ended, fails too; what does not compile has no test result.
        if text(&output).contains("running 1 test") {
            if output.status.success() { Err(format!("{test} passes")) } else { Ok(()) }
        } else {
            Err(format!("cannot run {test}:\n{}", text(&output)))
        }
    }

    fn check_fails(&self, mutant: &Mutant, suite: &Suite) -> Result<()> {
        // The binary that the check is about, and, if another one has the defect, that one.
        let subject = mutant.caught_by.split_once("::").map_or("", |(subject, _)| subject);
        let bins: BTreeSet<_> = [Some(subject), mutant.bin()].into_iter().flatten().collect();
        let bin_flags = bins.iter().flat_map(|bin| ["--bin", bin]).collect::<Vec<_>>();
        succeeds(&mut self.cargo(&[&["build", "--release"], &bin_flags[..]].concat()))?;
        let is_mutated = |name: &str| bins.contains(name);
        self.link_binaries(&self.build.join("release"), is_mutated)?;
        let run = suite.run(&mutant.caught_by, false);
        self.link_binaries(&self.built, is_mutated)?;
        run
    }
}

/// The program with all checks.
struct Suite {
    path: PathBuf,
    bin: PathBuf,
}

impl Suite {
    /// Runs one check, which must pass or must fail. One that is skipped does neither.
    fn run(&self, check: &str, must_pass: bool) -> Result<()> {
        let mut command = Command::new(&self.path);
        command.args(["--exact", check]).env("ECHO_LAB_BIN", &self.bin).env("ECHO_LAB_RUN_ALL", "1");
        let output = limited(&command)?;
        let (passed, failed) = ("1 passed; 0 failed", "0 passed; 1 failed");
        let (expected, other) = if must_pass { (passed, failed) } else { (failed, passed) };
        match text(&output) {
            said if said.contains(expected) => Ok(()),
            said if said.contains(other) && must_pass => Err(format!("{check} fails:\n{said}")),
            said if said.contains(other) => Err(format!("{check} passes")),
            said => Err(format!("{check} was not run:\n{said}")),
        }
    }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// Runs it to its end, which must be a success.
fn succeeds(command: &mut Command) -> Result<Output> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if output.status.success() { Ok(output) } else { Err(format!("{command:?} fails:\n{}", text(&output))) }
}

/// Runs it to its end, with timeout(1) in front of it: whatever has hung is ended, and is not a success.
fn limited(command: &Command) -> Result<Output> {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=10", PATIENCE_SECONDS]).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    limited.stdin(Stdio::null()).output().map_err(|error| format!("cannot start {limited:?}: {error}"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    folder.and_then(|()| fs::write(path, bytes)).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
