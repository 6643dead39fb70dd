//! Hosts become agents by a token, renew their certificates, and come back by their signing key when they slept too long.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use rustls_pki_types::CertificateDer;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::{AgentKeyObject, CaStatement, VerifyingKey};
use sealift_common::id::{AgentId, Sha256};
use sealift_common::name::{MAX_NAME, Name};

use super::ca::{Issued, RequestedKey};
use super::token::Token;
use super::{Identities, IdentityError};
use crate::audit::{Action, Details, OpContext, Operation};
use crate::objects::{ObjectErrorKind, Put};
use crate::store::agents::{self, AgentRow, AgentState, SaidProtocol};
use crate::store::tokens::{self, TokenRow};
use crate::store::{Tx, trust};

/// How long a challenge may be answered.
const CHALLENGE_LIFE: Duration = Duration::from_secs(60);
/// Most challenges that are open at a time.
const MAX_CHALLENGES: usize = 10_000;
/// What the answer to a challenge is signed for.
pub const RECOVER_CONTEXT: &str = "sealift/1/recover";
/// Longest text that an agent says about itself, in characters.
const MAX_SAID: usize = 128;

/// What a host sends to become an agent.
#[derive(Debug)]
pub struct Enrolment {
    /// What lets it.
    pub token: Token,
    /// What it calls itself; the token's name wins.
    pub host: String,
    /// For its certificate.
    pub key: RequestedKey,
    /// For its manifests.
    pub signing_key: VerifyingKey,
    /// The `agents/` object of the signing key.
    pub key_object: Vec<u8>,
    /// The id it chose.
    pub agent: AgentId,
    /// Its version.
    pub version: String,
    /// The root keys that it pinned.
    pub root_pins: Vec<Sha256>,
}

/// What becomes of an enrolment.
#[derive(Debug, Clone)]
pub enum Enrolled {
    /// The host is an agent now.
    Member(Box<Membership>),
    /// Its token is for the new host of this agent: it is to ask again under that id, with keys of its own. Nothing has
    /// changed.
    Replaces(AgentId),
}

/// What an agent gets.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Who it is.
    pub agent: AgentRow,
    /// Its new certificate.
    pub issued: Issued,
    /// The CA to trust.
    pub ca: CertificateDer<'static>,
    /// The trust policies in force, oldest first.
    pub trust_chain: Vec<Vec<u8>>,
}

impl Identities {
    /// Enrols a host. The same token with the same keys gives the same agent again, also when it is used up or expired
    /// since: a lost reply bricks nobody.
    ///
    /// # Errors
    /// [`IdentityError`]: one for each way in which a token is not good, and for what does not hold in the request.
    pub async fn enrol(&self, ctx: &OpContext, request: Enrolment) -> Result<Enrolled, IdentityError> {
        let details =
            Details::none().with("token", request.token.id.as_str()).with("host", said(&request.host));
        let operation = ctx.operation(Action::AgentEnroll, format!("agent:{}", request.agent), details);
        operation.run(self.try_enrol(&operation, &request).boxed()).await
    }

    async fn try_enrol(
        &self,
        operation: &Operation<'_>,
        request: &Enrolment,
    ) -> Result<Enrolled, IdentityError> {
        let object = match self.check_before_bucket(request).await? {
            Checked::Object(object) => object,
            Checked::Replaces(agent) => return Ok(Enrolled::Replaces(agent)),
        };
        let row = self.new_agent(request, &object);
        let admit = operation.change(|tx, _| {
            let row = row.clone();
            async move {
                let (agent, before) = admit(tx, self.core.clock.now(), request, row).await?;
                let (agent, issued) = self.certify(tx, agent, &request.key).await?;
                let said = Details::none()
                    .with("name", agent.name.as_str())
                    .with("wanted_name", agent.wanted_name.as_str())
                    .with("state", agent.state.as_str())
                    .with("serial", issued.serial.as_str())
                    .with("before", before.map(|agent| told(&agent)))
                    .with("after", told(&agent));
                Ok::<_, IdentityError>(((agent, issued), said))
            }
            .boxed()
        });
        let (row, issued) = admit.await?;
        Ok(Enrolled::Member(Box::new(self.membership(row, issued).await?)))
    }

    /// Who has no good token must not make the coordinator write into the bucket; all of it is asked again in the
    /// transaction.
    async fn check_before_bucket(&self, request: &Enrolment) -> Result<Checked, IdentityError> {
        let object = AgentKeyObject::parse_first(&request.key_object, request.agent, &request.signing_key)?;
        self.check_pins(&request.root_pins)?;
        let mut conn = self.core.store.reader().await?;
        let token = known_token(&mut conn, &request.token).await?;
        if known_agent(&mut conn, request, &token).await?.is_none() {
            usable(&token, self.core.clock.now())?;
            match token.replaces {
                Some(agent) if agent != request.agent => return Ok(Checked::Replaces(agent)),
                Some(_) => {}
                None => drop(wanted_name(request, &token)?),
            }
        }
        drop(conn);
        let key = object.name().into();
        let put = self.objects.put(&key, Bytes::copy_from_slice(object.bytes()), Put::New);
        match put.await {
            Err(error) if error.kind != ObjectErrorKind::AlreadyThere => Err(error.into()),
            _ => Ok(Checked::Object(object)),
        }
    }

    /// A host that pinned another root key would refuse its first backup: it is told now, while its token is good. (What it
    /// believes later it verifies itself, against its pins.)
    fn check_pins(&self, pins: &[Sha256]) -> Result<(), IdentityError> {
        let roots = &self.settings.roots;
        if pins.is_empty() || roots.is_empty() || pins.iter().any(|pin| roots.contains(pin)) {
            return Ok(());
        }
        Err(IdentityError::OtherRoot { pinned: pins.to_vec() })
    }

    fn new_agent(&self, request: &Enrolment, object: &AgentKeyObject) -> NewAgent {
        let now = self.core.clock.now();
        NewAgent {
            signing_key: request.signing_key,
            key_object: object.bytes().to_vec(),
            tls_key_sha256: request.key.sha256(),
            version: said(&request.version),
            now,
        }
    }

    /// Signs a certificate for an agent and remembers its key and end.
    async fn certify(
        &self,
        tx: &mut Tx,
        mut agent: AgentRow,
        key: &RequestedKey,
    ) -> Result<(AgentRow, Issued), IdentityError> {
        let issued = self.ca.issue_agent(agent.id, agent.key_epoch, key, self.settings.agent_life)?;
        agent.tls_key_sha256 = key.sha256();
        agent.certificate_expires = issued.not_after;
        agents::update(tx, &agent).await?;
        Ok((agent, issued))
    }

    async fn membership(&self, agent: AgentRow, issued: Issued) -> Result<Membership, IdentityError> {
        let mut conn = self.core.store.reader().await?;
        let chain = trust::chain(&mut conn, 0).await?;
        let trust_chain = chain.into_iter().map(|row| row.object).collect();
        Ok(Membership { agent, issued, ca: self.ca.certificate().clone(), trust_chain })
    }

    /// A new certificate for an agent whose old one is still good, and stays so.
    ///
    /// # Errors
    /// [`IdentityError::AgentRevoked`], or those of access and database.
    pub async fn renew(&self, ctx: &OpContext, key: RequestedKey) -> Result<Membership, IdentityError> {
        let operation = ctx.operation(Action::CertificateRenew, ctx.actor(), Details::none());
        let reissue = async { self.reissue(&operation, operation.agent()?, &key).await };
        operation.run(reissue.boxed()).await
    }

    async fn reissue(
        &self,
        operation: &Operation<'_>,
        agent: AgentId,
        key: &RequestedKey,
    ) -> Result<Membership, IdentityError> {
        let reissue = operation.change(move |tx, _| {
            async move {
                agents::lock(tx, agent).await?;
                let row = active(tx, agent).await?;
                let (row, issued) = self.certify(tx, row, key).await?;
                let said = Details::none().with("serial", issued.serial.as_str());
                Ok::<_, IdentityError>(((row, issued), said))
            }
            .boxed()
        });
        let (row, issued) = reissue.await?;
        self.membership(row, issued).await
    }

    /// The CA's certificate, and what root keys said of it where it took the place of a lost one.
    ///
    /// # Errors
    /// Those of access.
    pub async fn ca_said(
        &self,
        ctx: &OpContext,
    ) -> Result<(CertificateDer<'static>, Option<CaStatement>), IdentityError> {
        ctx.authorize(Action::CaShow, &"ca").await?;
        Ok((self.ca.certificate().clone(), self.ca.statement().cloned()))
    }

    /// Something for an agent to sign: good for a minute, once.
    ///
    /// # Errors
    /// [`IdentityError::AgentUnknown`], [`IdentityError::AgentRevoked`], [`IdentityError::TooManyChallenges`].
    pub async fn challenge(&self, ctx: &OpContext, agent: AgentId) -> Result<[u8; 32], IdentityError> {
        ctx.authorize(Action::AgentChallenge, &format!("agent:{agent}")).await?;
        active(&mut *self.core.store.reader().await?, agent).await?;
        let (now, challenge) = (self.core.clock.now(), self.core.random.bytes());
        let mut open = self.challenges.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        open.retain(|_, (_, expires)| *expires > now);
        if open.len() >= MAX_CHALLENGES {
            return Err(IdentityError::TooManyChallenges);
        }
        open.insert(challenge, (agent, now.plus(CHALLENGE_LIFE)));
        Ok(challenge)
    }

    /// A new certificate for an agent that slept until its old one expired and signs a challenge with its signing key.
    ///
    /// # Errors
    /// [`IdentityError::ChallengeUnknown`], [`IdentityError::ChallengeSignature`], or as [`Identities::renew`].
    pub async fn recover(
        &self,
        ctx: &OpContext,
        agent: AgentId,
        challenge: &[u8],
        csr_der: &[u8],
        signature: &[u8],
    ) -> Result<Membership, IdentityError> {
        let operation = ctx.operation(Action::AgentRecover, format!("agent:{agent}"), Details::none());
        let recover = async {
            let key = self.answered(agent, challenge, csr_der, signature).await?;
            self.reissue(&operation, agent, &key).await
        };
        operation.run(recover.boxed()).await
    }

    async fn answered(
        &self,
        agent: AgentId,
        challenge: &[u8],
        csr_der: &[u8],
        signature: &[u8],
    ) -> Result<RequestedKey, IdentityError> {
        let challenge: [u8; 32] = challenge.try_into().map_err(|_| IdentityError::ChallengeUnknown)?;
        let asked = {
            let mut open = self.challenges.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            open.remove(&challenge)
        };
        match asked {
            Some((asked, expires)) if asked == agent && expires > self.core.clock.now() => {}
            _ => return Err(IdentityError::ChallengeUnknown),
        }
        let row = active(&mut *self.core.store.reader().await?, agent).await?;
        let csr = Sha256::of(csr_der);
        row.signing_key
            .verify(RECOVER_CONTEXT, &[agent.as_bytes(), &challenge, csr.as_bytes()], signature)
            .map_err(|_| IdentityError::ChallengeSignature(agent))?;
        Ok(RequestedKey::parse(csr_der)?)
    }
}

/// What a look at the request gives.
enum Checked {
    /// It may be granted; its key object is in the bucket.
    Object(AgentKeyObject),
    /// It must be asked under another id.
    Replaces(AgentId),
}

#[derive(Clone)]
struct NewAgent {
    signing_key: VerifyingKey,
    key_object: Vec<u8>,
    tls_key_sha256: Sha256,
    version: String,
    now: UnixMillis,
}

/// What a host says about itself, short and on one line.
pub(crate) fn said(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect()
}

async fn known_token(tx: &mut Tx, token: &Token) -> Result<TokenRow, IdentityError> {
    match tokens::get(tx, &token.id).await? {
        Some(row) if token.matches(&row) && row.revoked => Err(IdentityError::TokenRevoked { id: row.id }),
        Some(row) if token.matches(&row) => Ok(row),
        _ => Err(IdentityError::TokenUnknown),
    }
}

fn usable(token: &TokenRow, now: UnixMillis) -> Result<(), IdentityError> {
    if token.used >= token.uses {
        return Err(IdentityError::TokenUsedUp { id: token.id.clone(), uses: token.uses });
    }
    if token.expires <= now {
        return Err(IdentityError::TokenExpired { id: token.id.clone(), at: token.expires });
    }
    Ok(())
}

/// The agent that this very request has made before.
async fn known_agent(
    tx: &mut Tx,
    request: &Enrolment,
    token: &TokenRow,
) -> Result<Option<AgentRow>, IdentityError> {
    let Some(agent) = agents::get(tx, request.agent).await? else { return Ok(None) };
    let same = agent.token_id == token.id
        && agent.signing_key == request.signing_key
        && agent.tls_key_sha256 == request.key.sha256();
    match agent.state {
        _ if !same && token.replaces == Some(agent.id) => Ok(None),
        _ if !same => Err(IdentityError::AgentTaken(agent.id)),
        AgentState::Revoked => Err(IdentityError::AgentRevoked(agent.id)),
        AgentState::Retired => Err(IdentityError::AgentRetired(agent.id)),
        AgentState::Active | AgentState::Pending => Ok(Some(agent)),
    }
}

/// What the new agent wants to be called.
fn wanted_name(request: &Enrolment, token: &TokenRow) -> Result<Name, IdentityError> {
    let text = if token.name.is_empty() { request.host.to_ascii_lowercase() } else { token.name.clone() };
    Ok(text.parse()?)
}

/// A name that nobody else has, for an agent whose own is taken.
fn pending_name(wanted: &Name, id: AgentId) -> Result<Name, IdentityError> {
    const SUFFIX: usize = 9;
    let short: String = wanted.as_str().chars().take(MAX_NAME - SUFFIX).collect();
    Ok(format!("{short}.{}", &id.to_string()[..SUFFIX - 1]).parse()?)
}

/// What the audit says of an agent's host.
fn told(agent: &AgentRow) -> serde_json::Value {
    serde_json::json!({
        "state": agent.state.as_str(),
        "labels": agent.labels,
        "signing_key": hex::encode(agent.signing_key.as_bytes()),
        "key_epoch": agent.key_epoch,
    })
}

/// The agent that this request makes, and what it was before where its host is replaced.
async fn admit(
    tx: &mut Tx,
    now: UnixMillis,
    request: &Enrolment,
    new: NewAgent,
) -> Result<(AgentRow, Option<AgentRow>), IdentityError> {
    // Uses are counted, and the agent is changed: by one at a time.
    tokens::lock(tx, &request.token.id).await?;
    agents::lock(tx, request.agent).await?;
    let token = known_token(tx, &request.token).await?;
    if let Some(agent) = known_agent(tx, request, &token).await? {
        return Ok((agent, None));
    }
    usable(&token, now)?;
    if !tokens::claim(tx, &token.id).await? {
        // Somebody else had the last use in the same moment.
        return Err(IdentityError::TokenUsedUp { id: token.id, uses: token.uses });
    }
    match token.replaces {
        Some(replaced) if replaced != request.agent => Err(IdentityError::AgentTaken(request.agent)),
        Some(replaced) => replace(tx, replaced, new, &token).await,
        None => join(tx, request, new, token).await.map(|agent| (agent, None)),
    }
}

/// The new host of an agent: name, labels, scope and series stay; the keys of the old one are not good any more.
async fn replace(
    tx: &mut Tx,
    replaced: AgentId,
    new: NewAgent,
    token: &TokenRow,
) -> Result<(AgentRow, Option<AgentRow>), IdentityError> {
    let found = agents::lock(tx, replaced).await?;
    let before = found.ok_or_else(|| IdentityError::AgentUnknown(replaced.to_string()))?;
    let agent = AgentRow {
        state: AgentState::Active,
        state_reason: String::new(),
        signing_key: new.signing_key,
        key_object: new.key_object,
        tls_key_sha256: new.tls_key_sha256,
        token_id: token.id.clone(),
        version: new.version,
        enrolled: new.now,
        keep_until: None,
        key_epoch: before.key_epoch + 1,
        protocol: SaidProtocol::default(),
        ..before.clone()
    };
    agents::replace_host(tx, &agent).await?;
    agents::update(tx, &agent).await?;
    Ok((agent, Some(before)))
}

/// A host that is new in the fleet. A name that is taken makes it wait for an admin.
async fn join(
    tx: &mut Tx,
    request: &Enrolment,
    new: NewAgent,
    token: TokenRow,
) -> Result<AgentRow, IdentityError> {
    let wanted = wanted_name(request, &token)?;
    let (name, state, wanted_name) = match agents::by_name(tx, wanted.as_str()).await? {
        None => (wanted, AgentState::Active, String::new()),
        Some(_) => (pending_name(&wanted, request.agent)?, AgentState::Pending, wanted.into()),
    };
    let agent = AgentRow {
        id: request.agent,
        name,
        state,
        state_reason: String::new(),
        labels: token.labels,
        scope: token.scope,
        signing_key: new.signing_key,
        key_object: new.key_object,
        tls_key_sha256: new.tls_key_sha256,
        token_id: token.id,
        version: new.version,
        os: String::new(),
        timezone: String::new(),
        address: String::new(),
        enrolled: new.now,
        last_seen: new.now,
        certificate_expires: new.now,
        wanted_name,
        keep_until: None,
        clock_skew_ms: 0,
        key_epoch: 0,
        protocol: SaidProtocol::default(),
    };
    agents::insert(tx, &agent).await?;
    Ok(agent)
}

async fn active(tx: &mut Tx, id: AgentId) -> Result<AgentRow, IdentityError> {
    let found = agents::get(tx, id).await?;
    let agent = found.ok_or_else(|| IdentityError::AgentUnknown(id.to_string()))?;
    match agent.state {
        // A pending one keeps its certificate while it waits.
        AgentState::Active | AgentState::Pending => Ok(agent),
        AgentState::Revoked => Err(IdentityError::AgentRevoked(id)),
        AgentState::Retired => Err(IdentityError::AgentRetired(id)),
    }
}
