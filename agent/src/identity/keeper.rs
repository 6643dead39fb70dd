//! Keeps the certificate fresh: renewed at 70 % of its life, or when the coordinator asks. Sessions learn of a new identity
//! through a watch and move over when it suits them; the old certificate stays good until it expires.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use url::Url;

use sealift_common::clock::Clock;
use sealift_common::id::Random;
use sealift_common::proxy::Proxy;

use super::certificate::{CertificateError, follow, recover, renew};
use super::{Identity, IdentityError};
use crate::session::backoff::Backoff;
use crate::session::link::Link;
use crate::state::dir::StateDir;
use crate::state::trust::TrustKeeper;

/// Longest sleep, so that a clock that was set, or a laptop that slept, is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(10);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// The identity in use, and how it is replaced.
#[derive(Debug)]
pub struct IdentityKeeper {
    state: StateDir,
    clock: Clock,
    random: Random,
    current: watch::Sender<Arc<Identity>>,
    asked: Notify,
}

impl IdentityKeeper {
    /// Reads the identity of this host.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(state: StateDir, clock: Clock, random: Random) -> Result<Self, IdentityError> {
        let current = watch::Sender::new(Arc::new(Identity::load(&state)?));
        Ok(Self { state, clock, random, current, asked: Notify::new() })
    }

    /// The identity in use.
    pub fn current(&self) -> Arc<Identity> {
        self.current.borrow().clone()
    }

    /// Tells of each new identity.
    pub fn changes(&self) -> watch::Receiver<Arc<Identity>> {
        self.current.subscribe()
    }

    /// Renew now: the coordinator asked.
    pub fn renew_now(&self) {
        self.asked.notify_one();
    }

    /// Replaces an expired certificate by the signing key's word.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub async fn recover(
        &self,
        coordinator: &Url,
        proxy: Option<Proxy>,
    ) -> Result<Arc<Identity>, CertificateError> {
        let renewed = recover(&self.current(), coordinator, proxy, &self.clock).await?;
        tracing::info!(not_after = %renewed.not_after, "replaced the expired certificate");
        self.adopt(renewed)
    }

    /// Renews over `channel`, if it is time: for a host that gets no session.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub async fn renew_if_due(&self, channel: Channel) -> Result<(), CertificateError> {
        if !self.is_due() {
            return Ok(());
        }
        let renewed = renew(&self.current(), channel, &self.clock).await?;
        tracing::info!(not_after = %renewed.not_after, "renewed the certificate");
        self.adopt(renewed).map(drop)
    }

    /// Takes the coordinator's new CA for its own where root keys vouch for it, with a certificate of it.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub async fn follow_ca(
        &self,
        coordinator: &Url,
        proxy: Option<Proxy>,
    ) -> Result<Arc<Identity>, CertificateError> {
        let current = self.current();
        let roots = TrustKeeper::open(self.state.clone(), &current)?.roots();
        let followed = follow(&current, &roots, coordinator, proxy, &self.clock).await?;
        tracing::warn!(
            ca_said = %followed.ca_said,
            "the coordinator's CA was replaced, as the root keys say: this host goes by the new one"
        );
        self.adopt(followed)
    }

    /// Renews whenever it is time. Never returns.
    pub async fn run(&self, mut link: Link) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY, self.random.clone());
        loop {
            let asked = self.until_due().await;
            let Some(connection) = link.connected().await else { return };
            if !asked && !self.is_due() {
                continue; // it was replaced while there was no session
            }
            match renew(&self.current(), connection.channel, &self.clock).await {
                Ok(renewed) => {
                    tracing::info!(not_after = %renewed.not_after, "renewed the certificate");
                    backoff.reset();
                    if let Err(error) = self.adopt(renewed) {
                        tracing::error!(%error, "cannot keep the renewed certificate");
                        tokio::time::sleep(backoff.next_wait()).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate is not renewed yet");
                    tokio::time::sleep(FIRST_RETRY / 2 + backoff.next_wait()).await;
                }
            }
        }
    }

    fn is_due(&self) -> bool {
        self.clock.now() >= self.current().renew_at()
    }

    /// Waits until it is time; whether that is because somebody asked.
    async fn until_due(&self) -> bool {
        while !self.is_due() {
            let left = self.current().renew_at().since(self.clock.now());
            tokio::select! {
                () = self.asked.notified() => return true,
                () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
            }
        }
        false
    }

    /// On disk first, then in use: a crash in between costs a second renewal.
    fn adopt(&self, renewed: Identity) -> Result<Arc<Identity>, CertificateError> {
        renewed.save(&self.state).map_err(IdentityError::from)?;
        let renewed = Arc::new(renewed);
        self.current.send_replace(renewed.clone());
        Ok(renewed)
    }
}
