//! Protobuf with small buffers to begin with. A coordinator holds a stream open to each of ten thousand hosts, which says a few
//! bytes now and then; tonic's own codec keeps 8 KiB for either direction of each.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a buffer holds at first, in bytes; it grows with the message.
const FIRST: usize = 512;
/// Messages of a stream are sent together up to so many bytes (tonic's default).
const TOGETHER: usize = 32 * 1024;

/// The codec of all services; [`ProstCodec`] but for its buffers.
#[derive(Debug, Clone)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(FIRST, TOGETHER))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(FIRST, TOGETHER))
    }
}
