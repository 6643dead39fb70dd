//! What may be said in a session: only what was agreed on when it was opened. A coordinator that keeps to it never says
//! anything that is left out here.

use sealift_common::protocol::{Feature, Features};
use sealift_proto::v1::coordinator_message::Message as Down;

/// A message as this session understands it; `None` for one that it does not.
pub fn understood(message: Down, agreed: Features) -> Option<Down> {
    let may = |feature, said: bool| {
        let may = agreed.has(feature);
        if said && !may {
            tracing::warn!(%feature, "the coordinator says what was not agreed on");
        }
        may
    };
    match message {
        Down::Offer(mut offer) => {
            // No limits are said by zeros as well.
            let limited = offer.limits.as_ref().is_some_and(|limits| *limits != Default::default());
            if !may(Feature::Limits, limited) {
                offer.limits = None;
            }
            if !may(Feature::LeaveEpoch, !offer.leave_epoch.is_empty()) {
                offer.leave_epoch.clear();
            }
            Some(Down::Offer(offer))
        }
        Down::TestSource(_) => may(Feature::SourceTest, true).then_some(message),
        Down::Reconnect(_) => may(Feature::Reconnect, true).then_some(message),
        Down::Welcome(_) | Down::Cancel(_) | Down::Renew(_) => Some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealift_proto::v1;

    #[test]
    fn what_was_not_agreed_on_is_not_done() {
        let limits = v1::Limits { bandwidth_bytes_per_s: 7, ..v1::Limits::default() };
        let offer = v1::Offer { limits: Some(limits), leave_epoch: vec![1; 16], ..v1::Offer::default() };
        let all = [
            Down::Offer(offer),
            Down::TestSource(v1::TestSource::default()),
            Down::Reconnect(v1::Reconnect::default()),
            Down::Cancel(v1::CancelAttempt::default()),
        ];
        for message in all.clone() {
            assert_eq!(understood(message.clone(), Features::all()), Some(message));
        }
        let [offer, test, reconnect, cancel] = all.map(|message| understood(message, Features::NONE));
        assert_eq!(offer, Some(Down::Offer(v1::Offer::default())));
        assert_eq!((test, reconnect), (None, None));
        assert_eq!(cancel, Some(Down::Cancel(v1::CancelAttempt::default())));
    }
}
