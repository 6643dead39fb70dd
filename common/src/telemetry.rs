//! Logs and traces, the same in all three programs.
//!
//! Logs are lines on standard error (text for people, JSON for machines) or JSON in a bounded, rotated file. Traces go
//! to an OTLP endpoint where one is configured; a trace crosses processes as a W3C `traceparent`, in gRPC metadata and in
//! [`sealift_proto::v1::Offer`], so that one trace runs from the CLI to each PUT.
//!
//! Nothing here filters secrets out of messages: they must not get into one (see [`crate::secret`]).

use std::collections::HashMap;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// A log file is rotated at this size, in bytes …
pub const LOG_FILE_BYTES: usize = 16 * 1024 * 1024;
/// … and this many rotated files are kept.
pub const LOG_FILES_KEPT: usize = 7;

/// What a program wants of its telemetry.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `service.name` of traces: `sealift-agent`, …
    pub program: &'static str,
    /// Least level, or a whole filter (`info,sealift_agent=debug`).
    pub level: String,
    /// Where log lines go.
    pub log: LogTarget,
    /// OTLP gRPC endpoint for traces.
    pub otlp_endpoint: Option<String>,
}

/// Where log lines go.
#[derive(Debug, Clone)]
pub enum LogTarget {
    /// Text on standard error, coloured on a terminal.
    Stderr,
    /// JSON lines on standard error.
    StderrJson,
    /// JSON lines in a file, 0640, rotated and bounded; warnings and errors on standard error as well.
    File(PathBuf),
    /// The same with bounds of one's own.
    BoundedFile {
        /// The file.
        path: PathBuf,
        /// A file that has grown to this many bytes is rotated.
        max_bytes: usize,
        /// How many rotated files are kept.
        kept: usize,
    },
}

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be parsed.
    #[error("log level {level:?} is not a level or a filter: use error, warn, info, debug or trace")]
    Level {
        /// What was given.
        level: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The log file cannot be written.
    #[error("cannot write the log file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The OTLP exporter does not start.
    #[error("cannot send traces to {endpoint:?}")]
    Otlp {
        /// The endpoint.
        endpoint: String,
        /// Why.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Telemetry was started before in this process.
    #[error("telemetry is already running in this process")]
    Twice,
}

/// Flushes traces when dropped: keep it until the end of `main`.
#[must_use = "traces are lost when this is dropped early"]
#[derive(Debug)]
pub struct Guard(Option<SdkTracerProvider>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // Nobody is left to tell when the last flush fails.
            let _ = provider.shutdown();
        }
    }
}

/// Starts logging and tracing for this process. Call inside the tokio runtime when traces are exported.
///
/// # Errors
/// [`TelemetryError`], naming the setting that is wrong.
pub fn init(settings: &Settings) -> Result<Guard, TelemetryError> {
    let filter = || {
        EnvFilter::try_new(&settings.level)
            .map_err(|source| TelemetryError::Level { level: settings.level.clone(), source })
    };
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let mut layers = Vec::new();
    let file = match &settings.log {
        LogTarget::Stderr | LogTarget::StderrJson => None,
        LogTarget::File(path) => Some(rotated(path, LOG_FILE_BYTES, LOG_FILES_KEPT)?),
        LogTarget::BoundedFile { path, max_bytes, kept } => Some(rotated(path, *max_bytes, *kept)?),
    };
    match (&settings.log, file) {
        (LogTarget::StderrJson, _) => {
            layers.push(stderr.json().with_ansi(false).with_filter(filter()?).boxed());
        }
        (_, None) => layers.push(stderr.with_filter(filter()?).boxed()),
        (_, Some(file)) => {
            let file = std::sync::Mutex::new(file);
            layers.push(
                tracing_subscriber::fmt::layer().json().with_writer(file).with_filter(filter()?).boxed(),
            );
            layers.push(stderr.with_filter(EnvFilter::new("warn")).boxed());
        }
    }
    let provider = settings.otlp_endpoint.as_deref().map(|e| exporter(settings.program, e)).transpose()?;
    if let Some(provider) = &provider {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let tracer = provider.tracer(settings.program);
        layers.push(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(filter()?).boxed());
    }
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(Guard(provider))
}

fn rotated(path: &Path, max_bytes: usize, kept: usize) -> Result<FileRotate<AppendCount>, TelemetryError> {
    let failed = |source| TelemetryError::File { path: path.to_owned(), source };
    let mut options = std::fs::OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o640);
    // Opened once by hand, because the rotator reports a file that it cannot open only by a panic.
    options.open(path).map_err(failed)?;
    Ok(FileRotate::new(
        path,
        AppendCount::new(kept),
        ContentLimit::BytesSurpassed(max_bytes),
        Compression::None,
        Some(options),
    ))
}

fn exporter(program: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| TelemetryError::Otlp { endpoint: endpoint.to_owned(), source })?;
    let resource = Resource::builder()
        .with_service_name(program)
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The W3C `traceparent` of the current span; empty where nothing is traced.
pub fn trace_parent() -> String {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut carrier);
    carrier.remove("traceparent").unwrap_or_default()
}

/// Makes `span` a child of the span that another process named by its `traceparent`; an empty or malformed one is ignored.
pub fn set_trace_parent(span: &tracing::Span, trace_parent: &str) {
    let carrier = HashMap::from([("traceparent".to_owned(), trace_parent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    // Fails only where no tracing layer is installed, and then there is nothing to connect.
    let _ = span.set_parent(context);
}

/// A tonic interceptor that sends the current span's `traceparent` along with each request.
///
/// # Errors
/// Never; the type is what tonic asks of an interceptor.
#[allow(clippy::result_large_err)]
pub fn inject_trace_parent(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    if let Ok(value) = trace_parent().parse::<tonic::metadata::MetadataValue<_>>()
        && !value.is_empty()
    {
        request.metadata_mut().insert("traceparent", value);
    }
    Ok(request)
}

/// The `traceparent` that came with a request; empty where there is none.
pub fn extract_trace_parent(metadata: &tonic::metadata::MetadataMap) -> &str {
    metadata.get("traceparent").and_then(|v| v.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_named() {
        let settings = Settings {
            program: "test",
            level: "loud=,=".into(),
            log: LogTarget::Stderr,
            otlp_endpoint: None,
        };
        assert!(init(&settings).unwrap_err().to_string().contains("loud=,="));
    }

    #[test]
    fn a_log_file_is_made_0640_and_an_unwritable_one_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        rotated(&path, 1000, 1).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let error = rotated(&dir.path().join("no/such/agent.log"), 1000, 1).err().unwrap();
        assert!(error.to_string().contains("no/such/agent.log"));
    }
}
