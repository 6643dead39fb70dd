//! HTTPS for people and probes: `/healthz` says whether this coordinator can do its work.

use std::convert::Infallible;
use std::io;

use ::http::{Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::sync::mpsc;

use super::listener::Connection;
use crate::core::Core;
use crate::store::installation;

/// Serves what comes out of `connections`, until there is no more.
pub async fn serve(core: Core, mut connections: mpsc::Receiver<io::Result<Connection>>) {
    while let Some(connection) = connections.recv().await {
        let Ok(connection) = connection else { continue };
        let core = core.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let core = core.clone();
                async move { Ok::<_, Infallible>(answer(&core, &request).await) }
            });
            let address = connection.peer().address;
            let server = auto::Builder::new(TokioExecutor::new());
            if let Err(error) = server.serve_connection(TokioIo::new(connection), service).await {
                tracing::debug!(%address, error = &*error, "an HTTPS connection ended");
            }
        });
    }
}

async fn answer(core: &Core, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => match database_answers(core).await {
            Ok(()) => (StatusCode::OK, "ok\n"),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "health: the database does not answer"
                );
                (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n")
            }
        },
        (_, "/healthz") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
        _ => (StatusCode::NOT_FOUND, "there is nothing here; try /healthz\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn database_answers(core: &Core) -> Result<(), crate::store::StoreError> {
    installation::get(&mut *core.store.reader().await?, "repository_id").await.map(drop)
}
