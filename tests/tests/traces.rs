//! One trace runs from the command to each PUT, through all three programs, where an OTLP endpoint is configured.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use sealift_tests::cluster::Cluster;
use sealift_tests::{tree, wait};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span, as far as this test cares.
#[derive(Debug, Clone)]
struct Span {
    program: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
}

/// An OTLP collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let program =
                attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value?.value);
            let Some(Value::StringValue(program)) = program else { continue };
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    program: program.clone(),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_the_command_to_each_put() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let service = TraceServiceServer::new(collector.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    tokio::task::spawn_blocking(move || backup_traced(&endpoint, &collector)).await.unwrap();
}

fn backup_traced(endpoint: &str, collector: &Collector) {
    let cluster = Cluster::dev_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]);
    let file = cluster.scratch().file("content", tree::noise(7, 40 << 20), 0o600).display().to_string();
    let config = format!(
        "[telemetry]\notlp_endpoint = {endpoint:?}\n\n\
         [[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {file:?}]\n"
    );
    let mut agent = cluster.agent("store-1", &config);
    let packs = cluster.backup_ok("store-1/dump")["packs"].as_u64().unwrap();
    assert!(packs >= 3, "noise does not compress: {packs} packs");
    // Spans are sent in batches, and the rest when a program ends.
    agent.stop();
    wait::until("the spans of the backup have arrived", || {
        let spans = collector.0.lock().unwrap().clone();
        let Some(command) = named(&spans, "sealift", "backup run").next() else {
            return Err(format!("no span of the command among {spans:#?}"));
        };
        let of_trace = |span: &Span| span.trace == command.trace;
        let coordinator = spans.iter().filter(|s| s.program == "sealift-coordinator").any(of_trace);
        let puts: Vec<Span> = named(&spans, "sealift-agent", "put").filter(|span| of_trace(span)).collect();
        let attempt = named(&spans, "sealift-agent", "attempt").find(|span| of_trace(span));
        match attempt {
            Some(attempt) if coordinator && puts.len() as u64 >= packs => {
                assert!(!attempt.parent.is_empty(), "the attempt hangs below the command's request");
                assert!(puts.iter().all(|put| descends(put, &attempt, &spans)), "{puts:#?}");
                Ok(())
            }
            attempt => Err(format!("coordinator: {coordinator}, attempt: {attempt:?}, {} PUTs", puts.len())),
        }
    });
}

fn named<'a>(spans: &'a [Span], program: &'a str, name: &'a str) -> impl Iterator<Item = Span> + 'a {
    spans.iter().filter(move |span| span.program == program && span.name == name).cloned()
}

/// Whether `ancestor` is above `span`.
fn descends(span: &Span, ancestor: &Span, all: &[Span]) -> bool {
    let mut above = span.parent.clone();
    // As many steps as there are spans at the most: a circle would be a bug of its own.
    for _ in 0..all.len() {
        if above == ancestor.id {
            return true;
        }
        let Some(next) = all.iter().find(|candidate| candidate.id == above) else { return false };
        above.clone_from(&next.parent);
    }
    false
}
