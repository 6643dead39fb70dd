//! What is printed and asked: data on stdout, chatter on stderr, colour and questions on a terminal only.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::{Error, Exit, Result, because};

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people.
    Table,
    /// One JSON object or array for programs; the shapes are in docs/cli.md and stable.
    Json,
}

/// Arguments of commands that change something.
#[derive(Debug, Clone, Copy, Args)]
pub struct Change {
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// The terminal, or what stands in for one.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    /// How data is printed.
    pub format: Format,
    /// Whether questions can be asked and bars be drawn.
    pub terminal: bool,
    colour: bool,
}

impl Ui {
    /// Looks at what stdin, stderr and the environment are.
    pub fn new(format: Format) -> Self {
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { format, terminal, colour }
    }

    /// Says something on stderr that is not data.
    pub fn note(&self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr(), "{}", text.as_ref());
    }

    /// Warns on stderr.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.labelled("warning", "33", text.as_ref());
    }

    /// Reports the error that ends the command, on stderr.
    pub fn error(&self, text: impl AsRef<str>) {
        self.labelled("error", "31", text.as_ref());
    }

    fn labelled(&self, label: &str, colour: &str, text: &str) {
        let _ = match self.colour {
            true => writeln!(io::stderr(), "\x1b[1;{colour}m{label}:\x1b[0m {text}"),
            false => writeln!(io::stderr(), "{label}: {text}"),
        };
    }

    /// Prints one thing: a JSON object, or lines of `label  value`.
    pub fn object<T: Serialize>(
        &self,
        value: &T,
        lines: impl FnOnce(&T) -> Vec<(&'static str, String)>,
    ) -> Result<()> {
        match self.format {
            Format::Json => self.json(value),
            Format::Table => {
                let lines = lines(value);
                let width = lines.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
                let mut text = String::new();
                for (label, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
                    let indented = value.trim_end().replace('\n', &format!("\n{:width$}  ", ""));
                    text.push_str(&format!("{label:width$}  {}\n", printable(&indented)));
                }
                print(&text)
            }
        }
    }

    /// Prints many things: a JSON array, or a table.
    pub fn list<T: Serialize>(
        &self,
        values: &[T],
        header: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        match self.format {
            Format::Json => self.json(&values),
            Format::Table if values.is_empty() => {
                self.note("nothing found");
                Ok(())
            }
            Format::Table => {
                let text = table(header, values.iter().map(row)).to_string();
                text.lines().try_for_each(|line| print(&format!("{}\n", line.trim_end())))
            }
        }
    }

    /// Prints one JSON value, on one line per element of a terminal's reader, pretty.
    pub fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(because(Exit::Failed, "cannot write JSON"))?;
        print(&format!("{text}\n"))
    }

    /// Asks before something that can be undone or only costs time. Without a terminal nobody is asked.
    pub fn confirm(&self, change: Change, question: &str) -> Result<()> {
        if change.yes || !self.terminal {
            return Ok(());
        }
        let answer = self.ask(&format!("{question} [y/N] "))?;
        if matches!(answer.as_str(), "y" | "Y" | "yes") { Ok(()) } else { Err(not_done()) }
    }

    /// Asks before something is lost: `word` must be typed. Without a terminal `--yes` must have been given.
    pub fn confirm_loss(&self, change: Change, what: &str, word: &str) -> Result<()> {
        if change.yes {
            return Ok(());
        }
        if !self.terminal {
            return Err(Error::usage(format!("{what}; without a terminal to ask on, say --yes")));
        }
        self.note(what);
        if self.ask(&format!("type {word:?} to go on: "))? == word { Ok(()) } else { Err(not_done()) }
    }

    fn ask(&self, question: &str) -> Result<String> {
        let failed = "cannot ask on this terminal; say --yes";
        write!(io::stderr(), "{question}").map_err(because(Exit::Failed, failed))?;
        let _ = io::stderr().flush();
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(because(Exit::Failed, failed))?;
        Ok(line.trim().to_owned())
    }
}

fn not_done() -> Error {
    Error::failed("not confirmed: nothing was done")
}

/// Writes data to stdout. A reader that went away (`| head`) ends the process quietly, as it does for every tool.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(Exit::Done as i32),
        other => other.map_err(because(Exit::Failed, "cannot write to stdout")),
    }
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|text| text.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Takes control characters out of what hosts sent, so that a file's name cannot drive the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A size for people: `326.4 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Labels for people: `region=eu,role=pos`.
pub fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// `1 file`, `2 files`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_iec() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (342_255_206, "326.4 MiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }

    #[test]
    fn a_loss_without_a_terminal_needs_yes() {
        let ui = Ui { format: Format::Table, terminal: false, colour: false };
        let no = Change { dry_run: false, yes: false };
        assert_eq!(ui.confirm_loss(no, "this revokes x", "x").unwrap_err().exit(), Exit::Usage);
        assert!(ui.confirm_loss(Change { yes: true, ..no }, "this revokes x", "x").is_ok());
    }
}
