//! Which policy is in force for a source. Pure: policies and sources are arguments.
//!
//! Where several policies select one source, exactly one wins: the one with the highest `priority`; among these the one
//! whose source pattern is closest (a name, then a kind, then a glob, then all); then the one with more terms on labels;
//! then the first by name.

use std::cmp::Reverse;
use std::sync::Arc;

use sealift_common::id::PolicyId;
use sealift_common::name::{Labels, Name};
use sealift_common::selector::{Selector, Specificity};

use super::document::Policy;

/// One version of a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// Counted from 1.
    pub number: u32,
    /// What it says.
    pub policy: Arc<Policy>,
}

/// A policy as it stands: what all its sources are under, and what is tried out on some of them first.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// Its id.
    pub id: PolicyId,
    /// What people call it.
    pub name: Name,
    /// In force; `None` while it was only ever tried out.
    pub whole: Option<Version>,
    /// Tried out on hosts with these labels.
    pub canary: Option<(Selector, Version)>,
}

/// A source, as policies see it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Of its host.
    pub labels: &'a Labels,
    /// Its name.
    pub name: &'a Name,
    /// Its kind.
    pub kind: &'a str,
}

/// The policy in force for a source.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// Which.
    pub standing: &'a Standing,
    /// Which version of it.
    pub version: &'a Version,
    /// Whether that is tried out.
    pub canary: bool,
}

impl Standing {
    /// The version that counts for hosts with these labels.
    pub fn version_for(&self, labels: &Labels) -> Option<(&Version, bool)> {
        match &self.canary {
            Some((selector, version)) if selector.matches(labels) => Some((version, true)),
            _ => self.whole.as_ref().map(|version| (version, false)),
        }
    }
}

/// How closely `policy` selects `subject`; `None` where it does not.
pub fn selects(policy: &Policy, subject: &Subject<'_>) -> Option<Specificity> {
    if !policy.select.labels.matches(subject.labels) {
        return None;
    }
    if policy.select.sources.is_empty() {
        return Some(Specificity::Any);
    }
    let matching = policy.select.sources.iter().filter(|pattern| pattern.matches(subject.name, subject.kind));
    matching.map(|pattern| pattern.specificity()).max()
}

/// The policy in force for `subject`, and the names of those that select it as well, in the order they would follow.
pub fn resolve<'a>(policies: &'a [Standing], subject: &Subject<'_>) -> (Option<Choice<'a>>, Vec<&'a Name>) {
    let mut found: Vec<_> = policies
        .iter()
        .filter_map(|standing| {
            let (version, canary) = standing.version_for(subject.labels)?;
            let specificity = selects(&version.policy, subject)?;
            let terms = version.policy.select.labels.terms().len();
            let rank =
                (Reverse(version.policy.priority), Reverse(specificity), Reverse(terms), &standing.name);
            Some((rank, Choice { standing, version, canary }))
        })
        .collect();
    found.sort_by_key(|(rank, _)| *rank);
    let mut choices = found.into_iter().map(|(_, choice)| choice);
    let winner = choices.next();
    (winner, choices.map(|choice| &choice.standing.name).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn standing(n: u8, text: &str) -> Standing {
        let policy: Policy = text.parse().unwrap();
        Standing {
            id: PolicyId::from_bytes([n; 16]),
            name: policy.name.clone(),
            whole: Some(Version { number: 1, policy: Arc::new(policy) }),
            canary: None,
        }
    }

    fn labels(text: &str) -> Labels {
        let map: BTreeMap<_, _> = text
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Labels::try_from(map).unwrap()
    }

    fn names(policies: &[Standing], of: &str, source: &str, kind: &str) -> Vec<String> {
        let (labels, name) = (labels(of), source.parse().unwrap());
        let (winner, others) = resolve(policies, &Subject { labels: &labels, name: &name, kind });
        winner
            .map(|choice| &choice.standing.name)
            .into_iter()
            .chain(others)
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn priority_then_closeness_then_labels_then_name_decide() {
        let policies = [
            standing(1, "name = \"z-all\""),
            standing(2, "name = \"a-all\""),
            standing(3, "name = \"eu\"\n[select]\nlabels = \"region=eu\""),
            standing(4, "name = \"globs\"\n[select]\nsources = [\"main-*\"]"),
            standing(5, "name = \"kinds\"\n[select]\nsources = [\"kind=mysql\"]"),
            standing(6, "name = \"names\"\n[select]\nsources = [\"x\", \"main-db\"]"),
            standing(7, "name = \"first\"\npriority = 1\n[select]\nlabels = \"role=pos\""),
        ];
        assert_eq!(names(&policies, "", "other", "sqlite"), ["a-all", "z-all"]);
        assert_eq!(names(&policies, "region=eu", "other", "sqlite"), ["eu", "a-all", "z-all"]);
        assert_eq!(
            names(&policies, "region=eu", "main-db", "mysql"),
            ["names", "kinds", "globs", "eu", "a-all", "z-all"]
        );
        assert_eq!(names(&policies, "role=pos", "main-db", "mysql")[0], "first");
        let mut turned = policies.to_vec();
        turned.reverse();
        assert_eq!(
            names(&turned, "region=eu", "main-db", "mysql"),
            names(&policies, "region=eu", "main-db", "mysql")
        );
    }

    #[test]
    fn a_canary_counts_for_its_hosts_only() {
        let mut policy = standing(1, "name = \"p\"");
        let tried: Policy = "name = \"p\"\n[select]\nsources = [\"db\"]".parse().unwrap();
        policy.canary = Some(("canary=yes".parse().unwrap(), Version { number: 2, policy: Arc::new(tried) }));
        let policies = [policy];
        let (yes, no) = (labels("canary=yes"), labels("canary=no"));
        let (db, other) = ("db".parse().unwrap(), "other".parse().unwrap());
        let of = |labels, name| resolve(&policies, &Subject { labels, name, kind: "sqlite" }).0;
        let tried = of(&yes, &db).unwrap();
        assert_eq!((tried.version.number, tried.canary), (2, true));
        let whole = of(&no, &db).unwrap();
        assert_eq!((whole.version.number, whole.canary), (1, false));
        assert!(of(&yes, &other).is_none(), "the version that is tried out no longer selects it");
        assert_eq!(of(&no, &other).unwrap().version.number, 1);
    }
}
