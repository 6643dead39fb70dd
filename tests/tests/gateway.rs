//! An S3 gateway with a certificate of a private CA that demands a client certificate, before a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sealift_tests::cluster::Cluster;
use sealift_tests::gateway::{Gateway, Verdict};
use sealift_tests::services::S3;
use sealift_tests::{tree, wait};

#[test]
fn a_private_ca_and_a_client_certificate() {
    let store = S3::rgw();
    let gateway = Gateway::with_tls(&store.endpoint);
    let files = gateway.certificates().unwrap();
    let cluster = Cluster::on(store.behind(&gateway));
    let content = tree::noise(3, 20 << 20);
    let data = cluster.scratch().file("data", &content, 0o600).display().to_string();
    let source =
        format!("[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {data:?}]\n");
    let s3 = |keys: &[(&str, &std::path::Path)]| {
        let lines: Vec<String> =
            keys.iter().map(|(key, path)| format!("{key} = {:?}\n", path.display().to_string())).collect();
        format!("[s3]\n{}\n{source}", lines.concat())
    };
    let good = s3(&[("ca", &files.ca), ("client_certificate", &files.client), ("client_key", &files.key)]);

    // The coordinator goes through it as well: the probe says that the store can be used.
    wait::until("the probe is through", || {
        let status = cluster.json(&["status"]);
        if status["storage"]["writable"] == true { Ok(()) } else { Err(status["storage"].to_string()) }
    });
    let mut agent = cluster.agent("store-1", &good);
    let backup = cluster.backup_ok("store-1/dump");
    let puts = gateway.seen(Verdict::Pass).into_iter().filter(|what| what.starts_with("PUT "));
    assert!(puts.filter(|what| what.contains("/packs/")).count() >= 2, "packs went another way");
    cluster.sealift(&["backup", "verify", backup["id"].as_str().unwrap(), "--level", "hash"]).expect(0);

    // The command reads through it, with a coordinator and without: first it shows no certificate, then one, then half of it.
    let id = backup["id"].as_str().unwrap();
    let identity = cluster.identity.display().to_string();
    let restore = |variables: &[(&str, &std::path::Path)], offline: bool, to: &std::path::Path| {
        let mut command = cluster.command();
        command.args(["restore", "--identity", &identity, "--yes", "--to"]).arg(to);
        if offline {
            let s3 = cluster.s3();
            s3.credentials(&mut command);
            command.args([
                "--offline",
                "--endpoint",
                &s3.endpoint,
                "--region",
                &s3.region,
                "--bucket",
                &s3.bucket,
            ]);
            command.args(["--prefix", &s3.prefix]);
            for pin in &cluster.root_pins {
                command.args(["--root-key-sha256", pin]);
            }
        }
        command.env("AWS_CA_BUNDLE", &files.ca).envs(variables.iter().copied());
        command.arg(id).output().unwrap()
    };
    let (certificate, key) = ("SEALIFT_S3_CLIENT_CERTIFICATE", "SEALIFT_S3_CLIENT_KEY");
    for offline in [false, true] {
        let to = cluster.scratch().join(format!("restored-{offline}"));
        let refused = restore(&[], offline, &to);
        assert!(!refused.status.success(), "the gateway took a client without a certificate");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(certificate), "it does not say what to do: {said}");
        let half = restore(&[(certificate, &files.client)], offline, &to);
        assert_eq!(half.status.code(), Some(2), "{half:?}");
        assert!(String::from_utf8_lossy(&half.stderr).contains(key), "{half:?}");
        let restored = restore(&[(certificate, &files.client), (key, &files.key)], offline, &to);
        assert!(restored.status.success(), "{restored:?}");
        let written: Vec<_> = std::fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(
            written.iter().any(|file| std::fs::read(file).is_ok_and(|bytes| bytes == content)),
            "{written:?}"
        );
    }

    // Without the certificate, or with public CAs only, nothing is sent, and the run says why.
    for (config, word) in [(s3(&[("ca", &files.ca)]), "certificate"), (source.clone(), "certificate")] {
        agent.stop();
        agent.write_config(&format!("[backup]\nstall_timeout = \"1s\"\n\n{config}"));
        agent.start();
        cluster.wait_until_connected("store-1");
        std::fs::write(&data, tree::noise(4, 1 << 20)).unwrap();
        let run = cluster.start_backup("store-1/dump");
        let error = wait::until("the first attempt fails", || {
            let shown = cluster.run(&run);
            let error = shown["attempts"][0]["error"].as_str().map(str::to_owned);
            error.ok_or_else(|| shown.to_string())
        });
        assert!(error.to_lowercase().contains(word), "{error}");
        cluster.sealift(&["run", "cancel", &run, "--yes"]).expect(0);
        cluster.wait_for_end(&run);
    }
    assert_eq!(cluster.backups("store-1/dump").len(), 1);
}
