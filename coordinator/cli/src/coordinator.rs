//! The connection to a coordinator: mTLS with the context's certificate, the first coordinator that answers.

use sealift_common::{telemetry, tls};
use sealift_proto::v1;
use sealift_proto::v1::agent_admin_client::AgentAdminClient;
use sealift_proto::v1::backup_admin_client::BackupAdminClient;
use sealift_proto::v1::fleet_admin_client::FleetAdminClient;
use sealift_proto::v1::host_admin_client::HostAdminClient;
use sealift_proto::v1::policy_admin_client::PolicyAdminClient;
use sealift_proto::v1::retention_admin_client::RetentionAdminClient;
use sealift_proto::v1::run_admin_client::RunAdminClient;
use sealift_proto::v1::series_admin_client::SeriesAdminClient;
use sealift_proto::v1::storage_admin_client::StorageAdminClient;
use sealift_proto::v1::token_admin_client::TokenAdminClient;
use sealift_proto::v1::trust_admin_client::TrustAdminClient;
use tokio::net::TcpStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use url::Url;

use crate::context::Context;
use crate::error::{Error, Exit, Result, because};
use crate::ui::Ui;

/// A page of 1,000 backups with their warnings, or a long trust chain.
const MAX_REPLY: usize = 64 << 20;

/// Most entries of one page (`Page.limit`).
pub const MAX_PAGE: u32 = 1_000;

/// How many entries a list shows, and from where on.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Limit {
    /// Show at most so many; 0 shows all
    #[arg(long, default_value_t = MAX_PAGE, value_name = "N")]
    limit: u32,
    /// Go on after this place, which an earlier part of the same list named on stderr
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PLACE")]
    after: String,
}

impl Limit {
    /// No limit.
    pub fn all() -> Self {
        Self::default()
    }
}

/// In which order a list is shown.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Order {
    /// Sort by this instead
    #[arg(long, default_value = "", hide_default_value = true, value_name = "KEY")]
    sort: String,
    /// The other way round
    #[arg(long)]
    reverse: bool,
}

/// Asks for page after page until the limit is reached or nothing follows; says so on stderr where something was left out.
pub async fn pages<T>(
    ui: &Ui,
    limit: Limit,
    fetch: impl AsyncFnMut(v1::Page) -> Result<(Vec<T>, String)>,
) -> Result<Vec<T>> {
    ordered_pages(ui, limit, Order::default(), fetch).await
}

/// As [`pages`], in an order.
pub async fn ordered_pages<T>(
    ui: &Ui,
    limit: Limit,
    order: Order,
    mut fetch: impl AsyncFnMut(v1::Page) -> Result<(Vec<T>, String)>,
) -> Result<Vec<T>> {
    let wanted = if limit.limit == 0 { usize::MAX } else { limit.limit as usize };
    let (mut all, mut after) = (Vec::new(), limit.after);
    loop {
        let room = u32::try_from(wanted - all.len()).unwrap_or(MAX_PAGE).min(MAX_PAGE);
        let asked =
            v1::Page { limit: room, after: after.clone(), sort: order.sort.clone(), reverse: order.reverse };
        let (page, next) = fetch(asked).await?;
        all.extend(page);
        all.truncate(wanted);
        if next.is_empty() || next == after {
            return Ok(all);
        }
        if all.len() >= wanted {
            ui.note(format!("only {wanted} are shown: --limit 0 shows all, --after {next} what follows"));
            return Ok(all);
        }
        after = next;
    }
}

/// A coordinator that answered.
#[derive(Debug, Clone)]
pub struct Coordinator {
    channel: Traced,
}

/// Sends the trace along with every call.
type Traced = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> $client<Traced> {
            $client::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY).max_encoding_message_size(MAX_REPLY)
        }
    )*};
}

impl Coordinator {
    /// Connects to the first coordinator of `context` that answers.
    ///
    /// # Errors
    /// Exit code 2 where certificate, key or CA cannot be read; 6 where no coordinator answers.
    pub async fn connect(context: &Context) -> Result<Self> {
        let unusable = || because(Exit::Usage, format!("the context {} cannot be used", context.name));
        let ca = tls::certificates_from_file(&context.ca).map_err(unusable())?;
        let identity = tls::Identity::from_files(&context.certificate, &context.key).map_err(unusable())?;
        let config = tls::client_config(&ca, Some(&identity)).map_err(unusable())?;
        let mut refusals = Vec::new();
        for url in &context.coordinators {
            match reachable(url).await {
                Ok(()) => {
                    let channel = tls::channel(url, config).map_err(unusable())?;
                    let inject: fn(Request<()>) -> Result<Request<()>, Status> =
                        telemetry::inject_trace_parent;
                    return Ok(Self { channel: InterceptedService::new(channel, inject) });
                }
                Err(why) => refusals.push(format!("{url}: {why}")),
            }
        }
        Err(Error::new(
            Exit::Unreachable,
            format!("cannot reach a coordinator of the context {}: {}", context.name, refusals.join("; ")),
        ))
    }

    clients! {
        /// Enrolment tokens.
        tokens: TokenAdminClient;
        /// Hosts and their sources.
        agents: AgentAdminClient;
        /// Hosts over their life.
        hosts: HostAdminClient;
        /// Series.
        series: SeriesAdminClient;
        /// The trust policy.
        trust: TrustAdminClient;
        /// What stays, and what goes.
        retention: RetentionAdminClient;
        /// Policies and pauses.
        policies: PolicyAdminClient;
        /// Runs.
        runs: RunAdminClient;
        /// Backups, their verification, and what a restore needs.
        backups: BackupAdminClient;
        /// What is stored.
        storage: StorageAdminClient;
        /// Status and audit.
        fleet: FleetAdminClient;
    }
}

/// Whether something listens there: the channel itself connects only with the first call, and must not be given a dead
/// coordinator while another one lives.
async fn reachable(url: &Url) -> Result<(), String> {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    match tokio::time::timeout(tls::CONNECT_TIMEOUT, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", tls::CONNECT_TIMEOUT.as_secs())),
    }
}
