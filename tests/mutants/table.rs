//! The deliberate defects of this folder, read from its files. Both the program that tries them and the suite use this.

use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// One deliberate defect: a text of one file, and what stands there instead.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// The defect, in plain English.
    pub name: String,
    /// Relative to the package's folder.
    pub file: String,
    /// Occurs once in the file.
    pub find: String,
    pub replace: String,
    /// The check of the suite that must fail (`echo-tokio::count`), or a unit test (`unit: queue::tests::wraps`).
    pub caught_by: String,
}

#[derive(Deserialize)]
struct File {
    mutant: Vec<Mutant>,
}

impl Mutant {
    /// The mutants of the package in `root`, those of one file together.
    pub fn all(root: &Path) -> Vec<Mutant> {
        let files = fs::read_dir(root.join("tests/mutants")).expect("tests/mutants").map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let File { mutant } = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            mutant
        };
        let mut mutants: Vec<_> = files.flat_map(read).collect();
        mutants.sort_by(|a, b| a.file.cmp(&b.file));
        mutants
    }

    /// The text of its file with the defect in it, if the text to be replaced is found once.
    pub fn apply(&self, text: &str) -> Result<String, String> {
        match text.matches(&self.find).count() {
            1 if self.find != self.replace => Ok(text.replacen(&self.find, &self.replace, 1)),
            1 => Err(format!("{}: nothing is replaced", self.file)),
            count => Err(format!("{}: {:?} occurs {count} times, not once", self.file, self.find)),
        }
    }

    /// The unit test that catches it, if it is one.
    pub fn unit_test(&self) -> Option<&str> {
        self.caught_by.strip_prefix("unit: ")
    }

    /// The binary that its file belongs to; `None` for the common module.
    pub fn bin(&self) -> Option<&str> {
        let name = self.file.strip_prefix("src/bin/")?;
        Some(name.split_once('/').map_or(name.trim_end_matches(".rs"), |(folder, _)| folder))
    }
}

/// All files in a folder and the folders in it.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
