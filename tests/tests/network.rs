//! Networks as shops have them: a proxy that wants a password, coordinators that are away, lines that break.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Feed, Moment};
use sealift_tests::network::{ConnectProxy, Line, TlsFront};
use sealift_tests::services::{S3, free_port, new_password};
use sealift_tests::wait;

#[test]
fn session_and_uploads_go_through_a_proxy_that_wants_a_password() {
    let s3 = S3::rclone();
    let front = TlsFront::before(s3.port());
    let scratch = sealift_tests::scratch::Scratch::new("front");
    let ca = scratch.file("ca.pem", &front.ca_pem, 0o644);
    let store = format!("127.0.0.1:{}", front.port());
    let cluster = Cluster::on(s3.over(format!("https://{store}"), Some(ca.clone())));
    let (password, feed) = (new_password(), Feed::new(2));
    feed.renew(3);
    let proxy = ConnectProxy::start("till", &password);
    let address = format!("http://127.0.0.1:{}", proxy.port());

    let for_enrolment = format!("http://till:{password}@127.0.0.1:{}", proxy.port());
    let mut agent =
        cluster.host("store-1", &[("PROXY_PASSWORD", &password), ("HTTPS_PROXY", &for_enrolment)]);
    let config = |password: &str| {
        let proxy = format!("[proxy]\nurl = {address:?}\nuser = \"till\"\npassword = {password:?}\n");
        let s3 = format!("[s3]\nca = {:?}\n", ca.display().to_string());
        feed.source("feed") + &proxy + &s3
    };
    agent.enrol(&cluster.json(&["token", "create", "--name", "store-1"]));
    let coordinator = cluster.url().replace("https://", "");
    assert!(proxy.asked().contains(&coordinator), "enrolment went past the proxy: {:?}", proxy.asked());

    agent.write_config(&config("wrong"));
    agent.start();
    wait::until("the agent says what the proxy wants", || {
        let log = agent.log();
        if log.contains("wants a user and a password") { Ok(()) } else { Err(log) }
    });
    agent.stop();
    let before = proxy.asked().len();
    agent.write_config(&config("${PROXY_PASSWORD}"));
    agent.start();
    cluster.wait_until_connected("store-1");
    cluster.backup_ok("store-1/feed");
    let asked = proxy.asked().split_off(before);
    assert!(asked.contains(&coordinator) && asked.contains(&store), "{asked:?}");
    assert!(!agent.log().contains(&password), "the log shows the password");

    // Nothing goes past it.
    proxy.cut();
    wait::until("the agent is away", || {
        let shown = cluster.json(&["agent", "show", "store-1"]);
        if shown["connected"] == false { Ok(()) } else { Err(shown.to_string()) }
    });
}

#[test]
fn another_coordinator_of_the_list_takes_over_in_the_middle_of_a_backup() {
    let (cluster, feed) = (Cluster::dev(), Feed::new(24));
    feed.renew(5);
    let port = cluster.url().rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    let (first, second) = (Line::to(port, 0), Line::to(port, 0));
    let url = |port: u16| format!("https://127.0.0.1:{port}");
    let mut agent = cluster.host("store-1", &[]);
    // Nobody is at home at the first address.
    agent.set_coordinators(vec![url(free_port()), url(first.port()), url(second.port())]);
    agent.write_config(&feed.source("feed"));
    agent.enrol(&cluster.json(&["token", "create", "--name", "store-1"]));
    agent.start();
    cluster.wait_until_connected("store-1");
    assert!(first.carried() > 0 && second.carried() == 0, "the list's order does not count");

    let run = cluster.start_backup("store-1/feed");
    Moment::Read(4).wait(&cluster, &feed, 0, 0);
    first.cut();
    let run = cluster.wait_for_end(&run);
    assert_eq!(run["state"], "succeeded", "{run:#}");
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "{run:#}");
    assert!(second.carried() > 0, "nobody took over");
}
