//! Compiles the schemas with protox: no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "sealift/format/v1/format.proto",
        "sealift/v1/enrollment.proto",
        "sealift/v1/session.proto",
        "sealift/v1/backup.proto",
        "sealift/v1/admin.proto",
        "sealift/v1/series.proto",
        "sealift/v1/retention.proto",
        "sealift/v1/policy.proto",
        "sealift/v1/recovery.proto",
        "sealift/v1/storage.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".sealift.v1.BeginReply")
        // Stored structures are hashed: the same fields give the same bytes.
        .btree_map(".sealift.format.v1")
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=sealift");
    Ok(())
}
