//! What a change of policies touches, and whether it may be made without further word. Pure.
//!
//! A slip in a selector must not silence a fleet, nor start it: a policy that selects nothing is refused, and so is a change
//! that touches more than a tenth of the hosts and more than five, unless its author says how many hosts that will be. (Five
//! hosts can be looked at in the answer; a fleet so small would need that word for every change, and nobody reads what is
//! always said.)

use std::collections::BTreeSet;
use std::sync::Arc;

use sealift_common::id::{AgentId, PolicyId, SeriesId};
use sealift_common::name::{Labels, Name};

use super::document::Policy;
use super::resolve::{Choice, Standing, Subject, resolve};

/// One part in so many of the fleet may be touched without a word.
const FREE_PART: usize = 10;
/// So many hosts may be touched without a word, however small the fleet.
const FREE_HOSTS: usize = 5;

/// A source of a host that may be backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetSource {
    /// Its host.
    pub agent: AgentId,
    /// The host's name.
    pub agent_name: Name,
    /// The host's labels.
    pub labels: Arc<Labels>,
    /// The host's zone, as it says.
    pub timezone: Arc<str>,
    /// Where its backups go: its identity, whatever it is called.
    pub series: SeriesId,
    /// Its name.
    pub name: Name,
    /// Its kind.
    pub kind: String,
}

impl FleetSource {
    /// As policies see it.
    pub fn subject(&self) -> Subject<'_> {
        Subject { labels: &self.labels, name: &self.name, kind: &self.kind }
    }
}

/// What is in force for a source, kept beyond the policies it was found in.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    /// Which policy.
    pub policy: PolicyId,
    /// Its name.
    pub name: Name,
    /// Which version.
    pub version: u32,
    /// Whether it is tried out.
    pub canary: bool,
    /// What it says.
    pub document: Arc<Policy>,
}

impl InForce {
    fn of(choice: Choice<'_>) -> Self {
        Self {
            policy: choice.standing.id,
            name: choice.standing.name.clone(),
            version: choice.version.number,
            canary: choice.canary,
            document: choice.version.policy.clone(),
        }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.policy == other.policy && self.document == other.document
    }
}

/// What a change means for one source.
#[derive(Debug, Clone, PartialEq)]
pub struct Touched {
    /// Which, by its place in the fleet.
    pub source: usize,
    /// In force now.
    pub before: Option<InForce>,
    /// In force then.
    pub after: Option<InForce>,
}

/// What a change means for the fleet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Impact {
    /// Sources that the changed policy selects and wins, by their place in the fleet.
    pub selected: Vec<(usize, InForce)>,
    /// Sources for which something else is in force afterwards.
    pub touched: Vec<Touched>,
    /// How many hosts these are on.
    pub hosts_touched: usize,
    /// How many hosts there are.
    pub hosts: usize,
}

/// Compares what is in force for each source of `fleet` under `before` and under `after`; `policy` is the one that changes.
pub fn impact(policy: PolicyId, before: &[Standing], after: &[Standing], fleet: &[FleetSource]) -> Impact {
    let mut impact = Impact::default();
    let (mut hosts, mut touched) = (BTreeSet::new(), BTreeSet::new());
    for (n, source) in fleet.iter().enumerate() {
        hosts.insert(source.agent);
        let was = resolve(before, &source.subject()).0.map(InForce::of);
        let is = resolve(after, &source.subject()).0.map(InForce::of);
        if let Some(is) = is.as_ref().filter(|is| is.policy == policy) {
            impact.selected.push((n, is.clone()));
        }
        let same = match (&was, &is) {
            (Some(was), Some(is)) => was.says_the_same(is),
            (None, None) => true,
            _ => false,
        };
        if !same {
            touched.insert(source.agent);
            impact.touched.push(Touched { source: n, before: was, after: is });
        }
    }
    impact.hosts = hosts.len();
    impact.hosts_touched = touched.len();
    impact
}

/// A change that is not made without a further word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Guarded {
    /// Nothing is selected.
    #[error(
        "the policy selects no source of any host, or others with more weight do: see `sealift policy preview`; if that is meant, say --expect 0"
    )]
    SelectsNothing,
    /// More than a tenth of the fleet, and more than a handful.
    #[error(
        "the change touches {touched} of {hosts} hosts, more than a tenth and more than 5: look at it with --dry-run, then say --expect {touched}, or try it on a few with --canary SELECTOR"
    )]
    TouchesMuch {
        /// So many hosts.
        touched: usize,
        /// Of so many.
        hosts: usize,
    },
    /// Another number than its author thinks.
    #[error("the change touches {touched} of {hosts} hosts, not {expected}: look at it with --dry-run")]
    NotAsExpected {
        /// So many hosts.
        touched: usize,
        /// Of so many.
        hosts: usize,
        /// What was said.
        expected: u32,
    },
}

/// Whether the change may be made; `expect` is how many hosts its author says that it touches.
///
/// # Errors
/// [`Guarded`]: what to say, or to look at.
pub fn check(impact: &Impact, must_select: bool, expect: Option<u32>) -> Result<(), Guarded> {
    let (touched, hosts) = (impact.hosts_touched, impact.hosts);
    match expect {
        Some(expected) if expected as usize == touched => Ok(()),
        Some(expected) => Err(Guarded::NotAsExpected { touched, hosts, expected }),
        None if must_select && impact.selected.is_empty() => Err(Guarded::SelectsNothing),
        None if touched > FREE_HOSTS && touched * FREE_PART > hosts => {
            Err(Guarded::TouchesMuch { touched, hosts })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::policy::resolve::Version;

    fn standing(text: &str) -> Standing {
        let policy: Policy = text.parse().unwrap();
        Standing {
            id: PolicyId::from_bytes([1; 16]),
            name: policy.name.clone(),
            whole: Some(Version { number: 1, policy: Arc::new(policy) }),
            canary: None,
        }
    }

    /// Hosts with two sources each; one in ten has the label `canary`.
    fn fleet(hosts: u8) -> Vec<FleetSource> {
        let source = |n: u8, name: &str| {
            let canary = if n.is_multiple_of(10) { "yes" } else { "no" };
            let map = BTreeMap::from([("canary".to_owned(), canary.to_owned())]);
            FleetSource {
                agent: AgentId::from_bytes([n; 16]),
                agent_name: format!("host-{n}").parse().unwrap(),
                labels: Arc::new(Labels::try_from(map).unwrap()),
                timezone: "".into(),
                series: SeriesId::from_bytes([n; 16]),
                name: name.parse().unwrap(),
                kind: "sqlite".to_owned(),
            }
        };
        (0..hosts).flat_map(|n| [source(n, "db"), source(n, "files")]).collect()
    }

    #[test]
    fn a_change_counts_hosts_not_words() {
        let before = [standing("name = \"p\"")];
        let mut same = standing("name = \"p\"\npriority = 0");
        same.whole.as_mut().unwrap().number = 2;
        let impact_of = |after| impact(before[0].id, &before, &[after], &fleet(20));
        let nothing = impact_of(same);
        assert_eq!((nothing.hosts_touched, nothing.hosts, nothing.selected.len()), (0, 20, 40));
        assert_eq!(check(&nothing, true, None), Ok(()));
        let all = impact_of(standing("name = \"p\"\npriority = 1"));
        assert_eq!((all.hosts_touched, all.touched.len()), (20, 40));
        assert_eq!(check(&all, true, None), Err(Guarded::TouchesMuch { touched: 20, hosts: 20 }));
        assert_eq!(check(&all, true, Some(20)), Ok(()));
        assert_eq!(
            check(&all, true, Some(19)),
            Err(Guarded::NotAsExpected { touched: 20, hosts: 20, expected: 19 })
        );
    }

    fn impact_of_deletion(policy: &Standing, hosts: u8) -> Impact {
        impact(policy.id, std::slice::from_ref(policy), &[], &fleet(hosts))
    }

    #[test]
    fn nothing_selected_is_refused_and_a_tenth_or_a_handful_is_free() {
        let slip = standing("name = \"p\"\n[select]\nlabels = \"canary=maybe\"");
        let none = impact(slip.id, &[], std::slice::from_ref(&slip), &fleet(20));
        assert_eq!(check(&none, true, None), Err(Guarded::SelectsNothing));
        assert_eq!(check(&none, true, Some(0)), Ok(()));
        let few = standing("name = \"p\"\n[select]\nlabels = \"canary=yes\"");
        let tenth = impact(few.id, &[], std::slice::from_ref(&few), &fleet(20));
        assert_eq!((tenth.hosts_touched, check(&tenth, true, None)), (2, Ok(())));
        // A handful is free in a fleet of any size; one more is not where that is more than a tenth.
        let all = standing("name = \"p\"");
        for (hosts, expected) in [
            (1, Ok(())),
            (5, Ok(())),
            (6, Err(Guarded::TouchesMuch { touched: 6, hosts: 6 })),
            (9, Err(Guarded::TouchesMuch { touched: 9, hosts: 9 })),
        ] {
            let impact = impact(all.id, &[], std::slice::from_ref(&all), &fleet(hosts));
            assert_eq!(check(&impact, true, None), expected, "{hosts} hosts");
            let gone = impact_of_deletion(&all, hosts);
            assert_eq!(check(&gone, false, None), expected, "{hosts} hosts, policy deleted");
            // Said, the number still has to be right.
            let touched = usize::from(hosts);
            let wrong = Guarded::NotAsExpected { touched, hosts: touched, expected: 7 };
            assert_eq!(check(&impact, true, Some(7)), Err(wrong));
        }
        let six = impact(few.id, &[], std::slice::from_ref(&few), &fleet(60));
        assert_eq!((six.hosts_touched, check(&six, true, None)), (6, Ok(())), "a tenth of 60");
        let six = impact(few.id, &[], std::slice::from_ref(&few), &fleet(51));
        assert_eq!(check(&six, true, None), Err(Guarded::TouchesMuch { touched: 6, hosts: 51 }));
        // Taken away again: those that it selected are under nothing.
        let gone = impact(few.id, std::slice::from_ref(&few), &[], &fleet(20));
        assert_eq!((gone.hosts_touched, check(&gone, false, None)), (2, Ok(())));
        assert!(gone.touched.iter().all(|touched| touched.after.is_none()));
    }
}
