//! A coordinator's domain with a real database and a real (embedded) S3 server, and an agent that does by hand what agents do.

#![allow(clippy::unwrap_used, dead_code)] // helpers of tests; each test binary uses its share

pub mod database;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::crypto::key_file::generate_identity;
use sealift_common::crypto::trust::RuleRecipient;
use sealift_common::crypto::{KeyOwner, Recipient, Rule, SeriesSecret, SigningKey, TrustObject, TrustPolicy};
use sealift_common::format::manifest::{Content, ManifestObject, PackRef, PublicDraft, Source, Status};
use sealift_common::format::pack::{BackupKeys, PackMeta};
use sealift_common::id::{AgentId, BackupId, PackId, Random, RunId, SeriesId, Sha256};
use sealift_common::lifecycle::Lifecycle;
use sealift_common::name::Labels;
use sealift_coordinator::audit::{Actor, OpContext};
use sealift_coordinator::backups::Backups;
use sealift_coordinator::backups::begin::Begun;
use sealift_coordinator::backups::prepare::{PrepareAnswer, PrepareHead};
use sealift_coordinator::core::Core;
use sealift_coordinator::objects::signing::SignedRequest;
use sealift_coordinator::objects::{ObjectStore, StorageSettings, embedded, probe};
use sealift_coordinator::retention::Retention;
use sealift_coordinator::retention::rules::RetentionRules;
use sealift_coordinator::runs::state::{AttemptState, RunState};
use sealift_coordinator::runs::{Attempt, AttemptRef, Runs};
use sealift_coordinator::store::agents::{AgentRow, AgentState, SaidProtocol};
use sealift_coordinator::store::audit::EventRow;
use sealift_coordinator::store::backups::AgentReport;
use sealift_coordinator::store::lists::Paging;
use sealift_coordinator::store::lists::audit::EventList;
use sealift_coordinator::store::packs::PackFacts;
use sealift_coordinator::store::runs::RunRow;
use sealift_coordinator::store::source_policies::SourcePolicyRow;
use sealift_coordinator::store::sources::SourceRow;
use sealift_coordinator::store::tokens::TokenRow;
use sealift_coordinator::store::trust::TrustRow;
use sealift_coordinator::store::{self, DatabaseUrl, Store, StoreError};
use sealift_coordinator::uploads::{NewPack, UploadError, Uploads};
use sealift_coordinator::verification::Verification;

use database::Database;

/// A coordinator's domain.
pub struct World {
    pub dir: tempfile::TempDir,
    pub core: Core,
    pub clock: Clock,
    pub objects: ObjectStore,
    pub runs: Runs,
    pub uploads: Uploads,
    pub backups: Backups,
    pub verification: Verification,
    pub http: reqwest::Client,
    root: SigningKey,
    _lifecycle: Lifecycle,
}

impl World {
    /// On SQLite: for what does not depend on the database.
    pub async fn new() -> Self {
        Self::on(&Database::Sqlite).await
    }

    /// On this database.
    pub async fn on(database: &Database) -> Self {
        Self::in_store(database, None).await
    }

    /// On this database, with the embedded S3 server or another one.
    pub async fn in_store(database: &Database, settings: Option<StorageSettings>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let random = Random::from_os();
        let clock = Clock::manual(Clock::system().now());
        let lifecycle = Lifecycle::default();
        let any_port = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let settings = match settings {
            Some(settings) => settings,
            None => embedded::start(dir.path(), any_port, &random, &lifecycle).await.unwrap(),
        };
        let objects = ObjectStore::new(settings, clock.clone()).unwrap();
        assert!(probe::run(&objects, &random).await.usable);
        let store = Store::open(&database.url(dir.path())).await.unwrap();
        let core = Core::load(store, clock.clone(), random).await.unwrap();
        let runs = Runs::new(core.clone(), Default::default(), Duration::from_secs(120));
        let backups = Backups::new(core.clone(), objects.clone(), runs.clone());
        Self {
            dir,
            clock,
            uploads: Uploads::new(core.clone(), objects.clone()),
            verification: Verification::new(core.clone(), objects.clone(), backups.clone()),
            root: SigningKey::generate(&core.random),
            core,
            objects,
            runs,
            backups,
            http: reqwest::Client::new(),
            _lifecycle: lifecycle,
        }
    }

    /// Sets a trust policy with these recipients.
    pub async fn trust(&self, recipients: &[Recipient]) -> TrustObject {
        let newest = store::trust::newest(&mut self.core.store.reader().await.unwrap()).await.unwrap();
        let rule = |r: &Recipient| RuleRecipient { recipient: r.clone(), label: String::new() };
        let policy = TrustPolicy {
            repository: self.core.repository,
            version: newest.as_ref().map_or(1, |row| row.version + 1),
            created: self.clock.now(),
            previous: newest.map(|row| row.sha256),
            rules: vec![Rule { scope: String::new(), recipients: recipients.iter().map(rule).collect() }],
            agents: Vec::new(),
            next_roots: Vec::new(),
            next_threshold: 0,
        };
        let object = TrustObject::sign(policy, &[&self.root]).unwrap();
        let row = TrustRow {
            version: object.policy().version,
            sha256: object.sha256(),
            object: object.bytes().to_vec(),
            stored: self.clock.now(),
            in_bucket: true,
        };
        self.write(|tx, _| store::trust::insert(tx, &row).boxed()).await;
        object
    }

    async fn write<'a, T, F>(&self, work: F) -> T
    where
        F: for<'tx> Fn(&'tx mut store::Tx, store::Borrowed<'tx, 'a>) -> BoxFuture<'tx, Result<T, StoreError>>,
    {
        self.core.store.run_tx("a test's set-up", work).await.unwrap()
    }

    /// What stays, and what may go.
    pub fn retention(&self) -> Retention {
        Retention::new(self.core.clone(), self.objects.clone(), self.backups.clone())
    }

    /// Gives a series rules that are in force at once, as a policy does.
    pub async fn set_rules(&self, series: SeriesId, rules: &RetentionRules) {
        let source = store::sources::of_series(&mut self.core.store.reader().await.unwrap(), series).await;
        let row = SourcePolicyRow {
            series,
            agent: source.unwrap().unwrap().agent,
            policy: None,
            timezone: "UTC".to_owned(),
            assigned: self.clock.now(),
            promise_ms: 0,
            overdue_since: None,
            next_due: None,
            owed: None,
            retention: *rules,
            retention_next: None,
        };
        self.write(|tx, _| store::source_policies::put(tx, &row).boxed()).await;
    }

    /// Takes an agent out of service; its backups are to stay until then.
    pub async fn retire(&self, agent: &Agent, until: UnixMillis) {
        let found = store::agents::get(&mut self.core.store.reader().await.unwrap(), agent.id).await;
        let row = AgentRow { state: AgentState::Retired, keep_until: Some(until), ..found.unwrap().unwrap() };
        self.write(|tx, _| store::agents::update(tx, &row).boxed()).await;
    }

    /// Of the key that signs trust policies.
    pub fn root_fingerprint(&self) -> Sha256 {
        self.root.verifying_key().fingerprint()
    }

    /// Ends the leases of whatever an agent has left open.
    pub async fn end_attempts(&self) {
        let later = self.clock.now().plus(Duration::from_secs(600));
        self.runs.expire(later, None).await.unwrap();
    }

    /// A fact of the installation.
    pub async fn fact(&self, name: &str) -> Option<String> {
        let mut reader = self.core.store.reader().await.unwrap();
        store::installation::get(&mut reader, name).await.unwrap()
    }

    /// Copies the (SQLite) database while it is in use.
    pub async fn copy_database(&self) -> PathBuf {
        let copy = self.dir.path().join(format!("copy-{}.db", RunId::generate(&self.core.random)));
        let sql = format!("VACUUM INTO '{}'", copy.display());
        let mut reader = self.core.store.reader().await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *reader).await.unwrap();
        copy
    }

    /// Goes on with a copy of the database, as after a restore of its file. What holds on to the old one must be made anew.
    pub async fn set_database_back(&mut self, copy: &Path) {
        self.core.store.close().await;
        let store = Store::open(&DatabaseUrl::file(copy.to_owned())).await.unwrap();
        self.core = Core::load(store, self.clock.clone(), self.core.random.clone()).await.unwrap();
        self.runs = Runs::new(self.core.clone(), Default::default(), Duration::from_secs(120));
        self.backups = Backups::new(self.core.clone(), self.objects.clone(), self.runs.clone());
        self.uploads = Uploads::new(self.core.clone(), self.objects.clone());
        self.verification = Verification::new(self.core.clone(), self.objects.clone(), self.backups.clone());
    }

    /// Enrols a host with one source.
    pub async fn agent(&self, name: &str) -> Agent {
        let random = &self.core.random;
        let now = self.clock.now();
        let token = TokenRow {
            id: name.to_owned(),
            secret_sha256: Sha256::of(b"secret"),
            labels: Labels::default(),
            scope: String::new(),
            name: name.to_owned(),
            created: now,
            expires: now,
            uses: 1,
            used: 1,
            revoked: false,
            created_by: "admin:test".to_owned(),
            replaces: None,
        };
        let signing = SigningKey::generate(random);
        let row = AgentRow {
            id: AgentId::generate(random),
            name: name.parse().unwrap(),
            state: AgentState::Active,
            state_reason: String::new(),
            labels: Labels::default(),
            scope: String::new(),
            signing_key: signing.verifying_key(),
            key_object: Vec::new(),
            tls_key_sha256: Sha256::of(b"tls"),
            token_id: name.to_owned(),
            version: String::new(),
            os: String::new(),
            timezone: String::new(),
            address: String::new(),
            enrolled: now,
            last_seen: now,
            certificate_expires: now,
            wanted_name: String::new(),
            keep_until: None,
            clock_skew_ms: 0,
            key_epoch: 0,
            protocol: SaidProtocol::default(),
        };
        let source = SourceRow {
            agent: row.id,
            name: "data".parse().unwrap(),
            kind: "directory".to_owned(),
            detail: String::new(),
            credential_origins: Vec::new(),
            series: SeriesId::generate(random),
            present: true,
            changed: now,
        };
        self.write(|tx, _| store::tokens::insert(tx, &token).boxed()).await;
        self.write(|tx, _| store::agents::insert(tx, &row).boxed()).await;
        self.write(|tx, _| store::sources::insert_series(tx, &source, "").boxed()).await;
        self.write(|tx, _| store::sources::put(tx, &source).boxed()).await;
        Agent {
            id: row.id,
            name: name.to_owned(),
            series: source.series,
            signing,
            secret: SeriesSecret::generate(random),
        }
    }

    /// Records that this coordinator holds the agent's session.
    pub async fn connected(&self, agent: &Agent) {
        let (here, now) = (self.core.coordinator, self.core.lease_time());
        self.write(|tx, _| store::agent_sessions::open(tx, agent.id, here, now).boxed()).await;
    }

    /// Starts a run of an agent's source and its first attempt, which the agent has accepted.
    pub async fn attempt(&self, agent: &Agent) -> AttemptRef {
        let now = self.clock.now();
        let run = RunRow {
            id: RunId::generate(&self.core.random),
            agent: agent.id,
            source: "data".parse().unwrap(),
            series: agent.series,
            state: RunState::Active,
            created: now,
            due: now,
            started: Some(now),
            ended: None,
            attempts: 1,
            cancelled_by: None,
            requested_by: "admin:test".to_owned(),
            trace_parent: String::new(),
            backup: None,
            error: String::new(),
            site: String::new(),
            plan: None,
        };
        self.write(|tx, _| store::runs::insert(tx, &run).boxed()).await;
        let epoch = self.write(|tx, _| store::sources::next_fence(tx, agent.series).boxed()).await;
        let attempt = Attempt {
            run: run.id,
            number: 1,
            agent: agent.id,
            series: agent.series,
            state: AttemptState::Accepted,
            generation: self.core.standing.generation(),
            epoch,
            lease_owner: "test".to_owned(),
            lease_expires: now.plus(Duration::from_secs(120)),
            instance: None,
            backup: None,
            started: now,
            ended: None,
            error: String::new(),
            stderr: String::new(),
        };
        self.write(|tx, _| store::attempts::insert(tx, &attempt).boxed()).await;
        attempt.reference()
    }

    /// The context of an agent's call.
    pub fn as_agent(&self, agent: &Agent) -> OpContext {
        OpContext::new(&self.core, Actor::Agent(agent.id), None)
    }

    /// The context of an admin's call.
    pub fn as_admin(&self) -> OpContext {
        OpContext::new(&self.core, Actor::Admin("alice".parse().unwrap()), None)
    }

    pub async fn run_of(&self, attempt: &AttemptRef) -> RunRow {
        let mut reader = self.core.store.reader().await.unwrap();
        store::runs::get(&mut reader, attempt.run).await.unwrap().unwrap()
    }

    /// All audit events of an action with this outcome.
    pub async fn audited(&self, action: &str, outcome: &str) -> Vec<EventRow> {
        let list = EventList { actions: vec![action.to_owned()], limit: 1_000, ..EventList::default() };
        let mut reader = self.core.store.reader().await.unwrap();
        let events = store::lists::audit::list(&mut reader, &list).await.unwrap();
        events.into_iter().filter(|event| event.outcome == outcome).collect()
    }

    /// Names of all objects in the bucket.
    pub async fn bucket(&self) -> Vec<String> {
        let all = self.objects.list_all("", 10_000).await.unwrap();
        all.into_iter().map(|object| object.name.to_string()).collect()
    }

    /// Sends a signed request, as agents and admins do.
    pub async fn send(&self, signed: &SignedRequest, body: &Bytes) -> (u16, Bytes) {
        let mut request = self.http.request(signed.method.parse().unwrap(), &signed.url).body(body.clone());
        for (name, value) in signed.headers.iter().filter(|(name, _)| name != "content-length") {
            request = request.header(name, value);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap())
    }

    /// Committed backups as an admin lists them.
    pub async fn listed(&self) -> Vec<BackupId> {
        let query = sealift_coordinator::backups::query::BackupQuery::default();
        let page = self.backups.list(&self.as_admin(), &query, &Paging::first(1_000)).await.unwrap();
        page.rows.into_iter().map(|view| view.backup.id).collect()
    }

    pub async fn begin(&self, agent: &Agent, attempt: &AttemptRef) -> Begun {
        let epoch = agent.secret.epoch_id();
        self.backups.begin(&self.as_agent(agent), attempt, epoch, 0).await.unwrap()
    }

    /// Packs that a begun backup may refer to.
    pub async fn referable(&self, begun: &Begun) -> Vec<PackFacts> {
        let page = self.backups.referable(begun, None).await.unwrap();
        page.into_iter().map(|(_, facts)| facts).collect()
    }

    /// Signs for a pack, uploads and confirms it.
    pub async fn store_pack(&self, agent: &Agent, attempt: &AttemptRef, pack: &TestPack) {
        let ctx = self.as_agent(agent);
        let put = self.uploads.authorize(&ctx, attempt, pack.new).await.unwrap();
        assert_eq!(self.send(&put, &pack.bytes).await.0, 200);
        let facts = pack.new.facts;
        self.uploads.confirm(&ctx, attempt, facts.origin, facts.meta.sha256).await.unwrap();
    }

    pub async fn prepare(
        &self,
        agent: &Agent,
        attempt: &AttemptRef,
        manifest: &ManifestObject,
    ) -> Result<PrepareAnswer, sealift_coordinator::backups::BackupError> {
        let public = Bytes::from(manifest.public_bytes.clone());
        self.backups.prepare(&self.as_agent(agent), attempt, head_of(manifest), public).await
    }

    /// Prepares and returns the signed PUT of the manifest.
    pub async fn prepared(
        &self,
        agent: &Agent,
        attempt: &AttemptRef,
        manifest: &ManifestObject,
    ) -> SignedRequest {
        match self.prepare(agent, attempt, manifest).await.unwrap() {
            PrepareAnswer::Put(put) => put,
            PrepareAnswer::AlreadyCommitted => panic!("committed already"),
        }
    }

    /// A whole backup of `packs` new packs that refers to `earlier` ones as well.
    pub async fn back_up(
        &self,
        agent: &Agent,
        recipient: &Recipient,
        packs: usize,
    ) -> (Begun, ManifestObject) {
        let attempt = self.attempt(agent).await;
        let begun = self.begin(agent, &attempt).await;
        let mut refs: Vec<PackFacts> = self.referable(&begun).await;
        for _ in 0..packs {
            let pack = self.pack(&begun);
            self.store_pack(agent, &attempt, &pack).await;
            refs.push(pack.new.facts);
        }
        let manifest = self.manifest(agent, &begun, recipient, &refs);
        let put = self.prepared(agent, &attempt, &manifest).await;
        assert_eq!(self.send(&put, &manifest.bytes.clone().into()).await.0, 200);
        let ctx = self.as_agent(agent);
        self.backups.commit(&ctx, &attempt, begun.backup.id).await.unwrap();
        assert_eq!(self.run_of(&attempt).await.state, RunState::Succeeded);
        (begun, manifest)
    }

    /// Random bytes of a pack's shape; the coordinator cannot look inside.
    pub fn pack(&self, begun: &Begun) -> TestPack {
        let mut bytes = vec![0; 3_000];
        self.core.random.fill(&mut bytes);
        let meta = PackMeta {
            sha256: Sha256::of(&bytes),
            size: bytes.len() as u64,
            meta_sha256: Sha256::of(&bytes[..1]),
            index_len: 200,
            directory_len: 100,
            header_len: 300,
        };
        let facts = PackFacts { meta, origin: begun.backup.id };
        TestPack {
            new: NewPack { pack: PackId::generate(&self.core.random), facts, raw_len: 0 },
            bytes: bytes.into(),
        }
    }

    /// The signed manifest of a begun backup.
    pub fn manifest(
        &self,
        agent: &Agent,
        begun: &Begun,
        recipient: &Recipient,
        packs: &[PackFacts],
    ) -> ManifestObject {
        self.manifest_of(Status::Complete, agent, begun, recipient, packs)
    }

    /// As [`World::manifest`], of a backup that may lack something.
    pub fn manifest_of(
        &self,
        status: Status,
        agent: &Agent,
        begun: &Begun,
        recipient: &Recipient,
        packs: &[PackFacts],
    ) -> ManifestObject {
        let backup = &begun.backup;
        let owner = KeyOwner { repository: self.core.repository, series: backup.series, backup: backup.id };
        let recipients = std::slice::from_ref(recipient);
        let nonce = &backup.session_nonce;
        let keys =
            BackupKeys::generate(&self.core.random, nonce, owner, agent.secret.clone(), recipients).unwrap();
        let draft = PublicDraft {
            agent: agent.id,
            sequence: backup.sequence,
            previous: backup.previous,
            created: self.clock.now(),
            session_nonce: backup.session_nonce,
            trust_version: begun.trust.version,
            trust_sha256: begun.trust.sha256,
            status,
            new_stored_bytes: 0,
            packs: packs
                .iter()
                .map(|f| PackRef { meta: f.meta, origin: f.origin, referenced_raw: 0 })
                .collect(),
        };
        let content =
            Content { chunking: Default::default(), source: Source::default(), streams: Vec::new() };
        ManifestObject::seal(draft, &content, &keys, &agent.signing, &self.core.random).unwrap()
    }
}

/// What an agent tells Prepare of a manifest.
pub fn head_of(manifest: &ManifestObject) -> PrepareHead {
    PrepareHead {
        backup: manifest.public.owner.backup,
        slots_sha256: manifest.slots_sha256,
        sealed_sha256: manifest.sealed_sha256,
        signature: manifest.signature.to_vec(),
        manifest_sha256: manifest.sha256,
        manifest_size: manifest.bytes.len() as u64,
        public_sha256: manifest.public_sha256,
        report: AgentReport::default(),
        new_raw_bytes: 0,
    }
}

/// A host.
pub struct Agent {
    pub id: AgentId,
    pub name: String,
    pub series: SeriesId,
    pub signing: SigningKey,
    pub secret: SeriesSecret,
}

/// A pack that a test made.
pub struct TestPack {
    pub new: NewPack,
    pub bytes: Bytes,
}

/// A recipient whose private key nobody needs here.
pub fn recipient() -> Recipient {
    generate_identity(UnixMillis(0)).1
}

/// Whether an upload was refused for what it asked, rather than failing.
pub fn refused(outcome: &Result<impl Sized, UploadError>) -> bool {
    outcome.as_ref().is_err_and(sealift_coordinator::audit::OpError::is_refusal)
}
