//! A certificate that is not good at this host's time: the error is about the clock as well.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sealift_agent::identity::enroll::{EnrollError, Enrolment, enroll};
use sealift_agent::state::dir::StateDir;
use sealift_common::clock::Clock;
use sealift_common::id::{Random, Sha256};
use sealift_common::secret::Secret;
use sealift_common::tls;

/// A coordinator whose certificate is good from `not_before` (days from now) for a year; its address and the CA's
/// fingerprint.
async fn coordinator(not_before: i64) -> (url::Url, Sha256) {
    tls::install_provider();
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, &ca_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let day = Clock::system().now().0 / 86_400_000 + not_before;
    let civil = |day: i64| {
        let date = jiff::Timestamp::from_second(day * 86_400).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
        let (month, day) = (u8::try_from(date.month()).unwrap(), u8::try_from(date.day()).unwrap());
        rcgen::date_time_ymd(date.year().into(), month, day)
    };
    (params.not_before, params.not_after) = (civil(day), civil(day + 365));
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone(), ca.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // The other end refuses: that is what is looked at.
            let _ = acceptor.accept(stream).await;
        }
    });
    (url, tls::fingerprint(ca.der()))
}

#[tokio::test]
async fn a_certificate_of_another_time_makes_people_look_at_the_clock() {
    for not_before in [3, -800] {
        let (url, ca_sha256) = coordinator(not_before).await;
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::create(&dir.path().join("state")).unwrap();
        let enrolment = Enrolment {
            coordinators: vec![url],
            token: Secret::new("slt_x_y".to_owned()),
            ca_sha256,
            root_pins: vec![Sha256::of(b"root")],
            host: "store-1".to_owned(),
            proxy: None,
        };
        let (clock, random) = (Clock::system(), Random::from_os());
        let asked = enroll(&state, &enrolment, &clock, &random);
        let error = tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap().unwrap_err();
        let EnrollError::Unreachable(problem) = error else { panic!("{error}") };
        assert!(problem.contains("this host's clock says 20"), "{problem}");
    }
}
