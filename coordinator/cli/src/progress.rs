//! Progress bars: on a terminal only, on stderr, with rate, and with an ETA only where the end is known.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ui::Ui;

/// A bar that counts bytes.
#[derive(Debug, Clone)]
pub struct Bar {
    bar: ProgressBar,
    known: bool,
}

const KNOWN: &str =
    "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}  {wide_msg}";
const UNKNOWN: &str = "{prefix} {spinner} {binary_bytes}  {binary_bytes_per_sec}  {elapsed}  {wide_msg}";

impl Bar {
    /// A bar to `total` bytes; 0 where the end is not known. Draws nothing where nobody looks.
    pub fn new(ui: &Ui, prefix: &str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if ui.terminal {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        bar.set_prefix(prefix.to_owned());
        let mut this = Self { bar, known: true };
        this.expect(total);
        this
    }

    /// The end became known, or changed; 0 for unknown.
    pub fn expect(&mut self, total: u64) {
        if total > 0 {
            self.bar.set_length(total);
        }
        if (total > 0) != self.known || self.bar.length().is_none() {
            self.known = total > 0;
            let template = if self.known { KNOWN } else { UNKNOWN };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style.progress_chars("=> "));
            }
        }
    }

    /// So many bytes are done. An estimate that turns out too low is given up: no ETA is better than a wrong one.
    pub fn set(&mut self, done: u64) {
        if self.known && self.bar.length().is_some_and(|total| done > total) {
            self.expect(0);
            self.bar.unset_length();
        }
        self.bar.set_position(done);
    }

    /// What is being done right now.
    pub fn say(&self, message: &str) {
        self.bar.set_message(message.to_owned());
    }

    /// Prints a line above the bar; on stderr as it is where there is no bar.
    pub fn line(&self, ui: &Ui, text: &str) {
        if ui.terminal { self.bar.suspend(|| ui.note(text)) } else { ui.note(text) }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
