//! Random histories on the real domain modules, a real database and the real embedded S3 server. After every step, crashed or
//! not: each listed backup restores, from the bucket alone and through the coordinator; nothing that is held, being restored
//! or the last good one is gone; and every object that any manifest in the bucket names is in the bucket.
//!
//! A history follows from its seed. `SEALIFT_MODEL_SEED=N` replays one, `SEALIFT_MODEL_SEEDS=N` tries N others.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::Identities;
use sealift_common::crypto::key_file::generate_identity;
use sealift_common::format::manifest::{Manifest, ManifestObject};
use sealift_common::format::names::ObjectName;
use sealift_common::id::{BackupId, LeaseId, Random};
use sealift_coordinator::audit::OpContext;
use sealift_coordinator::backups::BackupError;
use sealift_coordinator::backups::prepare::PrepareAnswer;
use sealift_coordinator::backups::query::{BackupQuery, BackupView};
use sealift_coordinator::objects::Put;
use sealift_coordinator::recovery::{Generations, Mark, Names, Reconciler, deletion_allowed};
use sealift_coordinator::retention::collect::Round;
use sealift_coordinator::retention::rules::RetentionRules;
use sealift_coordinator::retention::{Retention, RetentionError, packs::GRACE};
use sealift_coordinator::runs::{AttemptRef, Report};
use sealift_coordinator::store::lists::Paging;
use sealift_coordinator::store::{generation as rows_of_generation, retention as rows};

use super::host::{Data, Host, bytes_of};
use super::restore::{Lease, Restorer};
use crate::support::{World, head_of};

const HOUR: Duration = Duration::from_secs(3_600);
/// Steps of one history.
const STEPS: usize = 50;
/// Histories in one run of the suite.
const SEEDS: u64 = 6;
/// An operation is cut off after so many of its awaits, at most.
const MAX_AWAITS: u64 = 60;

/// Stops a future at its `awaits`-th await that has to wait, as a crash does.
async fn crash_after<F: Future>(awaits: u64, work: F) -> Option<F::Output> {
    let mut work = std::pin::pin!(work);
    let mut left = awaits;
    std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// A restore that is under way.
struct Open {
    lease: LeaseId,
    backup: BackupId,
    /// When it was last used: a lease of a day follows from it.
    used: UnixMillis,
}

struct Model {
    seed: u64,
    random: Random,
    world: World,
    host: Host,
    restorer: Restorer,
    retention: Retention,
    /// What each backup that may ever be listed holds.
    content: HashMap<BackupId, Data>,
    held: BTreeSet<BackupId>,
    restores: Vec<Open>,
    /// Objects that somebody took away.
    vanished: BTreeSet<String>,
    manifests: HashMap<String, Vec<String>>,
    attempt: Option<AttemptRef>,
    /// A copy of the database, and its newest mark.
    copy: Option<(PathBuf, Mark)>,
    next_chunk: u64,
    log: Vec<String>,
    /// Packs that collection deleted, as far as it lived to tell.
    deleted: usize,
}

impl Model {
    async fn new(seed: u64) -> Self {
        let world = World::new().await;
        let (text, recipient) = generate_identity(UnixMillis(0));
        let identities = Identities::parse(std::path::Path::new("key.txt"), text.expose()).unwrap();
        let trust = world.trust(std::slice::from_ref(&recipient)).await;
        let mut host = Host::new(&world, "store-1", recipient).await;
        host.data = (0..8).collect();
        let rules = RetentionRules { last: 2, daily: 2, ..RetentionRules::default() };
        world.set_rules(host.agent.series, &rules).await;
        Self {
            seed,
            random: Random::from_seed(seed),
            retention: world.retention(),
            restorer: Restorer { identities: Arc::new(identities), trust },
            world,
            host,
            content: HashMap::new(),
            held: BTreeSet::new(),
            restores: Vec::new(),
            vanished: BTreeSet::new(),
            manifests: HashMap::new(),
            attempt: None,
            copy: None,
            next_chunk: 8,
            log: Vec::new(),
            deleted: 0,
        }
    }

    fn below(&self, n: u64) -> u64 {
        u64::from_le_bytes(self.random.bytes()) % n.max(1)
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    async fn listed(&self, expired: bool) -> Vec<BackupView> {
        let query = BackupQuery { expired, ..BackupQuery::default() };
        let page = self.world.backups.list(&self.world.as_admin(), &query, &Paging::first(1_000)).await;
        page.unwrap().rows
    }

    async fn some_listed(&self, expired: bool) -> Option<BackupView> {
        let mut all = self.listed(expired).await;
        if all.is_empty() { None } else { Some(all.swap_remove(self.below(all.len() as u64) as usize)) }
    }

    async fn step(&mut self) {
        let crash = self.one_in(4).then(|| self.below(MAX_AWAITS));
        let before = self.good().await;
        let damaged_before = self.vanished.len();
        let kind = self.below(100);
        let what = match kind {
            0..25 => self.back_up(crash).await,
            25..30 => self.interrupt().await,
            30..34 => self.late_manifest().await,
            34..40 => self.delete(crash).await,
            40..44 => self.undelete(crash).await,
            44..47 => self.hold_or_release(crash).await,
            47..50 => self.change_rules().await,
            50..69 => self.collect(crash).await,
            69..83 => self.wait(),
            83..86 => self.vanish().await,
            86..88 => self.new_epoch(),
            88..92 => self.restore().await,
            92..94 => self.verify().await,
            94..97 => self.resolve(crash).await,
            _ => self.copy_or_set_back().await,
        };
        let crashed = crash.map_or(String::new(), |awaits| format!(" (cut off after {awaits} awaits)"));
        self.log.push(format!("{what}{crashed}"));
        let lost_some = self.vanished.len() > damaged_before || what.starts_with("set back");
        self.check(&before, lost_some).await;
    }

    /// Changes some of the data and backs it up, all the way.
    async fn back_up(&mut self, crash: Option<u64>) -> String {
        self.mutate();
        let partial = self.one_in(5);
        self.end_attempt().await;
        let attempt = self.world.attempt(&self.host.agent).await;
        self.attempt = Some(attempt);
        let backup = self.drive(&attempt, partial, u64::MAX);
        match crash {
            None => {
                backup.await.unwrap();
                self.attempt = None;
            }
            Some(awaits) => {
                if let Some(done) = crash_after(awaits, backup).await {
                    done.unwrap();
                    self.attempt = None;
                }
            }
        }
        format!("back up{}", if partial { ", partial" } else { "" })
    }

    fn mutate(&mut self) {
        for _ in 0..=self.below(3) {
            let at = self.below(self.host.data.len() as u64) as usize;
            match self.below(4) {
                0 if self.host.data.len() > 4 => {
                    self.host.data.remove(at);
                }
                1 if self.host.data.len() < 14 => self.host.data.push(self.next_chunk),
                _ => self.host.data[at] = self.next_chunk,
            }
            self.next_chunk += 1;
        }
    }

    /// The agent's side of a backup, up to `packs` stored packs.
    async fn drive(&mut self, attempt: &AttemptRef, partial: bool, packs: u64) -> Result<(), BackupError> {
        let ctx = self.world.as_agent(&self.host.agent);
        let epoch = self.host.agent.secret.epoch_id();
        let begun = self.world.backups.begin(&ctx, attempt, epoch, 0).await?;
        let referable = self.world.referable(&begun).await;
        let making = self.host.make(&self.world, &begun, &referable);
        for made in making.new.iter().take(usize::try_from(packs).unwrap_or(usize::MAX)) {
            self.world.store_pack(&self.host.agent, attempt, &made.pack).await;
            self.host.stored(made);
        }
        if (making.new.len() as u64) > packs {
            return Ok(());
        }
        let manifest = making.manifest(&self.world, &self.host, &begun, partial);
        // From now on it may be listed, whenever this is cut off.
        self.content.insert(begun.backup.id, making.data.clone());
        if let PrepareAnswer::Put(put) = self.prepare(attempt, &manifest).await? {
            assert_eq!(self.world.send(&put, &manifest.bytes.clone().into()).await.0, 200);
        }
        self.world.backups.commit(&ctx, attempt, begun.backup.id).await.map(drop)
    }

    async fn prepare(
        &self,
        attempt: &AttemptRef,
        manifest: &ManifestObject,
    ) -> Result<PrepareAnswer, BackupError> {
        let public = Bytes::from(manifest.public_bytes.clone());
        let ctx = self.world.as_agent(&self.host.agent);
        self.world.backups.prepare(&ctx, attempt, head_of(manifest), public).await
    }

    /// What a crash left open, the agent reports when it is back.
    async fn end_attempt(&mut self) {
        let Some(attempt) = self.attempt.take() else { return };
        let report = Report { error: "interrupted".into(), ..Report::default() };
        // It may have ended before, or be in no state to fail: then its lease ends.
        let _ = self.world.runs.fail(&self.world.as_agent(&self.host.agent), &attempt, report, false).await;
        self.world.end_attempts().await;
    }

    /// Some packs are stored, and then the line is cut: the next backup goes on with them.
    async fn interrupt(&mut self) -> String {
        self.mutate();
        self.end_attempt().await;
        let attempt = self.world.attempt(&self.host.agent).await;
        self.attempt = Some(attempt);
        let packs = self.below(3);
        self.drive(&attempt, false, packs).await.unwrap();
        format!("interrupted after {packs} packs")
    }

    /// Prepared, and the manifest arrives hours later, without its agent.
    async fn late_manifest(&mut self) -> String {
        self.mutate();
        self.end_attempt().await;
        let attempt = self.world.attempt(&self.host.agent).await;
        self.attempt = Some(attempt);
        let begun = self.world.begin(&self.host.agent, &attempt).await;
        let referable = self.world.referable(&begun).await;
        let making = self.host.make(&self.world, &begun, &referable);
        for made in &making.new {
            self.world.store_pack(&self.host.agent, &attempt, &made.pack).await;
            self.host.stored(made);
        }
        let manifest = making.manifest(&self.world, &self.host, &begun, false);
        self.content.insert(begun.backup.id, making.data.clone());
        self.prepare(&attempt, &manifest).await.unwrap();
        let hours = self.below(24);
        self.world.clock.advance(HOUR * hours as u32);
        if self.one_in(2) {
            self.world.backups.resolve_once().await.unwrap();
            self.collect(None).await;
        }
        if self.one_in(3) {
            return format!("a manifest that never came ({hours} h)");
        }
        let body = Bytes::from(manifest.bytes.clone());
        self.world.objects.put(&manifest.name.into(), body, Put::New).await.unwrap();
        self.world.backups.resolve_once().await.unwrap();
        format!("a manifest that came after {hours} h")
    }

    async fn delete(&mut self, crash: Option<u64>) -> String {
        let Some(view) = self.some_listed(false).await else { return "delete nothing".into() };
        let id = view.backup.id;
        let admin = self.world.as_admin();
        let text = id.to_string();
        let work = self.retention.delete(&admin, &text, "a test", false);
        match crash_after(crash.unwrap_or(u64::MAX), work).await {
            Some(Err(
                error @ (RetentionError::LastGood { .. }
                | RetentionError::Held { .. }
                | RetentionError::InUse { .. }),
            )) => format!("delete refused: {error}"),
            Some(done) => {
                done.unwrap();
                format!("delete {id}")
            }
            None => format!("delete {id}"),
        }
    }

    async fn undelete(&mut self, crash: Option<u64>) -> String {
        let Some(view) = self.some_listed(true).await else { return "undelete nothing".into() };
        let admin = self.world.as_admin();
        let text = view.backup.id.to_string();
        let work = self.retention.undelete(&admin, &text);
        if let Some(done) = crash_after(crash.unwrap_or(u64::MAX), work).await {
            done.unwrap();
        }
        format!("undelete {text}")
    }

    async fn hold_or_release(&mut self, crash: Option<u64>) -> String {
        let admin = self.world.as_admin();
        let release = self.one_in(2);
        let awaits = crash.unwrap_or(u64::MAX);
        if let Some(id) = self.held.first().copied().filter(|_| release) {
            // Cut off, it may be either; what is not known to be held is not asked for.
            self.held.remove(&id);
            if let Some(done) = crash_after(awaits, self.retention.release(&admin, &id.to_string())).await {
                done.unwrap();
            }
            return format!("release {id}");
        }
        let Some(view) = self.some_listed(false).await else { return "hold nothing".into() };
        let id = view.backup.id;
        if view.backup.keeping.held.is_none()
            && let Some(done) =
                crash_after(awaits, self.retention.hold(&admin, &id.to_string(), "a test")).await
        {
            done.unwrap();
            self.held.insert(id);
        }
        format!("hold {id}")
    }

    async fn change_rules(&mut self) -> String {
        let some = |n: u64| u32::try_from(self.below(n)).unwrap();
        let rules = RetentionRules {
            last: some(3),
            hourly: some(4),
            daily: some(4),
            weekly: some(2),
            minimum: some(3),
            ..RetentionRules::default()
        };
        self.world.set_rules(self.host.agent.series, &rules).await;
        format!("rules: {rules}")
    }

    async fn collect(&mut self, crash: Option<u64>) -> String {
        let mut round = Round::default();
        let work = self.retention.collect(self.host.agent.series, &mut round);
        let outcome = crash_after(crash.unwrap_or(u64::MAX), work).await;
        let done = outcome.map(Result::unwrap);
        self.deleted += done.map_or(0, |done| done.packs);
        if crash.is_some() {
            // Another process takes over once the lease of the dead one has ended.
            self.world.clock.advance(Duration::from_secs(16 * 60));
        }
        format!("collect: {done:?}")
    }

    fn wait_hours(&self, hours: u32) {
        self.world.clock.advance(HOUR * hours);
    }

    fn wait(&mut self) -> String {
        let hours = [1, 3, 12, 26, 50, 80, 200, 400][self.below(8) as usize];
        self.wait_hours(hours);
        format!("{hours} h pass")
    }

    /// An object is taken away or replaced, and the daily listing notices.
    async fn vanish(&mut self) -> String {
        if self.vanished.len() >= 3 {
            return "nothing vanishes any more".into();
        }
        let names = self.world.bucket().await;
        let packs: Vec<&String> = names.iter().filter(|name| name.contains("/packs/")).collect();
        if packs.is_empty() {
            return "nothing to vanish".into();
        }
        let name = packs[self.below(packs.len() as u64) as usize].clone();
        let key = name.parse().unwrap();
        let damage = self.one_in(2);
        self.world.clock.advance(Duration::from_secs(1)); // a listing says nothing about what was stored since it began
        self.world.objects.delete(&key, None).await.unwrap();
        if damage {
            self.world
                .objects
                .put(&key, Bytes::from_static(b"somebody was here"), Put::Replace)
                .await
                .unwrap();
        }
        self.vanished.insert(name.clone());
        let admin = self.world.as_admin();
        self.world.backups.check_listing(&admin, self.host.agent.series).await.unwrap();
        for view in self.listed(false).await {
            let manifest = self.manifest_name(&view).to_string();
            let affected = self.packs_of(&manifest).await.contains(&name);
            let shown = view.backup.keeping.lost_packs > 0;
            assert!(shown || !affected, "{}: {} is not shown as damaged", self.history(), view.backup.id);
        }
        format!("{name} {}", if damage { "is replaced" } else { "vanishes" })
    }

    fn new_epoch(&mut self) -> String {
        self.host.new_epoch(&self.world.core.random);
        "new epoch".into()
    }

    /// Opens a restore, or ends one.
    async fn restore(&mut self) -> String {
        let admin = self.world.as_admin();
        if self.restores.len() > 1 {
            let open = self.restores.swap_remove(0);
            self.world.backups.close_restore(&admin, open.lease, "done").await.unwrap();
            return format!("restore of {} ends", open.backup);
        }
        let Some(view) = self.some_listed(false).await else { return "restore nothing".into() };
        let id = view.backup.id;
        let opened = self.world.backups.open_restore(&admin, &id.to_string()).await.unwrap();
        self.restores.push(Open { lease: opened.lease, backup: id, used: self.world.clock.now() });
        format!("restore of {id} begins")
    }

    async fn verify(&mut self) -> String {
        let Some(view) = self.some_listed(false).await else { return "verify nothing".into() };
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1_000);
        let admin = self.world.as_admin();
        let level = sealift_coordinator::verification::Level::Hash;
        let text = view.backup.id.to_string();
        self.world.verification.verify(&admin, &text, level, &sender).await.unwrap();
        drop(sender);
        let mut findings = 0;
        while let Some(said) = receiver.recv().await {
            findings += said.findings.len();
        }
        format!("verify {text}: {findings} findings")
    }

    async fn resolve(&mut self, crash: Option<u64>) -> String {
        if let Some(done) = crash_after(crash.unwrap_or(u64::MAX), self.world.backups.resolve_once()).await {
            done.unwrap();
        }
        "resolve".into()
    }

    /// The mark that the database has counted last.
    async fn own_mark(&self) -> Mark {
        let mut reader = self.world.core.store.reader().await.unwrap();
        Mark::from(&rows_of_generation::get(&mut reader).await.unwrap())
    }

    /// Copies the database, or goes back to the copy, as somebody does who restores last night's file. Where something was
    /// deleted since, or a mark followed what was written, it is noticed: nothing is deleted any more, until a recovery.
    async fn copy_or_set_back(&mut self) -> String {
        if self.one_in(2) {
            // What a coordinator that serves does within seconds of a change.
            let generations = Generations::new(self.world.core.clone(), self.world.objects.clone());
            generations.mark(&generations.check().await.unwrap()).await.unwrap();
        }
        let mark = self.own_mark().await;
        let Some((copy, known)) = self.copy.take() else {
            self.copy = Some((self.world.copy_database().await, mark));
            return "the database is copied".into();
        };
        self.end_attempt().await;
        let noticed = mark != known;
        self.world.set_database_back(&copy).await;
        self.retention = self.world.retention();
        self.attempt = None;
        self.world.end_attempts().await;
        // Restores and holds of which the copy knows nothing are gone, and so is what was asked since.
        self.restores.clear();
        self.held.clear();
        let before: BTreeSet<String> = self.world.bucket().await.into_iter().collect();
        // What a coordinator does when it starts, and within a day: what vanished meanwhile is noticed again.
        let allowed = deletion_allowed(&self.world.core, &self.world.objects).await;
        assert_eq!(allowed.is_err(), noticed, "{}{mark:?} {known:?}: {allowed:?}", self.history());
        self.retention.reconcile_once().await.unwrap();
        let admin = self.world.as_admin();
        self.world.backups.check_listing(&admin, self.host.agent.series).await.unwrap();
        if noticed {
            self.collect(None).await;
            let after: BTreeSet<String> = self.world.bucket().await.into_iter().collect();
            let gone: Vec<_> = before.difference(&after).collect();
            assert!(gone.is_empty(), "{}deleted under an older copy: {gone:?}", self.history());
            self.recover().await;
        }
        self.resync_holds().await;
        format!("set back (noticed: {noticed})")
    }

    /// Brings the database in step with the bucket; the first try may be cut off.
    async fn recover(&mut self) {
        let roots = vec![self.world.root_fingerprint()];
        let world = &self.world;
        let reconciler =
            Reconciler::new(world.core.clone(), world.objects.clone(), world.backups.clone(), roots);
        let ctx = OpContext::coordinator(&world.core);
        let awaits = if self.one_in(2) { self.below(MAX_AWAITS * 4) } else { u64::MAX };
        if crash_after(awaits, reconciler.run(&ctx, Names::default())).await.is_none_or(|done| done.is_err())
        {
            reconciler.run(&ctx, Names::default()).await.unwrap();
        }
        deletion_allowed(&world.core, &world.objects).await.unwrap();
        world.end_attempts().await;
    }

    async fn resync_holds(&mut self) {
        let listed = self.listed(false).await;
        self.held = listed.iter().filter(|v| v.backup.keeping.held.is_some()).map(|v| v.backup.id).collect();
    }

    fn manifest_name(&self, view: &BackupView) -> ObjectName {
        sealift_coordinator::backups::restore::manifest_name(&view.backup).unwrap()
    }

    async fn packs_of(&mut self, manifest: &str) -> Vec<String> {
        if let Some(known) = self.manifests.get(manifest) {
            return known.clone();
        }
        let name: ObjectName = manifest.parse().unwrap();
        let all = sealift_coordinator::objects::ByteRange::All;
        let bytes = self.world.objects.get(&name.into(), all, 1 << 20).await.unwrap();
        let parsed = Manifest::parse(self.world.core.repository, &name, &bytes).unwrap();
        let series = self.host.agent.series;
        let packs: Vec<String> =
            parsed.public().packs.iter().map(|pack| pack.meta.name(series).to_string()).collect();
        self.manifests.insert(manifest.to_owned(), packs.clone());
        packs
    }

    /// Ids of the good backups, newest last.
    async fn good(&self) -> Vec<BackupId> {
        let mut good: Vec<BackupView> = self.listed(false).await;
        good.retain(|v| {
            v.backup.prepared.as_ref().is_some_and(|p| !p.partial) && v.backup.keeping.is_whole()
        });
        good.sort_by_key(|v| (v.backup.committed, v.backup.sequence));
        good.into_iter().map(|v| v.backup.id).collect()
    }

    fn history(&self) -> String {
        format!("SEALIFT_MODEL_SEED={}\n  {}\n", self.seed, self.log.join("\n  "))
    }

    /// What must hold after every step.
    async fn check(&mut self, good_before: &[BackupId], lost_some: bool) {
        let bucket: BTreeSet<String> = self.world.bucket().await.into_iter().collect();
        // Whatever a reader of the bucket alone sees can be restored.
        for manifest in bucket.iter().filter(|name| name.contains("/manifests/")) {
            for pack in self.packs_of(manifest).await {
                let there = bucket.contains(&pack) || self.vanished.contains(&pack);
                assert!(there, "{}{manifest} names {pack}, which is gone", self.history());
            }
        }
        let listed = self.listed(false).await;
        let ids: BTreeSet<BackupId> = listed.iter().map(|view| view.backup.id).collect();
        for held in &self.held {
            assert!(ids.contains(held), "{}{held} was held and is gone", self.history());
        }
        let now = self.world.clock.now();
        self.restores.retain(|open| now.since(open.used) < HOUR * 24);
        for open in &self.restores {
            assert!(
                ids.contains(&open.backup),
                "{}{} is being restored and gone",
                self.history(),
                open.backup
            );
        }
        if let Some(last) = good_before.last().filter(|_| !lost_some) {
            let newest = self.good().await;
            assert!(
                newest.iter().any(|id| id == last || !good_before.contains(id)),
                "{}{last} was the last good one",
                self.history()
            );
        }
        for view in &listed {
            let wants = bytes_of(&self.content[&view.backup.id]);
            let manifest = self.manifest_name(view);
            let restored = self.restorer.offline(&self.world, manifest, self.host.agent.id).await;
            let expected = view.backup.keeping.is_whole();
            match restored {
                Ok(bytes) => assert!(bytes == wants, "{}{} is another", self.history(), view.backup.id),
                Err(error) => {
                    assert!(!expected, "{}{} does not restore: {error}", self.history(), view.backup.id);
                }
            }
        }
        self.check_restores(&listed).await;
    }

    /// Restores that are under way go on, through the coordinator.
    async fn check_restores(&mut self, listed: &[BackupView]) {
        let now = self.world.clock.now();
        for at in 0..self.restores.len() {
            let (lease, id) = (self.restores[at].lease, self.restores[at].backup);
            let Some(view) = listed.iter().find(|view| view.backup.id == id) else { continue };
            if !view.backup.keeping.is_whole() {
                continue;
            }
            let source = Lease {
                backups: self.world.backups.clone(),
                ctx: self.world.as_admin(),
                lease,
                http: self.world.http.clone(),
            };
            let manifest = self.manifest_name(view);
            let restored = self.restorer.online(&self.world, source, manifest, self.host.agent.id).await;
            let wants = bytes_of(&self.content[&id]);
            assert_eq!(restored.as_ref().map(Vec::len), Ok(wants.len()), "{}restore of {id}", self.history());
            assert!(restored.unwrap() == wants);
            self.restores[at].used = now;
        }
    }

    /// When nobody wants anything any more, only what is wanted is left: nothing leaks.
    async fn settle(&mut self) {
        self.end_attempt().await;
        if self.log.iter().any(|step| step.starts_with("set back")) {
            return;
        }
        let rules = RetentionRules { last: 1, ..RetentionRules::default() };
        self.world.set_rules(self.host.agent.series, &rules).await;
        for _ in 0..14 {
            self.world.clock.advance(GRACE + HOUR);
            self.world.backups.resolve_once().await.unwrap();
            self.retention.collect(self.host.agent.series, &mut Round::default()).await.unwrap();
        }
        let before = self.good().await;
        self.log.push("settled".into());
        self.check(&before, false).await;
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for view in self.listed(false).await {
            let manifest = self.manifest_name(&view).to_string();
            wanted.extend(self.packs_of(&manifest).await);
            wanted.insert(manifest);
        }
        let series = format!("series/{}/", self.host.agent.series);
        let left = self.world.bucket().await.into_iter().filter(|name| name.starts_with(&series));
        let leaked: Vec<String> = left.filter(|name| !wanted.contains(name)).collect();
        let mut reader = self.world.core.store.reader().await.unwrap();
        let halted = rows::halted(&mut reader, self.host.agent.series).await.unwrap();
        assert!(leaked.is_empty(), "{}left in the bucket: {leaked:?} (halted: {halted:?})", self.history());
    }
}

async fn history(seed: u64) {
    let mut model = Model::new(seed).await;
    for _ in 0..STEPS {
        model.step().await;
    }
    model.settle().await;
    println!("seed {seed}: {} packs deleted on the way", model.deleted);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// One history each, so that they run side by side.
macro_rules! histories {
    ($($name:ident = $seed:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if number("SEALIFT_MODEL_SEED").is_none() {
                history($seed).await;
            }
        })*
        const _: () = assert!([$($seed),*].len() == SEEDS as usize);
    };
}

histories! {
    history_1 = 1;
    history_2 = 2;
    history_3 = 3;
    history_4 = 4;
    history_5 = 5;
    history_6 = 6;
}

/// The history that `SEALIFT_MODEL_SEED` names; further ones where `SEALIFT_MODEL_SEEDS` asks for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_histories_that_the_environment_asks_for() {
    let first = number("SEALIFT_MODEL_SEED");
    let seeds = match (first, number("SEALIFT_MODEL_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(many)) => SEEDS + 1..SEEDS + 1 + many,
        (None, None) => SEEDS + 1..SEEDS + 2,
    };
    for seed in seeds {
        history(seed).await;
    }
}

/// Collection and what leads to it, cut off after its first await, its second, … until it is not cut off any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collection_may_die_at_every_await() {
    let mut model = Model::new(1_000).await;
    model.back_up(None).await;
    let mut cut_off = 0;
    for awaits in 0.. {
        assert!(awaits < 500, "it never ends");
        // Something to delete: a manifest, and packs that nobody needs any more; and another backup to expire.
        model.host.data = (model.next_chunk..model.next_chunk + 5).collect();
        model.next_chunk += 5;
        model.back_up(None).await;
        model.collect(None).await;
        model.wait_hours(80);
        model.back_up(None).await;
        let before = model.good().await;
        let mut round = Round::default();
        let work = model.retention.collect(model.host.agent.series, &mut round);
        let done = crash_after(awaits, work).await;
        model.world.clock.advance(Duration::from_secs(16 * 60));
        model.log.push(format!("collect, cut off after {awaits} awaits: {done:?}"));
        model.check(&before, false).await;
        match done {
            // Through to its end, with something at stake: no later await is left. A partial backup, which displaces nothing,
            // leaves a round without any.
            Some(done) => {
                let done = done.unwrap();
                if done.packs > 0 && done.manifests > 0 {
                    break;
                }
            }
            None => cut_off += 1,
        }
        // The next round takes up what the dead one left.
        model.collect(None).await;
        model.check(&before, false).await;
    }
    assert!(cut_off > 20, "{cut_off} awaits are too few to have deleted anything");
    model.settle().await;
}
