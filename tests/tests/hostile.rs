//! A host that was taken over: it speaks the protocol with its own good certificate and asks for what is not its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sealift_common::crypto::SigningKey;
use sealift_common::id::{BackupId, RunId, Sha256};
use sealift_common::tls;
use sealift_proto::format::{ManifestPublic, PackRef};
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
    agent_id: Vec<u8>,
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
            protocol_min: sealift_proto::PROTOCOL_MIN,
            protocol_max: sealift_proto::PROTOCOL_MAX,
            instance_id: vec![7; 16],
            agent_version: "0.1.0".into(),
            host: "intruder".into(),
            sources: Some(v1::SourceList { sources }),
            ..Default::default()
        };
        outgoing.send(v1::AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut session = SessionClient::new(channel.clone());
        let incoming = session.open(ReceiverStream::new(waiting)).await.unwrap().into_inner();
        let seed: [u8; 32] = decode(&stored["signing_key"]).try_into().unwrap();
        let id: sealift_common::id::AgentId = stored["agent_id"].as_str().unwrap().parse().unwrap();
        Self {
            backup: BackupClient::new(channel),
            incoming,
            outgoing,
            signing_key: SigningKey::from_seed(seed),
            agent_id: id.to_vec(),
        }
    }

    /// Waits for work and takes it.
    async fn accept(&mut self) -> AttemptRef {
        loop {
            let message = self.incoming.message().await.unwrap().expect("the session stays open");
            let Some(Down::Offer(offer)) = message.message else { continue };
            let attempt = offer.attempt.unwrap();
            let reply =
                v1::OfferReply { attempt: Some(attempt.clone()), accepted: true, ..Default::default() };
            self.outgoing.send(v1::AgentMessage { message: Some(Up::OfferReply(reply)) }).await.unwrap();
            return attempt;
        }
    }

    async fn begin(&mut self, attempt: AttemptRef) -> Result<v1::BeginHead, Status> {
        let request = v1::BeginRequest {
            attempt: Some(attempt),
            epoch_id: vec![1; 16],
            instance_id: vec![7; 16],
            ..Default::default()
        };
        let mut stream = self.backup.begin(request).await?.into_inner();
        Ok(stream.message().await?.and_then(|reply| reply.head).expect("a head"))
    }

    async fn authorize(&mut self, request: AuthorizePackRequest) -> Result<SignedRequest, Status> {
        self.backup.authorize_pack(request).await.map(tonic::Response::into_inner)
    }

    /// A manifest in this host's name that refers to `packs`, rightly signed.
    async fn prepare(
        &mut self,
        attempt: AttemptRef,
        head: &v1::BeginHead,
        packs: Vec<PackRef>,
    ) -> Result<v1::PrepareReply, Status> {
        let public = ManifestPublic {
            repository_id: head.repository_id.clone(),
            series_id: head.repository_id.clone(),
            backup_id: head.backup_id.clone(),
            agent_id: self.agent_id.clone(),
            sequence: head.sequence,
            previous_sha256: head.previous_sha256.clone(),
            session_nonce: head.session_nonce.clone(),
            trust_version: head.trust_version,
            trust_sha256: head.trust_sha256.clone(),
            signing_key: self.signing_key.verifying_key().to_vec(),
            epoch_id: vec![1; 16],
            seal_id: vec![2; 16],
            key_commitment: vec![3; 32],
            status: 1,
            packs,
            ..Default::default()
        };
        let public = prost::Message::encode_to_vec(&public);
        let (public_sha, slots, sealed) = (Sha256::of(&public), Sha256::of(b"slots"), Sha256::of(b"sealed"));
        let parts = [public_sha.as_bytes().as_slice(), slots.as_bytes(), sealed.as_bytes()];
        let prepare_head = v1::PrepareHead {
            attempt: Some(attempt),
            backup_id: head.backup_id.clone(),
            slots_sha256: slots.to_vec(),
            sealed_sha256: sealed.to_vec(),
            signature: self.signing_key.sign("sealift/1/manifest", &parts).to_vec(),
            manifest_sha256: Sha256::of(b"manifest").to_vec(),
            manifest_size: 5000,
            public_sha256: public_sha.to_vec(),
            ..Default::default()
        };
        let messages = [prepare_request::Part::Head(prepare_head), prepare_request::Part::PublicPart(public)];
        let messages = messages.map(|part| v1::PrepareRequest { part: Some(part) });
        self.backup.prepare(tokio_stream::iter(messages)).await.map(tonic::Response::into_inner)
    }
}

fn pack(attempt: AttemptRef, head: &v1::BeginHead, body: &[u8]) -> AuthorizePackRequest {
    AuthorizePackRequest {
        attempt: Some(attempt),
        backup_id: head.backup_id.clone(),
        sha256: Sha256::of(body).to_vec(),
        size: body.len() as u64,
        meta_sha256: vec![4; 32],
        index_len: 100,
        directory_len: 100,
        header_len: 100,
        pack_id: vec![5; 16],
        raw_bytes: 0,
    }
}

#[track_caller]
fn refused<T>(what: &str, result: Result<T, Status>) {
    let status = result.err().unwrap_or_else(|| panic!("{what}: allowed"));
    let fits = [Code::PermissionDenied, Code::FailedPrecondition, Code::InvalidArgument, Code::NotFound];
    assert!(fits.contains(&status.code()), "{what}: {status:?}");
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

    let mut intruder = Intruder::take_over(&cluster, host.dir()).await;
    let run = cluster.start_backup("intruder/dump");
    let attempt = intruder.accept().await;
    let head = intruder.begin(attempt.clone()).await.unwrap();
    let body = tree::noise(1, 1000);
    let good = || pack(attempt.clone(), &head, &body);

    // What the coordinator must not sign.
    refused(
        "a length that no pack has",
        intruder.authorize(AuthorizePackRequest { size: 255, ..good() }).await,
    );
    refused(
        "a length beyond 64 MiB",
        intruder.authorize(AuthorizePackRequest { size: (64 << 20) + 1, ..good() }).await,
    );
    refused(
        "a hash of another length",
        intruder.authorize(AuthorizePackRequest { sha256: vec![0; 20], ..good() }).await,
    );
    refused("no attempt", intruder.authorize(AuthorizePackRequest { attempt: None, ..good() }).await);
    let their_backup: BackupId = theirs["id"].as_str().unwrap().parse().unwrap();
    let foreign = AuthorizePackRequest { backup_id: their_backup.to_vec(), ..good() };
    refused("another host's backup", intruder.authorize(foreign).await);
    let their_run: RunId = theirs["run_id"].as_str().unwrap().parse().unwrap();
    let their_attempt = AttemptRef { run_id: their_run.to_vec(), ..attempt.clone() };
    refused(
        "another host's run",
        intruder.authorize(AuthorizePackRequest { attempt: Some(their_attempt.clone()), ..good() }).await,
    );
    refused("another host's run", intruder.begin(their_attempt).await);
    let stale = AttemptRef { epoch: attempt.epoch + 1, ..attempt.clone() };
    refused(
        "another epoch",
        intruder.authorize(AuthorizePackRequest { attempt: Some(stale), ..good() }).await,
    );

    // What was signed is good for these bytes under this name, and for nothing else.
    let signed = intruder.authorize(good()).await.unwrap();
    let longer = [body.clone(), b"more".to_vec()].concat();
    let other = tree::noise(2, body.len());
    assert!(!put(&signed, other, |request, _| request).await, "another body was stored");
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
    let elsewhere = SignedRequest { url: signed.url.replace("/packs/", "/manifests/"), ..signed.clone() };
    assert!(!put(&elsewhere, body.clone(), |request, _| request).await, "stored under another name");
    let theirs_series = theirs["series_id"].as_str().unwrap();
    let series_at = signed.url.find("/series/").unwrap() + "/series/".len();
    let mut url = signed.url.clone();
    url.replace_range(series_at..series_at + 36, theirs_series);
    assert!(
        !put(&SignedRequest { url, ..signed.clone() }, body.clone(), |request, _| request).await,
        "stored in another series"
    );
    assert_eq!(all_objects(&cluster), before, "something was stored");

    // What was not uploaded cannot be confirmed, referred to or committed.
    let sha256 = Sha256::of(&body).to_vec();
    let confirm = v1::ConfirmPackRequest {
        attempt: Some(attempt.clone()),
        backup_id: head.backup_id.clone(),
        sha256: sha256.clone(),
    };
    refused("confirm what is not there", intruder.backup.confirm_pack(confirm).await);
    let their_pack =
        before.iter().find(|name| name.contains(theirs_series) && name.contains("/packs/")).unwrap();
    let their_pack = hex::decode(their_pack.rsplit('/').next().unwrap()).unwrap();
    for (what, sha256) in [("a pack that was not uploaded", sha256), ("another host's pack", their_pack)] {
        let reference = PackRef {
            sha256,
            size: 1000,
            origin_backup: head.backup_id.clone(),
            meta_sha256: vec![4; 32],
            ..Default::default()
        };
        refused(what, intruder.prepare(attempt.clone(), &head, vec![reference]).await);
    }
    let commit = v1::CommitRequest { attempt: Some(attempt), backup_id: head.backup_id.clone() };
    refused("commit what was not prepared", intruder.backup.commit(commit).await);
    assert_eq!(all_objects(&cluster), before, "something was stored");
    assert!(cluster.backups("intruder/dump").is_empty());

    // All of it is on record.
    let actor = format!("agent:{}", cluster.json(&["agent", "show", "intruder"])["id"].as_str().unwrap());
    let events = cluster.json(&["audit", "list"]);
    let refusals: BTreeSet<&str> = events
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["outcome"] == "refused" && event["actor"] == actor.as_str())
        .filter_map(|event| event["action"].as_str())
        .collect();
    for action in ["pack.authorize", "backup.begin", "backup.prepare"] {
        assert!(refusals.contains(action), "no refusal of {action} in the audit: {refusals:?}");
    }
    drop(intruder);
    cluster.sealift(&["run", "cancel", &run, "--yes", "--reason", "taken over"]).expect(0);
    cluster.sealift(&["agent", "revoke", "intruder", "--yes", "--reason", "taken over"]).expect(0);
}
