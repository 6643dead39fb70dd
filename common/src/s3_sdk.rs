//! The S3 SDK over reqwest, whose TLS settings (a private CA, a client certificate) then hold for everything a program sends to
//! a store.

use std::fmt;
use std::sync::Arc;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::shared::IntoShared as _;
use aws_smithy_types::body::SdkBody;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::tls::certificate_problem;

type Answer = BoxFuture<'static, Result<reqwest::Response, reqwest::Error>>;

/// Sends the SDK's requests, each as it is.
#[derive(Clone)]
struct Connector(Arc<dyn Fn(reqwest::Request) -> Answer + Send + Sync>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

/// The SDK's HTTP client that sends with `send`. Retries are the SDK's.
pub fn http_client<F>(send: impl Fn(reqwest::Request) -> F + Send + Sync + 'static) -> SharedHttpClient
where
    F: Future<Output = Result<reqwest::Response, reqwest::Error>> + Send + 'static,
{
    Connector(Arc::new(move |request| send(request).boxed())).into_shared()
}

impl Connector {
    async fn send(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
        let request = reqwest::Request::try_from(request.map(reqwest::Body::wrap))
            .map_err(|e| ConnectorError::user(e.into()))?;
        let response = (self.0)(request).await.map_err(|e| match () {
            () if e.is_timeout() => ConnectorError::timeout(e.into()),
            // Not tried again.
            () if certificate_problem(&e).is_some() => ConnectorError::other(e.into(), None),
            () => ConnectorError::io(e.into()),
        })?;
        let response = http::Response::<reqwest::Body>::from(response).map(SdkBody::from_body_1_x);
        HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None))
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(self.clone().send(request))
    }
}

impl HttpClient for Connector {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
