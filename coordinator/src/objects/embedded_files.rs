//! The files behind the embedded S3 server: s3s-fs, with reads in large pieces. (By itself it reads 4 KiB at a time, each
//! in a hop to another thread, which is what a restore would wait for.)
//!
//! To let the server do another operation, add its line below.

use std::path::{Path, PathBuf};

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

/// Bytes read at a time.
const READ: usize = 256 << 10;

/// Buckets and objects in a directory.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    files: FileSystem,
}

impl Files {
    pub(super) fn new(root: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let files = FileSystem::new(root).map_err(|e| format!("{e:?}"))?;
        Ok(Self { root: root.canonicalize()?, files })
    }

    /// The bytes that an answer of s3s-fs is about, in large pieces.
    async fn body(&self, path: &Path, answer: &GetObjectOutput) -> std::io::Result<StreamingBlob> {
        let range = answer.content_range.as_deref().and_then(|text| text.strip_prefix("bytes "));
        let first = range.and_then(|text| text.split_once('-')?.0.parse().ok()).unwrap_or(0);
        let len = u64::try_from(answer.content_length.unwrap_or(0)).unwrap_or(0);
        let mut file = File::open(self.root.join(path)).await?;
        file.seek(std::io::SeekFrom::Start(first)).await?;
        Ok(StreamingBlob::wrap(ReaderStream::with_capacity(file.take(len), READ)))
    }
}

macro_rules! serve {
    ($($operation:ident: $input:ident => $output:ident),* $(,)?) => {
        #[async_trait::async_trait]
        impl S3 for Files {
            $(async fn $operation(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.files.$operation(req).await
            })*

            /// s3s-fs would make the bucket anew where its folder was moved away, and take what is written for stored.
            async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
                if !self.root.join(&req.input.bucket).is_dir() {
                    return Err(s3_error!(NoSuchBucket));
                }
                self.files.put_object(req).await
            }

            async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
                let path = Path::new(&req.input.bucket).join(&req.input.key);
                // s3s-fs has resolved the same path below its root, or refused it, before this one is opened.
                let mut answer = self.files.get_object(req).await?;
                let climbs = path.components().any(|c| !matches!(c, std::path::Component::Normal(_)));
                if !climbs {
                    let body = self.body(&path, &answer.output).await;
                    answer.output.body = Some(body.map_err(|e| s3_error!(e, InternalError))?);
                }
                Ok(answer)
            }
        }
    };
}

serve! {
    create_bucket: CreateBucketInput => CreateBucketOutput,
    head_bucket: HeadBucketInput => HeadBucketOutput,
    list_buckets: ListBucketsInput => ListBucketsOutput,
    get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput,
    head_object: HeadObjectInput => HeadObjectOutput,
    delete_object: DeleteObjectInput => DeleteObjectOutput,
    delete_objects: DeleteObjectsInput => DeleteObjectsOutput,
    list_objects: ListObjectsInput => ListObjectsOutput,
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output,
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput,
    upload_part: UploadPartInput => UploadPartOutput,
    list_parts: ListPartsInput => ListPartsOutput,
    complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput,
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput,
}
