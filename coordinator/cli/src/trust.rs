//! `sealift trust set|show|attest`: who can open the backups. Signed on this machine; the coordinator only stores it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::key_file;
use sealift_common::crypto::trust::{AttestedAgent, RuleRecipient, verify_chain};
use sealift_common::crypto::{
    Recipient, RootPin, Rule, SigningKey, TrustError, TrustObject, TrustPolicy, VerifyingKey,
};
use sealift_common::id::{AgentId, RepositoryId, Sha256};
use sealift_proto::v1;
use serde::Serialize;

use crate::agent::selector;
use crate::app::App;
use crate::coordinator::{Coordinator, Limit, pages};
use crate::error::{Error, Exit, Result, because, said};
use crate::identity::passphrase;
use crate::restore::Pins;
use crate::ui::{self, Change};

/// `sealift trust …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say who can open the backups made from now on, and sign it
    #[command(
        after_help = "Examples:\n  sealift trust set --recipient age1anna… --recipient age1bert… --root-key root.key\n  sealift trust set --scope dba --recipient age1dba…=dba-team --single\n  sealift trust set --recipient age1anna… --recipient age1bert… --recipient age1carl… --dry-run"
    )]
    Set(SetArgs),
    /// Show who can open the backups
    #[command(after_help = "Example:\n  sealift trust show")]
    Show(ShowArgs),
    /// Vouch for the signing keys that hosts have now: after a host was replaced, say, or for the whole fleet
    #[command(
        after_help = "Examples:\n  sealift trust attest store-0042 --root-key root.key\n  sealift trust attest -l role=pos"
    )]
    Attest(AttestArgs),
}

/// `sealift trust attest`
#[derive(Debug, Args)]
pub struct AttestArgs {
    /// Name or id of the host
    #[arg(required_unless_present = "selector")]
    agent: Option<String>,
    /// All hosts with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector, conflicts_with = "agent")]
    selector: Option<String>,
    #[command(flatten)]
    root: RootArgs,
    #[command(flatten)]
    change: Change,
}

/// What a trust policy is signed with.
#[derive(Debug, Args)]
pub struct RootArgs {
    /// Root key to sign with; may be repeated. Without it: the one that the context names
    #[arg(long = "root-key", value_name = "FILE")]
    pub root_keys: Vec<PathBuf>,
    /// File whose first line is the passphrase of the root key; without it the terminal is asked
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// `sealift trust set`
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Public key (age1…) of someone who can open the backups, with a label if you like; give all of them
    #[arg(long = "recipient", required = true, value_name = "AGE1…[=LABEL]", value_parser = parse_recipient)]
    recipients: Vec<RuleRecipient>,
    /// Only for hosts enrolled with this scope; without it, for all that no other rule is for
    #[arg(long, default_value = "", hide_default_value = true)]
    scope: String,
    #[command(flatten)]
    root: RootArgs,
    /// A single recipient is enough: if that key is lost, so are the backups
    #[arg(long)]
    single: bool,
    #[command(flatten)]
    change: Change,
}

/// `sealift trust show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pins: Pins,
}

fn parse_recipient(text: &str) -> Result<RuleRecipient, String> {
    let (key, label) = text.split_once('=').unwrap_or((text, ""));
    let recipient: Recipient = key.parse().map_err(|error| format!("{error}; check it for a typo"))?;
    Ok(RuleRecipient { recipient, label: label.to_owned() })
}

/// Runs `sealift trust …`.
pub async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Set(args) => set(app, args).await,
        Command::Show(args) => show(app, args).await,
        Command::Attest(args) => attest(app, args).await,
    }
}

/// The chain as the coordinator has it, parsed and not yet believed.
struct Chain {
    repository: RepositoryId,
    objects: Vec<TrustObject>,
}

async fn fetch(coordinator: &Coordinator) -> Result<Chain> {
    let reply = coordinator
        .trust()
        .get_trust(v1::GetTrustRequest {})
        .await
        .map_err(said("fetch the trust policy"))?;
    let reply = reply.into_inner();
    let repository = RepositoryId::try_from(reply.repository_id.as_slice())
        .map_err(because(Exit::Verification, "the coordinator named no repository"))?;
    let objects = reply.chain.iter().map(|bytes| TrustObject::parse(bytes)).collect::<Result<_, _>>();
    let objects =
        objects.map_err(because(Exit::Verification, "the coordinator's trust policy cannot be believed"))?;
    Ok(Chain { repository, objects })
}

async fn set(app: &App, args: SetArgs) -> Result<Exit> {
    check_recipients(&args)?;
    let keys = load_root_keys(app, &args.root)?;
    let coordinator = app.connect().await?;
    let chain = fetch(&coordinator).await?;
    let pin = believed(app, &keys)?;
    let before = current(&chain, &pin)?;
    let policy = next_policy(&chain, before.as_ref(), &args, app.clock.now());
    let lost = removed(before.as_ref(), &args);
    describe(app, &policy, &lost);
    if args.change.dry_run {
        return Ok(Exit::Done);
    }
    if lost.is_empty() {
        app.ui.confirm(args.change, "sign this?")?;
    } else {
        let what =
            "those removed cannot open the backups made from now on (they still open the earlier ones)";
        app.ui.confirm_loss(args.change, what, "remove")?;
    }
    let object = sign_and_set(&coordinator, &chain, &pin, policy, &keys).await?;
    let view = View::of(Some(object.policy()), Some(object.sha256()), true);
    match app.ui.format {
        ui::Format::Json => app.ui.json(&view)?,
        ui::Format::Table => {
            app.ui.note(format!("version {} of the trust policy is in force", object.policy().version))
        }
    }
    Ok(Exit::Done)
}

/// Whoever holds a root key knows it to be one: what it signed before is believed, and nothing else is built upon.
fn believed(app: &App, keys: &[SigningKey]) -> Result<RootPin> {
    let mut pin = app.context()?.root_pin(&app.ui)?;
    pin.fingerprints.extend(keys.iter().map(|key| key.verifying_key().fingerprint()));
    Ok(pin)
}

async fn sign_and_set(
    coordinator: &Coordinator,
    chain: &Chain,
    pin: &RootPin,
    policy: TrustPolicy,
    keys: &[SigningKey],
) -> Result<TrustObject> {
    let refs: Vec<&SigningKey> = keys.iter().collect();
    let object = TrustObject::sign(policy, &refs).map_err(because(Exit::Usage, "that is no trust policy"))?;
    check_signed(chain, pin, &object)?;
    let request = v1::SetTrustRequest { object: object.bytes().to_vec() };
    coordinator.trust().set_trust(request).await.map_err(said("set the trust policy"))?;
    Ok(object)
}

async fn attest(app: &App, args: AttestArgs) -> Result<Exit> {
    let coordinator = app.connect().await?;
    let hosts = match &args.agent {
        Some(agent) => {
            let request = v1::GetAgentRequest { agent: agent.clone() };
            let found = coordinator.agents().get_agent(request).await.map_err(said("find the host"))?;
            vec![found.into_inner()]
        }
        None => {
            let selector = args.selector.clone().unwrap_or_default();
            pages(&app.ui, Limit::all(), async |page| {
                let request =
                    v1::ListAgentsRequest { page: Some(page), selector: selector.clone(), brief: true };
                let reply = coordinator.agents().list_agents(request).await.map_err(said("list hosts"))?;
                let reply = reply.into_inner();
                Ok((reply.agents, reply.next))
            })
            .await?
        }
    };
    let added = vouch(app, &coordinator, &hosts, &args.root, Some(args.change)).await?;
    match app.ui.format {
        ui::Format::Json => app.ui.json(&serde_json::json!({ "attested": added }))?,
        ui::Format::Table => app.ui.note(format!("{} attested", ui::count(added, "signing key"))),
    }
    Ok(Exit::Done)
}

/// Puts the present signing keys of these hosts into the trust policy; how many were not there. Asks before it signs where
/// `change` is given.
///
/// # Errors
/// Where there is no root key at hand, or the policy cannot be believed or set.
pub async fn vouch(
    app: &App,
    coordinator: &Coordinator,
    hosts: &[v1::Agent],
    root: &RootArgs,
    change: Option<Change>,
) -> Result<usize> {
    let keys = load_root_keys(app, root)?;
    let chain = fetch(coordinator).await?;
    let pin = believed(app, &keys)?;
    let Some((before, sha256)) = current(&chain, &pin)? else {
        return Err(Error::usage("there is no trust policy yet: set one with `sealift trust set`"));
    };
    let mut agents = before.agents.clone();
    const UNUSABLE: &str = "the coordinator's answer cannot be used";
    for host in hosts {
        let agent: AgentId = host.id.parse().map_err(because(Exit::Verification, UNUSABLE))?;
        let signing_key = VerifyingKey::try_from(host.signing_key.as_slice());
        let signing_key = signing_key.map_err(because(Exit::Verification, UNUSABLE))?;
        if !before.attests(agent, &signing_key) {
            app.ui.note(format!("vouching for {}: {}", host.name, hex::encode(signing_key.as_bytes())));
            agents.push(AttestedAgent { agent, signing_key, created: UnixMillis(host.enrolled_ms) });
        }
    }
    let added = agents.len() - before.agents.len();
    if added == 0 || change.is_some_and(|change| change.dry_run) {
        return Ok(added);
    }
    if let Some(change) = change {
        app.ui.confirm(change, "sign this?")?;
    }
    let policy = TrustPolicy {
        version: before.version + 1,
        created: app.clock.now(),
        previous: Some(sha256),
        agents,
        next_roots: Vec::new(),
        next_threshold: 0,
        ..before
    };
    sign_and_set(coordinator, &chain, &pin, policy, &keys).await?;
    Ok(added)
}

fn check_recipients(args: &SetArgs) -> Result<()> {
    let mut distinct: Vec<&Recipient> = args.recipients.iter().map(|r| &r.recipient).collect();
    distinct.sort();
    distinct.dedup();
    if distinct.len() < args.recipients.len() {
        return Err(Error::usage("the same recipient is named twice"));
    }
    if distinct.len() < 2 && !args.single {
        return Err(Error::usage(
            "one recipient only: if that key is lost, so are the backups. Name a second --recipient, or say --single",
        ));
    }
    Ok(())
}

fn load_root_keys(app: &App, args: &RootArgs) -> Result<Vec<SigningKey>> {
    let mut paths = args.root_keys.clone();
    if paths.is_empty() {
        paths.extend(app.context()?.root_key);
    }
    if paths.is_empty() {
        return Err(Error::usage("the trust policy must be signed: name the root key, --root-key FILE"));
    }
    let load = |path: &PathBuf| {
        let prompt =
            || passphrase(args.passphrase_file.as_deref(), &format!("passphrase of {}: ", path.display()));
        key_file::load_root_key(path, prompt).map_err(because(Exit::Usage, "cannot sign"))
    };
    paths.iter().map(load).collect()
}

/// The newest policy of the chain, once it is verified; `None` where there is none yet.
fn current(chain: &Chain, pin: &RootPin) -> Result<Option<(TrustPolicy, Sha256)>> {
    match verify_chain(pin, None, chain.repository, &chain.objects) {
        Ok(state) => Ok(Some((state.policy, state.known.sha256))),
        Err(TrustError::Missing) => Ok(None),
        Err(error) => Err(because(
            Exit::Verification,
            "the trust policy that the coordinator has cannot be believed",
        )(error)),
    }
}

fn next_policy(
    chain: &Chain,
    before: Option<&(TrustPolicy, Sha256)>,
    args: &SetArgs,
    now: UnixMillis,
) -> TrustPolicy {
    let mut rules = before.map(|(policy, _)| policy.rules.clone()).unwrap_or_default();
    let rule = Rule { scope: args.scope.clone(), recipients: args.recipients.clone() };
    match rules.iter_mut().find(|known| known.scope == args.scope) {
        Some(known) => *known = rule,
        // The first rule that matches counts, and the one without a scope matches everything.
        None if args.scope.is_empty() => rules.push(rule),
        None => rules.insert(0, rule),
    }
    TrustPolicy {
        repository: chain.repository,
        version: before.map_or(1, |(policy, _)| policy.version + 1),
        created: now,
        previous: before.map(|(_, sha256)| *sha256),
        rules,
        agents: before.map(|(policy, _)| policy.agents.clone()).unwrap_or_default(),
        next_roots: Vec::new(),
        next_threshold: 0,
    }
}

fn removed(before: Option<&(TrustPolicy, Sha256)>, args: &SetArgs) -> Vec<Recipient> {
    let rule = before.and_then(|(policy, _)| policy.rules.iter().find(|rule| rule.scope == args.scope));
    let stays = |recipient: &Recipient| args.recipients.iter().any(|r| r.recipient == *recipient);
    let known = rule.into_iter().flat_map(|rule| &rule.recipients).map(|r| r.recipient.clone());
    known.filter(|recipient| !stays(recipient)).collect()
}

fn describe(app: &App, policy: &TrustPolicy, lost: &[Recipient]) {
    app.ui.note(format!("version {} of the trust policy:", policy.version));
    for rule in &policy.rules {
        let scope = if rule.scope.is_empty() {
            "everything else".to_owned()
        } else {
            format!("scope {}", rule.scope)
        };
        app.ui.note(format!("  {scope} opens with any of"));
        rule.recipients
            .iter()
            .for_each(|r| app.ui.note(format!("    {} {}", r.recipient, r.label).trim_end()));
    }
    lost.iter().for_each(|recipient| app.ui.note(format!("  removed: {recipient}")));
}

/// Agents will ask for this; better to hear it here.
fn check_signed(chain: &Chain, pin: &RootPin, object: &TrustObject) -> Result<()> {
    let mut objects = chain.objects.clone();
    objects.push(object.clone());
    verify_chain(pin, None, chain.repository, &objects)
        .map_err(because(Exit::Usage, "hosts would not accept this: sign with the root keys in force"))?;
    Ok(())
}

#[derive(Serialize)]
struct View {
    version: u64,
    sha256: Option<String>,
    /// Whether it leads back to the pinned root keys.
    verified: bool,
    created: Option<String>,
    rules: Vec<RuleView>,
    attested_agents: usize,
}

#[derive(Serialize)]
struct RuleView {
    scope: String,
    recipients: Vec<RecipientView>,
}

#[derive(Serialize)]
struct RecipientView {
    recipient: String,
    label: String,
    fingerprint: String,
}

impl View {
    fn of(policy: Option<&TrustPolicy>, sha256: Option<Sha256>, verified: bool) -> Self {
        let recipient = |r: &RuleRecipient| RecipientView {
            recipient: r.recipient.to_string(),
            label: r.label.clone(),
            fingerprint: r.recipient.fingerprint().to_string(),
        };
        let rule = |rule: &Rule| RuleView {
            scope: rule.scope.clone(),
            recipients: rule.recipients.iter().map(recipient).collect(),
        };
        Self {
            version: policy.map_or(0, |p| p.version),
            sha256: sha256.map(|s| s.to_string()),
            verified,
            created: policy.map(|p| p.created.rfc3339()),
            rules: policy.map(|p| p.rules.iter().map(rule).collect()).unwrap_or_default(),
            attested_agents: policy.map_or(0, |p| p.agents.len()),
        }
    }
}

async fn show(app: &App, args: ShowArgs) -> Result<Exit> {
    let chain = fetch(&app.connect().await?).await?;
    let pin = args.pins.resolve(app)?;
    let verified = !pin.fingerprints.is_empty();
    let view = if verified {
        let state = current(&chain, &pin)?;
        View::of(state.as_ref().map(|(p, _)| p), state.as_ref().map(|(_, s)| *s), true)
    } else {
        app.ui.warn("no root key is pinned: what follows is what the coordinator says (--root-key-sha256 HEX checks it)");
        let newest = chain.objects.iter().max_by_key(|object| object.policy().version);
        View::of(newest.map(TrustObject::policy), newest.map(TrustObject::sha256), false)
    };
    if view.version == 0 && app.ui.format == ui::Format::Table {
        app.ui.note("there is no trust policy yet: `sealift trust set --recipient age1… --recipient age1…`");
        return Ok(Exit::Done);
    }
    app.ui.object(&view, |view| {
        let mut lines = vec![
            ("Version", view.version.to_string()),
            ("Set", view.created.clone().unwrap_or_default()),
            (
                "Signatures",
                if view.verified { "verified against the pinned root keys" } else { "NOT verified" }
                    .to_owned(),
            ),
        ];
        for rule in &view.rules {
            let who: Vec<_> =
                rule.recipients.iter().map(|r| format!("{} {}", r.recipient, r.label)).collect();
            let scope = if rule.scope.is_empty() { "(everything else)" } else { &rule.scope };
            lines.push(("Scope", format!("{scope}\n{}", who.join("\n"))));
        }
        lines.push(("Attested hosts", view.attested_agents.to_string()));
        lines
    })?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipient() -> RuleRecipient {
        let (_, recipient) = key_file::generate_identity(UnixMillis(0));
        RuleRecipient { recipient, label: String::new() }
    }

    fn args(scope: &str, recipients: Vec<RuleRecipient>) -> SetArgs {
        SetArgs {
            recipients,
            scope: scope.to_owned(),
            root: RootArgs { root_keys: vec![], passphrase_file: None },
            single: false,
            change: Change { dry_run: false, yes: false },
        }
    }

    #[test]
    fn a_typo_in_a_recipient_is_refused() {
        let good = recipient().recipient.to_string();
        assert_eq!(parse_recipient(&format!("{good}=anna")).unwrap().label, "anna");
        let mut typo = good.into_bytes();
        typo[20] = if typo[20] == b'q' { b'p' } else { b'q' };
        assert!(parse_recipient(&String::from_utf8(typo).unwrap()).unwrap_err().contains("typo"));
    }

    #[test]
    fn one_recipient_needs_single_and_two_must_differ() {
        let one = recipient();
        assert!(check_recipients(&args("", vec![one.clone()])).is_err());
        assert!(check_recipients(&SetArgs { single: true, ..args("", vec![one.clone()]) }).is_ok());
        assert!(check_recipients(&args("", vec![one.clone(), one.clone()])).is_err());
        assert!(check_recipients(&args("", vec![one, recipient()])).is_ok());
    }

    #[test]
    fn the_next_policy_replaces_its_scope_and_keeps_the_catch_all_last() {
        let chain = Chain { repository: RepositoryId::from_bytes([1; 16]), objects: vec![] };
        let all = args("", vec![recipient(), recipient()]);
        let first = next_policy(&chain, None, &all, UnixMillis(1));
        let before = (first, Sha256::of(b"1"));
        let second = next_policy(&chain, Some(&before), &args("dba", vec![recipient()]), UnixMillis(2));
        assert_eq!(second.rules.iter().map(|r| r.scope.as_str()).collect::<Vec<_>>(), ["dba", ""]);
        assert_eq!((second.version, second.previous), (2, Some(before.1)));
        let only = args("", vec![all.recipients[0].clone()]);
        assert_eq!(removed(Some(&before), &only), [all.recipients[1].recipient.clone()]);
    }
}
