//! Certificates are short; this is how they are replaced: by the old one while it is good, by the signing key once it
//! has expired (a dead weekend does not mean 3,000 visits).

use std::time::Duration;

use tonic::transport::Channel;
use url::Url;

use sealift_common::clock::Clock;
use sealift_common::id::Sha256;
use sealift_common::proxy::Proxy;
use sealift_common::tls;
use sealift_proto::v1;
use sealift_proto::v1::certificates_client::CertificatesClient;
use sealift_proto::v1::enrollment_client::EnrollmentClient;

use super::{Identity, IdentityError, TlsKey};
use crate::session::error::describe;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What the signature of [`recover`] is over, before its parts.
const RECOVER_CONTEXT: &str = "sealift/1/recover";

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The coordinator did not answer, or refused.
    #[error("cannot {operation}: {problem}")]
    Call {
        /// What was asked for.
        operation: &'static str,
        /// What came back.
        problem: String,
    },
    /// What came back cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

fn failed(operation: &'static str) -> impl Fn(tonic::Status) -> CertificateError {
    move |status| CertificateError::Call { operation, problem: describe(&status) }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// A new certificate, asked for over `channel`, which the present one opened. The present one stays good.
///
/// # Errors
/// [`CertificateError`].
pub async fn renew(
    identity: &Identity,
    channel: Channel,
    clock: &Clock,
) -> Result<Identity, CertificateError> {
    let key = TlsKey::generate()?;
    let request = v1::RenewRequest { csr_der: key.request()? };
    let answer = CertificatesClient::new(channel)
        .renew(timed(request))
        .await
        .map_err(failed("renew the certificate"))?
        .into_inner();
    Ok(identity.with_certificate(&answer, key, clock.now())?)
}

/// A new certificate for a host whose own has expired: it answers a challenge with its signing key.
///
/// # Errors
/// [`CertificateError`]; a revoked agent is refused.
pub async fn recover(
    identity: &Identity,
    coordinator: &Url,
    proxy: Option<Proxy>,
    clock: &Clock,
) -> Result<Identity, CertificateError> {
    let config = tls::client_config(&identity.ca, None).map_err(IdentityError::from)?;
    let channel = tls::channel_through(coordinator, config, proxy).map_err(IdentityError::from)?;
    let mut client = EnrollmentClient::new(channel);
    let asked = v1::ChallengeRequest { agent_id: identity.agent.to_vec() };
    let challenge = client
        .challenge(timed(asked))
        .await
        .map_err(failed("ask for a challenge to replace the expired certificate"))?
        .into_inner()
        .challenge;
    if challenge.len() != 32 {
        return Err(IdentityError::Answer("its challenge is not 32 bytes".to_owned()).into());
    }
    let key = TlsKey::generate()?;
    let csr_der = key.request()?;
    let csr_sha256 = Sha256::of(&csr_der);
    let signature = identity
        .signing_key
        .sign(RECOVER_CONTEXT, &[identity.agent.as_bytes(), &challenge, csr_sha256.as_bytes()])
        .to_vec();
    let request = v1::RecoverRequest { agent_id: identity.agent.to_vec(), challenge, csr_der, signature };
    let answer =
        client.recover(timed(request)).await.map_err(failed("replace the expired certificate"))?.into_inner();
    Ok(identity.with_certificate(&answer, key, clock.now())?)
}
