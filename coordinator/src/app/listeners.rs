//! The two ports, bound before anything else is done.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use url::Url;

use super::AppError;

/// Where a coordinator really listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// HTTPS.
    pub http: SocketAddr,
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), AppError> {
    let failed = |source| AppError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Listens before anything else is done, so that a `dev` on port 0 knows its address when it makes its settings.
#[derive(Debug)]
pub struct Listeners {
    pub(super) grpc: TcpListener,
    pub(super) http: TcpListener,
    addresses: Addresses,
}

impl Listeners {
    /// Binds both ports.
    ///
    /// # Errors
    /// [`AppError::Listen`].
    pub async fn bind(grpc: SocketAddr, http: SocketAddr) -> Result<Self, AppError> {
        let ((grpc, grpc_at), (http, http_at)) = (bind(grpc).await?, bind(http).await?);
        Ok(Self { grpc, http, addresses: Addresses { grpc: grpc_at, http: http_at } })
    }

    /// Where they really are.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The gRPC port as a URL for agents and admins on this machine.
    ///
    /// # Errors
    /// Never for an address that was bound.
    pub fn url(&self) -> Result<Url, url::ParseError> {
        Url::parse(&format!("https://{}", self.addresses.grpc))
    }
}
