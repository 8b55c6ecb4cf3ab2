//! Progress on standard error: a bar on a terminal, a plain line now and then elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines at least this much time passes.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of something that has a known end.
pub struct Progress(Kind);

enum Kind {
    Bar(ProgressBar),
    Lines(Lines),
}

struct Lines {
    to: Box<dyn Write + Send>,
    what: String,
    total: u64,
    started: Instant,
    every: Duration,
    last: Option<Instant>,
}

impl Progress {
    /// Progress towards `total`, called `what` (for example "train").
    pub fn new(what: &str, total: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self(Kind::Lines(Lines::new(
                Box::new(io::stderr()),
                what,
                total,
                LINE_EVERY,
            )));
        }
        let bar = ProgressBar::new(total).with_prefix(what.to_owned());
        let template = "{prefix} {wide_bar} {pos}/{len} {elapsed}, {eta} left {msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self(Kind::Bar(bar))
    }

    /// `done` of the total is done; `state` is shown beside it, for example "loss 1.234".
    pub fn update(&mut self, done: u64, state: &str) {
        match &mut self.0 {
            Kind::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(state.to_owned());
            }
            Kind::Lines(lines) => lines.update(done, state),
        }
    }

    /// Another total, for a run that learns its length as it goes.
    pub fn set_total(&mut self, total: u64) {
        match &mut self.0 {
            Kind::Bar(bar) => bar.set_length(total),
            Kind::Lines(lines) => lines.total = total,
        }
    }

    /// A line of its own that stays.
    pub fn note(&mut self, line: &str) {
        match &mut self.0 {
            Kind::Bar(bar) => bar.suspend(|| eprintln!("{line}")),
            Kind::Lines(lines) => lines.print(line),
        }
    }

    /// Removes the bar and leaves one last line.
    pub fn finish(mut self, line: &str) {
        self.remove();
        self.note(line);
    }

    /// Removes the bar.
    pub fn clear(self) {
        self.remove();
    }

    fn remove(&self) {
        if let Kind::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn new(to: Box<dyn Write + Send>, what: &str, total: u64, every: Duration) -> Self {
        Self {
            to,
            what: what.to_owned(),
            total,
            started: Instant::now(),
            every,
            last: None,
        }
    }

    fn update(&mut self, done: u64, state: &str) {
        if self.last.is_some_and(|last| last.elapsed() < self.every) {
            return;
        }
        self.last = Some(Instant::now());
        let mut line = format!("{} {done}/{}", self.what, self.total);
        if done > 0 && done < self.total {
            let left =
                self.started.elapsed().as_secs_f64() / done as f64 * (self.total - done) as f64;
            let _ = write!(line, ", {} left", time(left));
        }
        if !state.is_empty() {
            let _ = write!(line, ": {state}");
        }
        self.print(&line);
    }

    /// Progress that cannot be shown is no reason to stop.
    fn print(&mut self, line: &str) {
        let _ = writeln!(self.to, "{line}");
    }
}

/// `45s`, `12m 5s` or `3h 12m`.
fn time(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(every: Duration) -> (Progress, impl Fn() -> String) {
        let out = Shared::default();
        let lines = Lines::new(Box::new(out.clone()), "train", 100, every);
        (Progress(Kind::Lines(lines)), move || {
            String::from_utf8(out.0.lock().unwrap().clone()).unwrap()
        })
    }

    #[test]
    fn plain_lines_are_few_and_complete() {
        let (mut progress, text) = lines(Duration::from_secs(3600));
        progress.update(0, "");
        for step in 1..100 {
            progress.update(step, "loss 1");
        }
        progress.note("checkpoint");
        progress.finish("done");
        assert_eq!(text(), "train 0/100\ncheckpoint\ndone\n");
    }

    #[test]
    fn plain_lines_tell_the_time_left() {
        let (mut progress, text) = lines(Duration::ZERO);
        progress.update(50, "loss 1.25");
        progress.set_total(50);
        progress.update(50, "");
        assert_eq!(text(), "train 50/100, 0s left: loss 1.25\ntrain 50/50\n");
    }

    #[test]
    fn times_read_well() {
        assert_eq!(time(59.4), "59s");
        assert_eq!(time(59.6), "1m 0s");
        assert_eq!(time(725.0), "12m 5s");
        assert_eq!(time(11_580.0), "3h 13m");
    }

    #[test]
    fn a_bar_takes_everything_that_lines_take() {
        let mut progress = Progress(Kind::Bar(ProgressBar::hidden()));
        progress.update(3, "loss 1");
        progress.set_total(7);
        let Kind::Bar(bar) = &progress.0 else {
            unreachable!()
        };
        assert_eq!((bar.position(), bar.length()), (3, Some(7)));
        progress.finish("done");
    }
}
