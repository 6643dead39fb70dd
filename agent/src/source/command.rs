//! Any command's standard output, only as declared in the host's own configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::SourceError;
use super::process::{Tool, find_program};
use super::sink::Sink;
use super::{SourceCheck, SourceEnv, SourceSummary, StreamHead, StreamKind};
use crate::config::source::Command;

/// The one stream of a command.
pub const STREAM: &str = "stdout";

/// Runs the command; what it prints is the stream [`STREAM`].
pub async fn run(command: &Command, env: &SourceEnv, sink: &Sink) -> Result<SourceSummary, SourceError> {
    let mut tool = Tool::new(&find(command, env)?).args(command.command.arguments());
    for (name, reference) in command.env.iter() {
        let value = reference.resolve(&env.environment).map_err(SourceError::Config)?;
        if !reference.is_literal() || crate::config::source::looks_secret(name) {
            tool = tool.redact(&value);
        }
        tool = tool.env(name, value.expose().as_str());
    }
    let attributes = BTreeMap::from([("format".to_owned(), "raw".to_owned())]);
    let head = StreamHead { name: STREAM.to_owned(), kind: StreamKind::Dump, catalog_of: None, attributes };
    sink.begin(head).await?;
    tool.stream(env, sink).await?;
    sink.end(false).await?;
    Ok(SourceSummary { tool_version: command.command.program().to_owned(), ..SourceSummary::default() })
}

/// Whether the program is there; it is not run.
pub fn test(command: &Command, env: &SourceEnv) -> Result<SourceCheck, SourceError> {
    let program = find(command, env)?;
    for (_, reference) in command.env.iter() {
        reference.resolve(&env.environment).map_err(SourceError::Config)?;
    }
    Ok(SourceCheck { ok: true, detail: format!("runs {}", program.display()), ..SourceCheck::default() })
}

fn find(command: &Command, env: &SourceEnv) -> Result<PathBuf, SourceError> {
    let program = command.command.program();
    find_program(program, None, &env.environment).ok_or_else(|| SourceError::ToolMissing {
        tool: program.to_owned(),
        hint: "the file is not there or not executable for the agent's user: give its absolute path"
            .to_owned(),
    })
}
