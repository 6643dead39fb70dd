use super::*;
use crate::crypto::key_file::generate_identity;
use crate::id::Random;

fn root(seed: u64) -> SigningKey {
    SigningKey::generate(&Random::from_seed(seed))
}

fn repository() -> RepositoryId {
    RepositoryId::from_bytes([1; 16])
}

fn pin(keys: &[&SigningKey]) -> RootPin {
    RootPin::any_of(keys.iter().map(|key| key.verifying_key().fingerprint()).collect())
}

fn policy(after: Option<&TrustObject>) -> TrustPolicy {
    TrustPolicy {
        repository: repository(),
        version: after.map_or(1, |object| object.policy().version + 1),
        created: UnixMillis(1_000),
        previous: after.map(TrustObject::sha256),
        rules: vec![rule("")],
        agents: vec![],
        next_roots: vec![],
        next_threshold: 0,
    }
}

fn rule(scope: &str) -> Rule {
    let (_, recipient) = generate_identity(UnixMillis(0));
    Rule { scope: scope.to_owned(), recipients: vec![RuleRecipient { recipient, label: "ann".to_owned() }] }
}

fn signed(after: Option<&TrustObject>, key: &SigningKey) -> TrustObject {
    TrustObject::sign(policy(after), &[key]).unwrap()
}

#[test]
fn a_chain_signed_by_the_pinned_root_gives_its_newest_policy() {
    let a = root(1);
    let one = signed(None, &a);
    let two = signed(Some(&one), &a);
    let state = verify_chain(&pin(&[&a]), None, repository(), &[two.clone(), one.clone()]).unwrap();
    assert_eq!((state.known.version, state.known.sha256), (2, two.sha256()));
    assert_eq!(&state.policy, two.policy());

    let reread = TrustObject::parse_named(&two.name(), two.bytes()).unwrap();
    assert_eq!(reread.policy(), two.policy());
    let wrong = TrustObject::parse_named(&one.name(), two.bytes());
    assert!(matches!(wrong, Err(TrustError::Name { .. })));
}

#[test]
fn a_stranger_signs_nothing() {
    let (a, eve) = (root(1), root(2));
    let one = signed(None, &a);
    let refused = verify_chain(&pin(&[&a]), None, repository(), &[signed(None, &eve)]).unwrap_err();
    assert_eq!(refused, TrustError::Signatures { version: 1, valid: 0, threshold: 1 });
    let forged = signed(Some(&one), &eve);
    let refused = verify_chain(&pin(&[&a]), None, repository(), &[one, forged]).unwrap_err();
    assert_eq!(refused, TrustError::Signatures { version: 2, valid: 0, threshold: 1 });
    assert_eq!(verify_chain(&pin(&[&a]), None, repository(), &[]).unwrap_err(), TrustError::Missing);
}

#[test]
fn next_roots_take_over_with_their_threshold_and_stay() {
    let (a, b, c) = (root(1), root(2), root(3));
    let mut first = policy(None);
    first.next_roots = vec![b.verifying_key(), c.verifying_key()];
    first.next_threshold = 2;
    let one = TrustObject::sign(first, &[&a]).unwrap();
    let verify = |objects: &[TrustObject]| verify_chain(&pin(&[&a]), None, repository(), objects);

    let by_old = signed(Some(&one), &a);
    assert!(matches!(
        verify(&[one.clone(), by_old]),
        Err(TrustError::Signatures { version: 2, valid: 0, .. })
    ));
    let by_one = signed(Some(&one), &b);
    let refused = verify(&[one.clone(), by_one.clone()]).unwrap_err();
    assert_eq!(refused, TrustError::Signatures { version: 2, valid: 1, threshold: 2 });
    let twice = by_one.countersign(&b).unwrap();
    assert!(matches!(verify(&[one.clone(), twice]), Err(TrustError::Signatures { valid: 1, .. })));
    let two = by_one.countersign(&c).unwrap();
    verify(&[one.clone(), two.clone()]).unwrap();

    // Version 2 named none: the two stay in force, the pinned one does not come back.
    let three = signed(Some(&two), &a);
    assert!(matches!(
        verify(&[one.clone(), two.clone(), three]),
        Err(TrustError::Signatures { version: 3, .. })
    ));

    // Whoever pinned the new roots later starts at version 2.
    let late = verify_chain(&pin(&[&b, &c]), None, repository(), &[one, two]).unwrap();
    assert_eq!(late.known.version, 2);
}

#[test]
fn gaps_forks_and_roll_backs_are_noticed() {
    let a = root(1);
    let one = signed(None, &a);
    let two = signed(Some(&one), &a);
    let three = signed(Some(&two), &a);
    let verify = |known: Option<&KnownTrust>, objects: &[&TrustObject]| {
        let objects: Vec<TrustObject> = objects.iter().map(|object| (*object).clone()).collect();
        verify_chain(&pin(&[&a]), known, repository(), &objects)
    };
    assert_eq!(verify(None, &[&one, &three]).unwrap_err(), TrustError::Broken { version: 3 });
    let fork = signed(Some(&one), &a);
    assert_eq!(verify(None, &[&one, &two, &fork]).unwrap_err(), TrustError::Forked { version: 2 });

    let known = verify(None, &[&one, &two]).unwrap().known;
    assert_eq!(verify(Some(&known), &[&two]).unwrap().known, known);
    assert_eq!(verify(Some(&known), &[&three]).unwrap().known.version, 3);
    assert_eq!(verify(Some(&known), &[&one, &two, &three]).unwrap().known.version, 3);
    let back = TrustError::RolledBack { offered: 1, known: 2 };
    assert_eq!(verify(Some(&known), &[&one]).unwrap_err(), back);
    assert_eq!(verify(Some(&known), &[&one, &fork]).unwrap_err(), TrustError::Forked { version: 2 });
    let after_fork = signed(Some(&fork), &a);
    assert_eq!(verify(Some(&known), &[&after_fork]).unwrap_err(), TrustError::Broken { version: 3 });
}

#[test]
fn another_repositorys_policy_is_refused() {
    let a = root(1);
    let one = signed(None, &a);
    let elsewhere = RepositoryId::from_bytes([2; 16]);
    let refused = verify_chain(&pin(&[&a]), None, elsewhere, &[one]).unwrap_err();
    assert_eq!(refused, TrustError::Repository { expected: elsewhere, found: repository() });
}

#[test]
fn any_flipped_bit_is_refused() {
    let a = root(1);
    let one = signed(None, &a);
    for bit in 0..one.bytes().len() * 8 {
        let mut bytes = one.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let accepted = TrustObject::parse(&bytes)
            .and_then(|object| verify_chain(&pin(&[&a]), Some(&known_of(&one, &a)), repository(), &[object]));
        assert!(accepted.is_err(), "bit {bit}");
        assert!(TrustObject::parse_named(&one.name(), &bytes).is_err(), "bit {bit}");
    }
}

fn known_of(object: &TrustObject, key: &SigningKey) -> KnownTrust {
    let roots = RootsInForce::Pinned(pin(&[key]));
    KnownTrust { version: object.policy().version, sha256: object.sha256(), roots }
}

#[test]
fn the_first_rule_that_fits_the_scope_counts() {
    let mut policy = policy(None);
    policy.rules = vec![rule("hr"), rule(""), rule("hr")];
    let of = |rule: &Rule| Some(vec![rule.recipients[0].recipient.clone()]);
    assert_eq!(policy.recipients_for("hr"), of(&policy.rules[0]));
    assert_eq!(policy.recipients_for("shop"), of(&policy.rules[1]));
    assert_eq!(policy.recipients_for(""), of(&policy.rules[1]));
    policy.rules.truncate(1);
    assert_eq!(policy.recipients_for("shop"), None);
}

#[test]
fn policies_that_could_lock_everyone_out_are_not_signed() {
    let a = root(1);
    let mut no_recipient = policy(None);
    no_recipient.rules[0].recipients.clear();
    let mut unreachable = policy(None);
    (unreachable.next_roots, unreachable.next_threshold) = (vec![a.verifying_key()], 2);
    let mut doubled = policy(None);
    (doubled.next_roots, doubled.next_threshold) = (vec![a.verifying_key(); 2], 2);
    let mut zero = policy(None);
    zero.version = 0;
    for bad in [no_recipient, unreachable, doubled, zero] {
        assert!(matches!(TrustObject::sign(bad, &[&a]), Err(TrustError::Malformed(_))));
    }
}
