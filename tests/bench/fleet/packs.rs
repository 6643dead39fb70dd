//! One backup with very many packs: what Begin, Prepare and Commit take, on both databases.

use std::time::Duration;

use sealift_tests::cluster::Cluster;
use sealift_tests::generated::{self, Database};
use sealift_tests::services::{Postgres, S3};
use sealift_tests::simulated::{Admin, Call, Fleet, Invitation, Options};

use crate::table::{line, time};

/// Prints the lines of this part.
pub fn measure(packs: usize) {
    on("SQLite", None, packs);
    on("PostgreSQL", Some(crate::store::server()), packs);
}

fn on(name: &str, server: Option<Postgres>, packs: usize) {
    let mut cluster = match &server {
        None => Cluster::on(S3::rgw()),
        Some(server) => Cluster::on_postgres(S3::rgw(), server, "sealift"),
    };
    let mut fleet = Fleet::new(Options { refer_to_all: true, ..Options::default() });
    fleet.enrol(&Invitation::of(&cluster, 1, &[]), "host", 1);
    fleet.connect();
    fleet.until_connected(1);
    cluster.backup_ok("host-0000/data");
    cluster.stop_coordinator();
    let file = cluster.data_dir().join("coordinator.db");
    let database = match &server {
        None => Database::Sqlite(&file),
        Some(server) => Database::Postgres(server, "sealift"),
    };
    generated::add_stored_packs(database, packs);
    cluster.start_coordinator();
    let admin = Admin::of(&cluster);
    fleet.until_connected(1);
    fleet.figures().forget_latencies();
    let before = fleet.figures().commits();
    admin.start("host-0000/data", "");
    fleet.until_committed(before + 1);
    let took = |call| -> Duration { fleet.figures().latencies(call).iter().sum() };
    let (begin, prepare, commit) = (took(Call::Begin), took(Call::Prepare), took(Call::Commit));
    line(
        format!("a backup of {packs} packs, {name}: Prepare and Commit"),
        "2 s",
        format!(
            "{} (Prepare {}, Commit {}; Begin {})",
            time(prepare + commit),
            time(prepare),
            time(commit),
            time(begin)
        ),
    );
}
