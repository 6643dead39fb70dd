//! Certificates are short; this is how they are replaced: by the old one while it is good, by the signing key once it
//! has expired (a dead weekend does not mean 3,000 visits), and by the root keys' word where the coordinators have lost
//! their CA.

use std::time::Duration;

use tonic::transport::Channel;
use url::Url;

use sealift_common::clock::Clock;
use sealift_common::crypto::trust::RootsInForce;
use sealift_common::crypto::{CaStatement, CaStatementError};
use sealift_common::id::Sha256;
use sealift_common::proxy::Proxy;
use sealift_common::tls;
use sealift_proto::v1;
use sealift_proto::v1::certificates_client::CertificatesClient;
use sealift_proto::v1::enrollment_client::EnrollmentClient;

use super::{Identity, IdentityError, TlsKey};
use crate::session::error::describe;
use crate::state::trust::TrustKeeperError;

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
    /// The coordinator has another CA, and the root keys have said nothing of it.
    #[error("the coordinator has another CA than this host knows, and no root key has said that it is right")]
    NothingSaid,
    /// What they said is not to be obeyed.
    #[error("the coordinator has another CA than this host knows")]
    Statement(#[from] CaStatementError),
    /// Which root keys this host goes by cannot be read.
    #[error("cannot say which root keys are in force")]
    Trust(#[from] TrustKeeperError),
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

/// A new certificate of the CA that the coordinator has now, where root keys have signed that it is the one: the CA that
/// this host knew is lost. What is asked proves itself, so that it does not matter who answers.
///
/// # Errors
/// [`CertificateError`]: nothing has changed.
pub async fn follow(
    identity: &Identity,
    roots: &RootsInForce,
    coordinator: &Url,
    proxy: Option<Proxy>,
    clock: &Clock,
) -> Result<Identity, CertificateError> {
    let config = tls::unverified_client_config().map_err(IdentityError::from)?;
    let channel = tls::channel_through(coordinator, config, proxy.clone()).map_err(IdentityError::from)?;
    let answer = EnrollmentClient::new(channel)
        .get_ca(timed(v1::GetCaRequest {}))
        .await
        .map_err(failed("ask which CA the coordinator has now"))?
        .into_inner();
    if answer.statement.is_empty() {
        return Err(CertificateError::NothingSaid);
    }
    let said = CaStatement::parse(&answer.statement)?;
    said.verify(roots, identity.repository, &answer.ca_der)?;
    if said.created <= identity.ca_said {
        return Err(CaStatementError::Old { said: said.created, known: identity.ca_said }.into());
    }
    let following = Identity { ca: vec![answer.ca_der.into()], ca_said: said.created, ..identity.clone() };
    recover(&following, coordinator, proxy, clock).await
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
