//! `make bench`: Sealift beside restic, rustic and the plain pipe, where they are installed: same input, same S3 server
//! (Ceph RGW), one table with ratios.
//!
//! The input is a plain `pg_dump` of a generated order database; the second version has 1,500 scattered rows changed.
//! CPU and memory are those of the client's processes (for Sealift: the agent, or the `sealift` that restores).
//! `SEALIFT_BENCH_MB` sets the size of the dump (1200).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod input;
mod report;
mod tools;

use input::Input;
use report::Row;
use sealift_tests::services::S3;
use tools::{Pipe, Restic, Rustic, Sealift, Tool};

fn main() {
    let megabytes: u64 = match std::env::var("SEALIFT_BENCH_MB") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("SEALIFT_BENCH_MB is a number, not {text:?}")),
        Err(_) => 1200,
    };
    eprintln!("generating about {megabytes} MB twice");
    let input = Input::generate(megabytes);
    let tools: Vec<Box<dyn Tool>> = [
        Some(Box::new(Sealift::start(S3::rgw())) as Box<dyn Tool>),
        Restic::find(S3::rgw()).map(|tool| Box::new(tool) as Box<dyn Tool>),
        Rustic::find(S3::rgw()).map(|tool| Box::new(tool) as Box<dyn Tool>),
        Pipe::find(S3::rgw()).map(|tool| Box::new(tool) as Box<dyn Tool>),
    ]
    .into_iter()
    .flatten()
    .collect();
    let rows: Vec<Row> = tools.into_iter().map(|tool| measure_tool(tool, &input)).collect();
    report::print(&rows, &input);
}

/// First backup, later backup, restore; the restored bytes are compared before they count.
fn measure_tool(mut tool: Box<dyn Tool>, input: &Input) -> Row {
    eprintln!("{}", tool.name());
    let idle = tool.idle_rss();
    let first = tool.back_up(&input.first);
    let stored_first = tool.s3().stored_bytes();
    let later = tool.back_up(&input.second);
    let stored_later = tool.s3().stored_bytes() - stored_first;
    let restore = tool.restore(None);
    let copy = input.scratch.join("restored");
    tool.restore(Some(&copy));
    input::assert_same(&copy, &input.second);
    std::fs::remove_file(copy).expect("remove the copy");
    Row { name: tool.name(), first, later, restore, stored_first, stored_later, idle }
}
