//! A host that was taken over: it speaks the protocol with its own good certificate and asks for what is not its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sealift_common::clock::Clock;
use sealift_common::crypto::{KeyOwner, Recipient, SeriesSecret, SigningKey};
use sealift_common::format::manifest::{
    Content, ManifestObject, PackRef, PublicDraft, Source, Status as Whole,
};
use sealift_common::format::pack::{BackupKeys, PackMeta};
use sealift_common::id::{AgentId, BackupId, Random, RepositoryId, RunId, SeriesId, Sha256};
use sealift_common::protocol::Spoken;
use sealift_common::tls;
use sealift_proto::v1::agent_message::Message as Up;
use sealift_proto::v1::backup_client::BackupClient;
use sealift_proto::v1::coordinator_message::Message as Down;
use sealift_proto::v1::session_client::SessionClient;
use sealift_proto::v1::{self, AttemptRef, AuthorizePackRequest, SignedRequest, prepare_request};
use sealift_tests::cluster::Cluster;
use sealift_tests::faults::all_objects;
use sealift_tests::tree;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// The attacker's end of a session.
struct Intruder {
    backup: BackupClient<Channel>,
    incoming: Streaming<v1::CoordinatorMessage>,
    outgoing: mpsc::Sender<v1::AgentMessage>,
    signing_key: SigningKey,
    secret: SeriesSecret,
    id: AgentId,
    random: Random,
}

impl Intruder {
    /// Connects with what lies in the state directory of an agent.
    async fn take_over(cluster: &Cluster, dir: &Path) -> Self {
        let text = std::fs::read_to_string(dir.join("state/identity.json")).unwrap();
        let stored: serde_json::Value = serde_json::from_str(&text).unwrap();
        let decode = |value: &serde_json::Value| BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap();
        let all = |value: &serde_json::Value| {
            value.as_array().unwrap().iter().map(|v| decode(v).into()).collect::<Vec<_>>()
        };
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(decode(&stored["tls_key"]));
        let identity = tls::Identity { chain: all(&stored["certificate"]), key: key.into() };
        let config = tls::client_config(&all(&stored["ca"]), Some(&identity)).unwrap();
        let channel = tls::channel(&cluster.url().parse().unwrap(), config).unwrap();
        let (outgoing, waiting) = mpsc::channel(16);
        let sources =
            vec![v1::SourceInfo { name: "dump".into(), kind: "command".into(), ..Default::default() }];
        let hello = v1::Hello {
            instance_id: vec![7; 16],
            agent_version: "0.1.0".into(),
            host: "intruder".into(),
            sources: Some(v1::SourceList { sources }),
            ..Spoken::of_this_build().hello()
        };
        outgoing.send(v1::AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut session = SessionClient::new(channel.clone());
        let incoming = session.open(ReceiverStream::new(waiting)).await.unwrap().into_inner();
        let seed: [u8; 32] = decode(&stored["signing_key"]).try_into().unwrap();
        let random = Random::from_os();
        Self {
            backup: BackupClient::new(channel),
            incoming,
            outgoing,
            signing_key: SigningKey::from_seed(seed),
            secret: SeriesSecret::generate(&random),
            id: stored["agent_id"].as_str().unwrap().parse().unwrap(),
            random,
        }
    }

    /// Waits for work and takes it.
    async fn accept(&mut self) -> v1::Offer {
        loop {
            let message = self.incoming.message().await.unwrap().expect("the session stays open");
            let Some(Down::Offer(offer)) = message.message else { continue };
            let reply =
                v1::OfferReply { attempt: offer.attempt.clone(), accepted: true, ..Default::default() };
            self.outgoing.send(v1::AgentMessage { message: Some(Up::OfferReply(reply)) }).await.unwrap();
            return offer;
        }
    }

    async fn begin(&mut self, attempt: AttemptRef) -> Result<v1::BeginHead, Status> {
        let request = v1::BeginRequest {
            attempt: Some(attempt),
            epoch_id: self.secret.epoch_id().to_vec(),
            instance_id: vec![7; 16],
            ..Default::default()
        };
        let mut stream = self.backup.begin(request).await?.into_inner();
        Ok(stream.message().await?.and_then(|reply| reply.head).expect("a head"))
    }

    async fn authorize(&mut self, request: AuthorizePackRequest) -> Result<SignedRequest, Status> {
        self.backup.authorize_pack(request).await.map(tonic::Response::into_inner)
    }

    /// A manifest of this series, right in everything but, perhaps, the packs that it names.
    fn manifest(&self, job: &Job, packs: Vec<PackRef>) -> ManifestObject {
        let head = &job.head;
        let nonce: [u8; 32] = head.session_nonce.as_slice().try_into().unwrap();
        let recipients = std::slice::from_ref(&job.recipient);
        let keys =
            BackupKeys::generate(&self.random, &nonce, job.owner(), self.secret.clone(), recipients).unwrap();
        let draft = PublicDraft {
            agent: self.id,
            sequence: head.sequence,
            previous: None,
            created: Clock::system().now(),
            session_nonce: nonce,
            trust_version: head.trust_version,
            trust_sha256: head.trust_sha256.as_slice().try_into().unwrap(),
            status: Whole::Complete,
            new_stored_bytes: 0,
            packs,
        };
        let content =
            Content { chunking: Default::default(), source: Source::default(), streams: Vec::new() };
        ManifestObject::seal(draft, &content, &keys, &self.signing_key, &self.random).unwrap()
    }

    async fn prepare(
        &mut self,
        attempt: AttemptRef,
        manifest: &ManifestObject,
    ) -> Result<v1::PrepareReply, Status> {
        let head = v1::PrepareHead {
            attempt: Some(attempt),
            backup_id: manifest.public.owner.backup.to_vec(),
            slots_sha256: manifest.slots_sha256.to_vec(),
            sealed_sha256: manifest.sealed_sha256.to_vec(),
            signature: manifest.signature.to_vec(),
            manifest_sha256: manifest.sha256.to_vec(),
            manifest_size: manifest.bytes.len() as u64,
            public_sha256: manifest.public_sha256.to_vec(),
            ..Default::default()
        };
        let public = prepare_request::Part::PublicPart(manifest.public_bytes.clone());
        let messages = [prepare_request::Part::Head(head), public];
        let messages = messages.map(|part| v1::PrepareRequest { part: Some(part) });
        self.backup.prepare(tokio_stream::iter(messages)).await.map(tonic::Response::into_inner)
    }
}

/// What the intruder was offered and has begun.
struct Job {
    attempt: AttemptRef,
    series: SeriesId,
    head: v1::BeginHead,
    recipient: Recipient,
}

impl Job {
    fn owner(&self) -> KeyOwner {
        KeyOwner {
            repository: RepositoryId::try_from(self.head.repository_id.as_slice()).unwrap(),
            series: self.series,
            backup: BackupId::try_from(self.head.backup_id.as_slice()).unwrap(),
        }
    }

    fn pack(&self, body: &[u8]) -> AuthorizePackRequest {
        let meta = meta(body);
        AuthorizePackRequest {
            attempt: Some(self.attempt.clone()),
            backup_id: self.head.backup_id.clone(),
            sha256: meta.sha256.to_vec(),
            size: meta.size,
            meta_sha256: meta.meta_sha256.to_vec(),
            index_len: meta.index_len,
            directory_len: meta.directory_len,
            header_len: meta.header_len,
            pack_id: vec![5; 16],
            raw_bytes: 0,
        }
    }

    fn confirm(&self, body: &[u8]) -> v1::ConfirmPackRequest {
        v1::ConfirmPackRequest {
            attempt: Some(self.attempt.clone()),
            backup_id: self.head.backup_id.clone(),
            sha256: Sha256::of(body).to_vec(),
        }
    }

    fn commit(&self) -> v1::CommitRequest {
        v1::CommitRequest { attempt: Some(self.attempt.clone()), backup_id: self.head.backup_id.clone() }
    }
}

/// What the intruder says of a pack; the coordinator cannot look inside.
fn meta(body: &[u8]) -> PackMeta {
    PackMeta {
        sha256: Sha256::of(body),
        size: body.len() as u64,
        meta_sha256: Sha256::of(b"meta"),
        index_len: 100,
        directory_len: 100,
        header_len: 100,
    }
}

/// The audit, as an admin reads it, for refusals of one host.
struct Witness<'a> {
    cluster: &'a Cluster,
    actor: String,
    seen: Cell<usize>,
}

impl Witness<'_> {
    fn refusals(&self) -> Vec<serde_json::Value> {
        let events = self.cluster.json(&["audit", "list", "--actor", &self.actor, "--limit", "0"]);
        let events = events.as_array().unwrap().iter();
        events.filter(|event| event["outcome"] == "refused").cloned().collect()
    }

    /// One of the two codes there are for it, and one refusal of `action` more in the audit. Gives the message.
    #[track_caller]
    fn refused<T>(&self, what: &str, action: &str, result: Result<T, Status>) -> String {
        let status = result.err().unwrap_or_else(|| panic!("{what}: allowed"));
        let codes = [Code::PermissionDenied, Code::FailedPrecondition];
        assert!(codes.contains(&status.code()), "{what}: {status:?}");
        let refusals = self.refusals();
        assert_eq!(refusals.len(), self.seen.get() + 1, "{what}: not audited once: {refusals:#?}");
        self.seen.set(refusals.len());
        let newest = refusals.iter().filter(|event| event["action"] == action).count();
        assert!(newest > 0, "{what}: audited as something else than {action}: {refusals:#?}");
        status.message().to_owned()
    }
}

/// Sends a signed request, changed by `change`; whether the store took it.
async fn put(
    signed: &SignedRequest,
    body: Vec<u8>,
    change: impl FnOnce(reqwest::RequestBuilder, &str) -> reqwest::RequestBuilder,
) -> bool {
    let client = reqwest::Client::builder().build().unwrap();
    let mut request = client.put(&signed.url);
    for header in
        signed.headers.iter().filter(|header| header.name != "host" && header.name != "content-length")
    {
        request = request.header(&header.name, &header.value);
    }
    let response = change(request.body(body), &signed.url).send().await;
    response.is_ok_and(|response| response.status().is_success())
}

fn command_source() -> &'static str {
    "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/echo\", \"content\"]\n"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gets_nothing_but_its_own_bytes() {
    tls::install_provider();
    let cluster = Cluster::dev();
    let _victim = cluster.agent("victim", command_source());
    let theirs = cluster.backup_ok("victim/dump");
    let mut host = cluster.agent("intruder", command_source());
    host.kill();
    let before = all_objects(&cluster);
    let actor = format!("agent:{}", cluster.json(&["agent", "show", "intruder"])["id"].as_str().unwrap());
    let witness = Witness { cluster: &cluster, actor, seen: Cell::new(0) };

    let mut intruder = Intruder::take_over(&cluster, host.dir()).await;
    let run = cluster.start_backup("intruder/dump");
    let offer = intruder.accept().await;
    let attempt = offer.attempt.unwrap();
    let head = intruder.begin(attempt.clone()).await.unwrap();
    let series = SeriesId::try_from(offer.series_id.as_slice()).unwrap();
    let job = Job { attempt, series, head, recipient: cluster.recipient.parse().unwrap() };
    let body = tree::noise(1, 1000);
    let good = || job.pack(&body);

    // What the coordinator must not sign.
    let their_backup: BackupId = theirs["id"].as_str().unwrap().parse().unwrap();
    let their_run: RunId = theirs["run_id"].as_str().unwrap().parse().unwrap();
    let their_attempt = AttemptRef { run_id: their_run.to_vec(), ..job.attempt.clone() };
    let invented = AttemptRef { run_id: vec![9; 16], ..job.attempt.clone() };
    let stale = AttemptRef { epoch: job.attempt.epoch + 1, ..job.attempt.clone() };
    for (what, request) in [
        ("a length that no pack has", AuthorizePackRequest { size: 255, ..good() }),
        ("a length beyond 64 MiB", AuthorizePackRequest { size: (64 << 20) + 1, ..good() }),
        ("parts that do not fit the length", AuthorizePackRequest { header_len: 5000, ..good() }),
        ("a hash that is none", AuthorizePackRequest { sha256: vec![0; 20], ..good() }),
        ("no attempt", AuthorizePackRequest { attempt: None, ..good() }),
        ("another host's backup", AuthorizePackRequest { backup_id: their_backup.to_vec(), ..good() }),
        ("another host's run", AuthorizePackRequest { attempt: Some(their_attempt.clone()), ..good() }),
        ("a run that never was", AuthorizePackRequest { attempt: Some(invented), ..good() }),
        ("another epoch", AuthorizePackRequest { attempt: Some(stale), ..good() }),
    ] {
        witness.refused(what, "pack.authorize", intruder.authorize(request).await);
    }
    witness.refused("another host's run", "backup.begin", intruder.begin(their_attempt.clone()).await);
    let indexes = v1::ReadIndexesRequest { attempt: Some(their_attempt.clone()), ..Default::default() };
    witness.refused("another host's indexes", "index.read", intruder.backup.read_indexes(indexes).await);
    let report = v1::FailRequest { attempt: Some(their_attempt.clone()), ..Default::default() };
    witness.refused("end another host's attempt", "attempt.fail", intruder.backup.fail(report).await);

    // What was signed is good for these bytes under this name, and for nothing else.
    let signed = intruder.authorize(good()).await.unwrap();
    let longer = [body.clone(), b"more".to_vec()].concat();
    let other = tree::noise(2, body.len());
    assert!(!put(&signed, other.clone(), |request, _| request).await, "another body was stored");
    assert!(!put(&signed, longer, |request, _| request).await, "a longer body was stored");
    for (name, value) in [
        ("x-amz-copy-source", "/sealift/sealift.json"),
        ("x-amz-acl", "public-read"),
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
    ] {
        assert!(
            !put(&signed, body.clone(), |request, _| request.header(name, value)).await,
            "{name} rode along"
        );
    }
    let theirs_series = theirs["series_id"].as_str().unwrap();
    let own_series = job.series.to_string();
    for (what, from, to) in [
        ("under another kind of name", "/packs/", "/manifests/"),
        ("in another series", own_series.as_str(), theirs_series),
        ("under a foreign prefix", "/series/", "/coordinator/series/"),
    ] {
        assert!(signed.url.contains(from), "{}", signed.url);
        let moved = SignedRequest { url: signed.url.replace(from, to), ..signed.clone() };
        assert!(!put(&moved, body.clone(), |request, _| request).await, "stored {what}");
    }
    assert_eq!(all_objects(&cluster), before, "something was stored");

    // What was not uploaded cannot be confirmed, referred to or committed.
    witness.refused(
        "confirm what is not there",
        "pack.confirm",
        intruder.backup.confirm_pack(job.confirm(&body)).await,
    );
    witness.refused(
        "confirm another hash",
        "pack.confirm",
        intruder.backup.confirm_pack(job.confirm(&other)).await,
    );
    let foreign = v1::ConfirmPackRequest { backup_id: their_backup.to_vec(), ..job.confirm(&body) };
    witness.refused(
        "confirm in another's backup",
        "pack.confirm",
        intruder.backup.confirm_pack(foreign).await,
    );
    witness.refused(
        "commit what was not prepared",
        "backup.commit",
        intruder.backup.commit(job.commit()).await,
    );
    let foreign = v1::CommitRequest { backup_id: their_backup.to_vec(), ..job.commit() };
    witness.refused("commit another's backup", "backup.commit", intruder.backup.commit(foreign).await);
    let foreign = v1::CommitRequest { attempt: Some(their_attempt.clone()), ..job.commit() };
    witness.refused("commit for another's attempt", "backup.commit", intruder.backup.commit(foreign).await);

    // Of manifests that are right in all else, the pack is what is refused.
    let own = PackRef { meta: meta(&body), origin: job.owner().backup, referenced_raw: 0 };
    let their_pack =
        before.iter().find(|name| name.contains(theirs_series) && name.contains("/packs/")).unwrap();
    let their_pack: Sha256 = their_pack.rsplit('/').next().unwrap().parse().unwrap();
    let foreign = PackRef { meta: PackMeta { sha256: their_pack, ..own.meta }, ..own };
    for (what, pack) in [("a pack that was not uploaded", own), ("another host's pack", foreign)] {
        let manifest = intruder.manifest(&job, vec![pack]);
        let result = intruder.prepare(job.attempt.clone(), &manifest).await;
        let why = witness.refused(what, "backup.prepare", result);
        assert!(why.contains(&pack.meta.sha256.to_string()), "{what}: refused for another reason: {why}");
    }
    assert_eq!(all_objects(&cluster), before, "something was stored");

    // The same manifest with a pack of its own, once that is there, is signed for; not yet sent, it is no backup.
    assert!(put(&signed, body.clone(), |request, _| request).await, "its own bytes are not taken");
    intruder.backup.confirm_pack(job.confirm(&body)).await.unwrap();
    let manifest = intruder.manifest(&job, vec![own]);
    intruder.prepare(job.attempt.clone(), &manifest).await.unwrap();
    witness.refused("commit what was not sent", "backup.commit", intruder.backup.commit(job.commit()).await);
    let mut expected = before;
    expected.insert(format!("series/{own_series}/packs/{}", own.meta.sha256));
    assert_eq!(all_objects(&cluster), expected);
    assert!(cluster.backups("intruder/dump").is_empty());
    drop(intruder);
    cluster.sealift(&["agent", "revoke", "intruder", "--yes", "--reason", "taken over"]).expect(0);
    assert_ne!(cluster.wait_for_end(&run)["state"], "succeeded");
}
