//! The signatures are those of AWS's documents, and nothing is signed that should not be.

use sealift_common::secret::Secret;

use super::*;
use crate::objects::settings::{LockMode, ObjectLock};

/// Bucket, key and credential of the examples in "Authenticating Requests: Using the Authorization Header (AWS Signature
/// Version 4)", Amazon S3 API Reference.
fn example() -> StorageSettings {
    StorageSettings {
        endpoint: None,
        region: "us-east-1".into(),
        bucket: "examplebucket".parse().unwrap(),
        prefix: "".parse().unwrap(),
        path_style: false,
        credentials: Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
            session_token: None,
        },
        put_only: None,
        encryption: ServerSideEncryption::BucketDefault,
        object_lock: None,
        ca_pem: None,
        client_identity_pem: None,
    }
}

/// 2013-05-24T00:00:00Z, the moment of those examples.
const EXAMPLE_TIME: UnixMillis = UnixMillis(1_369_353_600_000);

fn header<'a>(request: &'a SignedRequest, name: &str) -> Option<&'a str> {
    request.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

fn terms(name: &ObjectKey, size: u64) -> PutTerms<'_> {
    PutTerms { name, sha256: Sha256::of(b"x"), size, limit: MAX_PACK }
}

/// The same request, signed by the rules written out here step by step (SigV4, "Create a signed request"), independently
/// of the crate that does it in production.
fn signature_by_hand(request: &SignedRequest, secret: &str, path: &str, host: &str) -> String {
    use aws_lc_rs::hmac;
    let authorization = header(request, "authorization").unwrap();
    let signed = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
    let value = |name: &str| if name == "host" { host } else { header(request, name).unwrap() };
    let lines: String = signed.split(';').map(|name| format!("{name}:{}\n", value(name))).collect();
    let payload = header(request, "x-amz-content-sha256").unwrap();
    let canonical = format!("{}\n{path}\n\n{lines}\n{signed}\n{payload}", request.method);
    let date = header(request, "x-amz-date").unwrap();
    let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", Sha256::of(canonical.as_bytes()));
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope.split('/').chain([to_sign.as_str()]) {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    hex::encode(key)
}

fn signature(request: &SignedRequest) -> &str {
    header(request, "authorization").unwrap().split("Signature=").nth(1).unwrap()
}

#[test]
fn a_get_of_the_aws_example_has_the_signature_by_the_documented_rules() {
    let request = sign_get(&example(), &"test.txt".parse().unwrap(), EXAMPLE_TIME).unwrap();
    assert_eq!(request.url, "https://examplebucket.s3.us-east-1.amazonaws.com/test.txt");
    assert_eq!(header(&request, "x-amz-date"), Some("20130524T000000Z"));
    let host = "examplebucket.s3.us-east-1.amazonaws.com";
    let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    assert_eq!(signature(&request), signature_by_hand(&request, secret, "/test.txt", host));
}

/// The documented rules above reproduce AWS's own published vector ("Example: GET Object"), so they are a fair judge.
#[test]
fn the_rules_reproduce_the_published_vector() {
    let empty = Sha256::of(b"").to_string();
    let request = SignedRequest {
        method: "GET",
        url: String::new(),
        headers: vec![
            ("range".into(), "bytes=0-9".into()),
            ("x-amz-content-sha256".into(), empty),
            ("x-amz-date".into(), "20130524T000000Z".into()),
            ("authorization".into(), "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,".into()),
        ],
        expires: EXAMPLE_TIME,
    };
    let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    assert_eq!(
        signature_by_hand(&request, secret, "/test.txt", "examplebucket.s3.amazonaws.com"),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
}

#[test]
fn a_put_signs_hash_length_and_everything_that_matters() {
    let mut settings = example();
    settings.encryption = ServerSideEncryption::Aes256;
    settings.object_lock =
        Some(ObjectLock { mode: LockMode::Governance, period: Duration::from_secs(86_400) });
    let abilities =
        Abilities { if_none_match: true, object_lock: true, unsigned_acl: true, ..Abilities::default() };
    let name = "series/x/packs/y".parse().unwrap();
    let request = sign_put(&settings, &abilities, terms(&name, 4_096), EXAMPLE_TIME).unwrap();
    let authorization = header(&request, "authorization").unwrap();
    let signed = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
    assert_eq!(
        signed,
        "content-length;host;if-none-match;x-amz-acl;x-amz-checksum-sha256;x-amz-content-sha256;x-amz-date;\
         x-amz-object-lock-mode;x-amz-object-lock-retain-until-date;x-amz-server-side-encryption"
    );
    assert_eq!(header(&request, "content-length"), Some("4096"));
    assert_eq!(header(&request, "x-amz-content-sha256"), Some(Sha256::of(b"x").to_string().as_str()));
    assert_eq!(
        header(&request, "x-amz-object-lock-retain-until-date"),
        Some("2013-05-26T00:00:00Z"),
        "twice the period"
    );
    assert_eq!(request.expires, EXAMPLE_TIME.plus(SIGNATURE_LIFE));
    let host = "examplebucket.s3.us-east-1.amazonaws.com";
    let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    assert_eq!(signature(&request), signature_by_hand(&request, secret, "/series/x/packs/y", host));
}

#[test]
fn lengths_out_of_bounds_are_never_signed() {
    let name = "series/x/packs/y".parse().unwrap();
    for size in [0, 1, MIN_SIGNED - 1, MAX_PACK + 1, u64::MAX] {
        let refused = sign_put(&example(), &Abilities::default(), terms(&name, size), EXAMPLE_TIME);
        assert!(matches!(refused, Err(SigningError::Size { .. })), "{size}");
    }
    for size in [MIN_SIGNED, MAX_PACK] {
        assert!(sign_put(&example(), &Abilities::default(), terms(&name, size), EXAMPLE_TIME).is_ok());
    }
}

#[test]
fn agents_get_the_put_only_credential_where_there_is_one() {
    let mut settings = example();
    settings.put_only = Some(Credentials { access_key_id: "AKIAPUTONLY".into(), ..example().credentials });
    let name = "series/x/packs/y".parse().unwrap();
    let put = sign_put(&settings, &Abilities::default(), terms(&name, 4_096), EXAMPLE_TIME).unwrap();
    assert!(header(&put, "authorization").unwrap().contains("AKIAPUTONLY"));
    let get = sign_get(&settings, &name, EXAMPLE_TIME).unwrap();
    assert!(header(&get, "authorization").unwrap().contains("AKIAIOSFODNN7EXAMPLE"));
}
