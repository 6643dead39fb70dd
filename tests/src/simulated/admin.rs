//! The admin's side, for what is to be timed or done often: the calls of the `sealift` command without a process each.

use std::time::{Duration, Instant};

use sealift_common::tls;
use sealift_proto::v1;
use sealift_proto::v1::fleet_admin_client::FleetAdminClient;
use sealift_proto::v1::run_admin_client::RunAdminClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::cluster::Cluster;

/// An admin of a cluster, connected. What is here blocks and panics.
pub struct Admin {
    runtime: Runtime,
    channel: Channel,
}

impl Admin {
    /// The admin that the cluster's own commands use.
    #[track_caller]
    pub fn of(cluster: &Cluster) -> Self {
        tls::install_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let files = cluster.admin_files();
        let ca = tls::certificates_from_file(&files.ca).expect("the CA");
        let identity =
            tls::Identity::from_files(&files.certificate, &files.key).expect("an admin's identity");
        let config = tls::client_config(&ca, Some(&identity)).expect("TLS");
        let _in = runtime.enter();
        let channel = tls::channel(&cluster.url().parse().expect("a URL"), config).expect("a channel");
        drop(_in);
        Self { runtime, channel }
    }

    /// The connection, for clients of one's own; use [`Admin::wait`] on their calls.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits for a call.
    pub fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// Waits for a call that must succeed; its answer, and how long it took.
    #[track_caller]
    pub fn timed<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> (T, Duration) {
        let started = Instant::now();
        let answer = self.wait(call).unwrap_or_else(|status| panic!("{status:?}"));
        (answer.into_inner(), started.elapsed())
    }

    /// Starts a backup of `AGENT/SOURCE`, or of all sources that a selector selects.
    #[track_caller]
    pub fn start(&self, source: &str, selector: &str) -> Vec<v1::Run> {
        let mut runs = RunAdminClient::new(self.channel()).max_decoding_message_size(64 << 20);
        let request = v1::StartRunsRequest {
            source: source.to_owned(),
            selector: selector.to_owned(),
            trace_parent: String::new(),
        };
        self.timed(runs.start_runs(request)).0.runs
    }

    /// The fleet at a glance.
    #[track_caller]
    pub fn status(&self) -> v1::StatusReply {
        self.timed(FleetAdminClient::new(self.channel()).status(v1::StatusRequest::default())).0
    }
}
