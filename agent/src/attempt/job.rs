//! An offer, parsed: what to back up, for which series, within which limits.

use std::num::NonZeroU64;
use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::id::SeriesId;
use sealift_proto::v1;

use super::spooled::time_left;
use crate::config::{Config, Source};
use crate::state::journal::AttemptRef;
use crate::state::waiting::{Ticket, TicketLimits};

/// What one attempt is to do.
#[derive(Debug, Clone)]
pub struct Job {
    /// Names and fences it.
    pub attempt: AttemptRef,
    /// Where it goes.
    pub series: SeriesId,
    /// What is read: this host's own definition, as it was when the offer came.
    pub source: Source,
    /// What it may take.
    pub limits: Limits,
    /// A dedup epoch that must not be built upon.
    pub leave_epoch: Option<EpochId>,
}

/// Limits of one attempt: the policy's where it names any, else this host's.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The policy's upload speed in bytes a second; the host's own limit holds besides.
    pub bandwidth: Option<NonZeroU64>,
    /// A source silent for this long is ended.
    pub stall_timeout: Duration,
    /// An attempt that takes longer is ended.
    pub max_duration: Duration,
    /// zstd level.
    pub compression_level: i32,
}

impl Job {
    /// Reads an offer.
    ///
    /// # Errors
    /// What to answer: a malformed offer, or a source that this host does not have.
    pub fn parse(offer: v1::Offer, config: &Config) -> Result<Self, (String, v1::RejectReason)> {
        let malformed = |error: sealift_common::id::InvalidId| {
            (format!("malformed offer: {error}"), v1::RejectReason::Unspecified)
        };
        let attempt = AttemptRef::try_from(&offer.attempt.unwrap_or_default()).map_err(malformed)?;
        let series = SeriesId::try_from(offer.series_id.as_slice()).map_err(malformed)?;
        let source = config.source(&offer.source).cloned().ok_or_else(|| {
            let reason = format!("this host's configuration has no source {:?}", shown(&offer.source));
            (reason, v1::RejectReason::UnknownSource)
        })?;
        let leave_epoch = match offer.leave_epoch.as_slice() {
            [] => None,
            epoch => Some(
                EpochId::try_from(epoch)
                    .map_err(|error| (format!("malformed offer: {error}"), v1::RejectReason::Unspecified))?,
            ),
        };
        let limits = Limits::of(&offer.limits.unwrap_or_default(), config);
        Ok(Self { attempt, series, source, limits, leave_epoch })
    }

    /// The job that an earlier process of this agent left in the spool; `None` where the source is not configured any more.
    pub fn taken_up(ticket: &Ticket, config: &Config, now: UnixMillis) -> Option<Self> {
        let millis = Duration::from_millis;
        let limits = Limits {
            bandwidth: NonZeroU64::new(ticket.limits.bandwidth_bytes_per_s),
            stall_timeout: millis(ticket.limits.stall_timeout_ms),
            max_duration: time_left(millis(ticket.limits.max_duration_ms), ticket.started, now),
            compression_level: ticket.limits.compression_level,
        };
        let source = config.source(ticket.source.as_str())?.clone();
        Some(Self { attempt: ticket.attempt, series: ticket.series, source, limits, leave_epoch: None })
    }
}

impl Limits {
    /// As the spool's ticket keeps them.
    pub fn to_ticket(&self) -> TicketLimits {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        TicketLimits {
            bandwidth_bytes_per_s: self.bandwidth.map_or(0, NonZeroU64::get),
            stall_timeout_ms: millis(self.stall_timeout),
            max_duration_ms: millis(self.max_duration),
            compression_level: self.compression_level,
        }
    }

    fn of(offered: &v1::Limits, config: &Config) -> Self {
        let or = |ms: u64, own: Duration| if ms == 0 { own } else { Duration::from_millis(ms) };
        Self {
            bandwidth: NonZeroU64::new(offered.bandwidth_bytes_per_s),
            stall_timeout: or(offered.stall_timeout_ms, config.backup.stall_timeout()),
            max_duration: or(offered.max_duration_ms, config.backup.max_duration()),
            compression_level: match offered.compression_level {
                0 => config.backup.compression_level(),
                level => level.clamp(1, 19),
            },
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
