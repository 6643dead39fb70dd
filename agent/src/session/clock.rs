//! What a wrong clock looks like, said so that people look at the clock and not at the certificate.

use std::time::Duration;

use sealift_common::clock::UnixMillis;

/// Clocks may differ this much.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// What TLS says of certificates, here or at the other end, when a clock is wrong (or a certificate really is too old).
const SIGNS: [&str; 4] =
    ["certificate not valid yet", "certificate expired", "NotValidYet", "CertificateExpired"];

/// The error, and where it looks like a wrong clock, a word about this host's.
pub fn hint(error: String, now: UnixMillis) -> String {
    if !SIGNS.iter().any(|sign| error.contains(sign)) {
        return error;
    }
    format!(
        "{error}: this host's clock says {now}; if that is wrong, set it (and let NTP keep it), since a good certificate \
         looks expired or not yet valid to a wrong clock"
    )
}

/// How far apart the two clocks are, where that is too far; for people.
pub fn skew(here: UnixMillis, there: UnixMillis) -> Option<String> {
    let (ahead, behind) = (here.since(there), there.since(here));
    let apart = ahead.max(behind);
    let way = if ahead > behind { "ahead of" } else { "behind" };
    (apart > TOLERANCE).then(|| {
        format!(
            "this host's clock is {} s {way} the coordinator's: set it, and let NTP keep it",
            apart.as_secs()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_by_minutes_are_named_and_seconds_are_not() {
        let noon = UnixMillis(1_800_000_000_000);
        let later = |s: u64| noon.plus(Duration::from_secs(s));
        assert_eq!(skew(noon, later(299)), None);
        assert!(skew(noon, later(301)).unwrap().contains("301 s behind"));
        assert!(skew(later(7200), noon).unwrap().contains("7200 s ahead of"));
    }

    #[test]
    fn only_errors_about_time_get_a_word_about_the_clock() {
        let now = UnixMillis(0);
        assert_eq!(hint("connection refused".to_owned(), now), "connection refused");
        let hinted = hint("invalid peer certificate: certificate expired: x".to_owned(), now);
        assert!(hinted.contains("this host's clock says 1970-01-01"), "{hinted}");
    }
}
