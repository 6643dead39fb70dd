//! What selects agents and sources: label expressions (`-l`, `[select] labels`) and source patterns (`[select] sources`).
//!
//! Both are parsed once, at the edge; an error names the place. To add an operator: a variant of [`Term`], its arm in
//! `Parser::term` and in [`Selector::matches`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{Labels, MAX_LABEL_VALUE, Name, in_label_value};

/// Longest selector, in bytes.
const MAX_SELECTOR: usize = 4_096;
/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 128;

/// A text that selects nothing because it cannot be read; says where and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "selector {text:?}: position {position}: {problem}; write terms like role=pos,region in (eu,uk),!legacy"
)]
pub struct InvalidSelector {
    text: String,
    position: usize,
    problem: String,
}

/// A text that is not a source pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "source pattern {text:?}: {problem}; write a source's name (main-db), a glob over names (db-*) or a kind (kind=sqlite)"
)]
pub struct InvalidPattern {
    text: String,
    problem: &'static str,
}

/// A label expression: terms joined by commas, all of which must hold. The empty selector matches everything.
///
/// Terms: `key=value`, `key!=value` (also where the key is absent), `key in (a,b)`, `key notin (a,b)` (also where the key
/// is absent), `key` (present), `!key` (absent): the grammar that Kubernetes' users know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(Vec<Term>);

/// One condition on the labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Term {
    /// The key has one of these values.
    In(String, Vec<String>),
    /// The key has none of these values, or is absent.
    NotIn(String, Vec<String>),
    /// The key is there.
    Present(String),
    /// The key is not there.
    Absent(String),
}

impl Selector {
    /// Whether `labels` satisfy every term.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|term| match term {
            Term::In(key, values) => labels.get(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Term::NotIn(key, values) => labels.get(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Term::Present(key) => labels.get(key).is_some(),
            Term::Absent(key) => labels.get(key).is_none(),
        })
    }

    /// Whether this is the selector that matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its conditions.
    pub fn terms(&self) -> &[Term] {
        &self.0
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Self::NotIn(key, values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Self::In(key, values) => write!(f, "{key} in ({})", values.join(",")),
            Self::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(",")),
            Self::Present(key) => f.write_str(key),
            Self::Absent(key) => write!(f, "!{key}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, term) in self.0.iter().enumerate() {
            write!(f, "{}{term}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl TryFrom<String> for Selector {
    type Error = InvalidSelector;
    fn try_from(text: String) -> Result<Self, InvalidSelector> {
        text.parse()
    }
}

impl FromStr for Selector {
    type Err = InvalidSelector;
    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let mut parser = Parser { text, at: 0 };
        if text.len() > MAX_SELECTOR {
            return Err(parser.problem(format!("at most {MAX_SELECTOR} bytes")));
        }
        parser.skip_spaces();
        if parser.rest().is_empty() {
            return Ok(Self::default());
        }
        let mut terms = vec![parser.term()?];
        loop {
            parser.skip_spaces();
            if parser.rest().is_empty() {
                return Ok(Self(terms));
            }
            if !parser.take(",") {
                return Err(parser.problem("expected ',' or the end"));
            }
            parser.skip_spaces();
            terms.push(parser.term()?);
        }
    }
}

/// Reads a selector from left to right.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// What is wrong at the present place; positions count characters from 1, as people do.
    fn problem(&self, problem: impl Into<String>) -> InvalidSelector {
        let position = self.text.get(..self.at).unwrap_or_default().chars().count() + 1;
        InvalidSelector { text: shown(self.text), position, problem: problem.into() }
    }

    fn word(&mut self, fits: impl Fn(u8) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.bytes().position(|c| !fits(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn key(&mut self) -> Result<String, InvalidSelector> {
        let start = self.at;
        let word = self.word(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
        match word.parse::<Name>() {
            Ok(key) => Ok(key.into()),
            Err(_) => {
                self.at = start;
                let what = match (word, self.rest().chars().next()) {
                    ("", None) => "expected a label's key, found the end".to_owned(),
                    ("", Some(found)) => format!("expected a label's key, found {found:?}"),
                    (word, _) => format!("{:?} is not a label's key", shown(word)),
                };
                Err(self.problem(what))
            }
        }
    }

    fn value(&mut self) -> Result<String, InvalidSelector> {
        self.skip_spaces();
        let start = self.at;
        let word = self.word(in_label_value);
        if word.is_empty() || word.len() > MAX_LABEL_VALUE {
            self.at = start;
            return Err(self.problem("expected a label's value"));
        }
        Ok(word.to_owned())
    }

    fn values(&mut self) -> Result<Vec<String>, InvalidSelector> {
        self.skip_spaces();
        if !self.take("(") {
            return Err(self.problem("expected '(' and values: (a,b)"));
        }
        let mut values = vec![self.value()?];
        loop {
            self.skip_spaces();
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(self.problem("expected ',' or ')'"));
            }
            values.push(self.value()?);
        }
    }

    fn term(&mut self) -> Result<Term, InvalidSelector> {
        if self.take("!") {
            self.skip_spaces();
            return Ok(Term::Absent(self.key()?));
        }
        let key = self.key()?;
        let spaces_from = self.at;
        self.skip_spaces();
        if self.take("!=") {
            return Ok(Term::NotIn(key, vec![self.value()?]));
        }
        if self.take("==") || self.take("=") {
            return Ok(Term::In(key, vec![self.value()?]));
        }
        if self.rest().is_empty() || self.rest().starts_with(',') {
            return Ok(Term::Present(key));
        }
        let word_at = self.at;
        let word = self.word(|c| c.is_ascii_alphanumeric());
        match word {
            "in" if word_at > spaces_from => Ok(Term::In(key, self.values()?)),
            "notin" if word_at > spaces_from => Ok(Term::NotIn(key, self.values()?)),
            _ => {
                self.at = word_at;
                Err(self.problem("expected '=', '!=', 'in (…)', 'notin (…)', ',' or the end"))
            }
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// One entry of `[select] sources`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SourcePattern {
    /// The source of this name.
    Name(Name),
    /// Sources of this kind.
    Kind(String),
    /// Sources whose names match: `*` is any run of characters, `?` any single one.
    Glob(String),
}

/// How closely a pattern describes what it matches; the greater wins where two policies want one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Specificity {
    /// Every source (`*`, or no patterns at all).
    Any,
    /// A glob over names.
    Glob,
    /// A kind.
    Kind,
    /// A name.
    Name,
}

impl SourcePattern {
    /// Whether it matches a source of this name and kind.
    pub fn matches(&self, name: &Name, kind: &str) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Kind(wanted) => wanted == kind,
            Self::Glob(glob) => glob_matches(glob.as_bytes(), name.as_str().as_bytes()),
        }
    }

    /// How closely it describes what it matches.
    pub fn specificity(&self) -> Specificity {
        match self {
            Self::Name(_) => Specificity::Name,
            Self::Kind(_) => Specificity::Kind,
            Self::Glob(glob) if glob == "*" => Specificity::Any,
            Self::Glob(_) => Specificity::Glob,
        }
    }
}

/// Remembers the last `*` alone: linear in practice, and never worse than the product of the lengths.
fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(b'?') => (g, t) = (g + 1, t + 1),
            Some(c) if *c == text[t] => (g, t) = (g + 1, t + 1),
            _ => match star {
                None => return false,
                Some((star_g, star_t)) => {
                    star = Some((star_g, star_t + 1));
                    (g, t) = (star_g + 1, star_t + 1);
                }
            },
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

impl FromStr for SourcePattern {
    type Err = InvalidPattern;
    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let bad = |problem| InvalidPattern { text: shown(text), problem };
        if text.is_empty() || text.len() > MAX_PATTERN {
            return Err(bad("must have 1 to 128 characters"));
        }
        if let Some(kind) = text.strip_prefix("kind=") {
            let kind = kind.parse::<Name>().map_err(|_| bad("the kind is not a name"))?;
            return Ok(Self::Kind(kind.into()));
        }
        if let Ok(name) = text.parse::<Name>() {
            return Ok(Self::Name(name));
        }
        let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-*?".contains(&c);
        if !text.bytes().all(fits) {
            return Err(bad(
                "only a-z, 0-9, '.', '_', '-', '*' and '?' can be part of a source's name or glob",
            ));
        }
        if !text.contains(['*', '?']) {
            return Err(bad("a source's name starts with a letter or digit and has at most 63 characters"));
        }
        Ok(Self::Glob(text.to_owned()))
    }
}

impl fmt::Display for SourcePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Kind(kind) => write!(f, "kind={kind}"),
            Self::Glob(glob) => f.write_str(glob),
        }
    }
}

impl From<SourcePattern> for String {
    fn from(pattern: SourcePattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<String> for SourcePattern {
    type Error = InvalidPattern;
    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let map: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Labels::try_from(map).unwrap()
    }

    #[test]
    fn selectors_match_as_their_users_expect() {
        let pos = labels(&[("role", "pos"), ("region", "eu")]);
        for yes in [
            "",
            "  ",
            "role=pos",
            "role==pos",
            "role = pos , region in ( eu , uk )",
            "region notin (us)",
            "role",
            "!legacy",
            "! legacy",
            "x!=1",
            "x notin (a,b)",
        ] {
            assert!(yes.parse::<Selector>().unwrap().matches(&pos), "{yes}");
        }
        for no in ["role=web", "region in (us)", "region notin (eu, uk)", "legacy", "!role", "role!=pos"] {
            assert!(!no.parse::<Selector>().unwrap().matches(&pos), "{no}");
        }
    }

    #[test]
    fn an_error_names_the_position() {
        for (bad, position, problem) in [
            ("role in eu", 9, "expected '('"),
            ("role like x", 6, "expected '='"),
            ("=x", 1, "found '='"),
            ("a,,b", 3, "found ','"),
            ("a,", 3, "found the end"),
            ("!", 2, "found the end"),
            ("role=", 6, "value"),
            ("role=ü", 6, "value"),
            ("Role=pos", 1, "not a label's key"),
            ("role in (a,b", 13, "expected ',' or ')'"),
            ("role in ()", 10, "value"),
            ("a=b c=d", 5, "expected ',' or the end"),
            ("rolein (a)", 8, "expected '='"),
        ] {
            let error = bad.parse::<Selector>().unwrap_err();
            assert_eq!(error.position, position, "{error}");
            assert!(error.to_string().contains(problem), "{error}");
        }
        assert!("a,".repeat(3_000).parse::<Selector>().is_err());
    }

    #[test]
    fn patterns_are_names_kinds_and_globs() {
        let name: Name = "main-db".parse().unwrap();
        for (pattern, matches, specificity) in [
            ("main-db", true, Specificity::Name),
            ("other", false, Specificity::Name),
            ("kind=sqlite", true, Specificity::Kind),
            ("kind=mysql", false, Specificity::Kind),
            ("*", true, Specificity::Any),
            ("main-*", true, Specificity::Glob),
            ("*-db", true, Specificity::Glob),
            ("m*n?db", true, Specificity::Glob),
            ("*-d", false, Specificity::Glob),
            ("?", false, Specificity::Glob),
        ] {
            let parsed: SourcePattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(&name, "sqlite"), matches, "{pattern}");
            assert_eq!(parsed.specificity(), specificity, "{pattern}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for bad in ["", "Main", "kind=", "kind=SQL", "a/b", "-x", "[ab]*"] {
            assert!(bad.parse::<SourcePattern>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_prints_as_itself(text in ".{0,60}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
            }
        }

        #[test]
        fn selectors_round_trip(
            terms in prop::collection::vec("([a-z]{1,3}(=|!=)[a-zA-Z:/]{1,3}|[a-z]{1,3} (not)?in \\([a-z]{1,3}(,[a-z]{1,3}){0,2}\\)|!?[a-z])", 0..4),
        ) {
            let selector: Selector = terms.join(",").parse().unwrap();
            prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        }

        #[test]
        fn a_glob_matches_what_a_regular_walk_matches(glob in "[ab*?]{0,6}", text in "[ab]{0,8}") {
            fn walk(glob: &[u8], text: &[u8]) -> bool {
                match (glob.first(), text.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => walk(&glob[1..], text) || (!text.is_empty() && walk(glob, &text[1..])),
                    (Some(b'?'), Some(_)) => walk(&glob[1..], &text[1..]),
                    (Some(a), Some(b)) if a == b => walk(&glob[1..], &text[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(glob_matches(glob.as_bytes(), text.as_bytes()), walk(glob.as_bytes(), text.as_bytes()));
        }
    }
}
