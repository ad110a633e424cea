//! The gate: conditions on figures, for use in continuous integration.

use crate::results::{Ratio, Results};
use crate::stats::Estimate;
use echo_lab::{Error, Result};

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
        let closed = &figures.closed_loop;
        let Ratio { estimate: Estimate { median, low, high }, .. } =
            if self.figure == "x_cpu" { closed.x_cpu } else { closed.x_eps };
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
