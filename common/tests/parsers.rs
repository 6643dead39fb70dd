//! What the fuzz targets do, in bounded measure and always: the golden vectors of the format, mutated, through every parser of
//! stored bytes. Nothing may panic, hang or take more than its bounds.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../fuzz/parsers.rs"]
mod parsers;

use std::path::{Path, PathBuf};

use sealift_common::id::Random;

/// Mutations of each vector for each parser.
const ROUNDS: usize = 150;
/// Of larger vectors only the beginning and the end are taken.
const MOST: usize = 6_000;

fn vectors() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/format-v1");
    let (mut found, mut open) = (Vec::new(), vec![root.clone()]);
    while let Some(dir) = open.pop() {
        let entries = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.collect::<Vec<PathBuf>>() {
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let mut bytes = std::fs::read(&path).unwrap();
            if bytes.len() > MOST {
                bytes.drain(MOST / 2..bytes.len() - MOST / 2);
            }
            found.push((name.clone(), bytes));
            found.push((format!("name of {name}"), name.trim_start_matches("repository/").into()));
        }
    }
    found.sort();
    found
}

/// One of the changes that fuzzers make: flipped bits, other bytes, numbers at their ends, pieces cut, doubled and swapped in.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &Random) {
    let below = |n: usize| usize::try_from(u64::from_le_bytes(random.bytes()) % (n.max(1) as u64)).unwrap();
    let at = below(bytes.len());
    match below(7) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
        1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
        2 if bytes.len() > at + 4 => {
            let number = [0, 1, u32::MAX, i32::MAX as u32, 1 << 24][below(5)];
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..(at + below(40)).min(bytes.len()))),
        5 => {
            let piece = bytes[at..(at + below(40)).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {
            let from = below(other.len());
            bytes.splice(at..at, other[from..(from + below(40)).min(other.len())].iter().copied());
        }
    }
}

#[test]
fn no_parser_of_stored_bytes_is_upset_by_any_of_them() {
    let seed = std::env::var("SEALIFT_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from_le_bytes(Random::from_os().bytes()));
    println!("SEALIFT_TEST_SEED={seed}");
    let (random, vectors) = (Random::from_seed(seed), vectors());
    assert!(vectors.len() > 20, "the golden vectors are missing");
    for (at, (vector, bytes)) in vectors.iter().enumerate() {
        let other = &vectors[(at * 7 + 3) % vectors.len()].1;
        for (name, parse) in parsers::ALL {
            println!("{name}: {vector}");
            parse(bytes);
            let mut mutated = bytes.clone();
            for round in 0..ROUNDS {
                // Now and then from the start again: most changes on top of changes are refused at the first byte.
                if round % 4 == 0 {
                    mutated.clone_from(bytes);
                }
                mutate(&mut mutated, other, &random);
                parse(&mutated);
            }
        }
    }
}
