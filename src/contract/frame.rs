//! Frames: `u32` length (little endian, of what follows), one byte that says whether the rest is
//! compressed, and a message in postcard. No I/O here: bytes in, messages out.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame accepted, in bytes on the wire.
pub const MAX_FRAME: usize = 64 << 20;
/// Largest message accepted, in bytes after decompression.
pub const MAX_MESSAGE: usize = 256 << 20;
/// Messages larger than this are compressed.
const COMPRESS_FROM: usize = 4 << 10;

/// LZ4 makes no more than this many bytes of one.
const LZ4_RATIO: usize = 255;

const PLAIN: u8 = 0;
const LZ4: u8 = 1;

/// Why bytes are not a message, or a message can't become bytes.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length can't be right: not our protocol, or a hostile peer.
    #[error(
        "read a frame: its length of {0} bytes is over the limit of {MAX_FRAME} (the peer does not speak netpath's protocol: wrong image or binary?)"
    )]
    TooLong(usize),
    /// Empty frame, or a flag byte that does not exist.
    #[error("read a frame: it starts with {0:?}, which is no known encoding")]
    Encoding(Option<u8>),
    /// More than [`MAX_MESSAGE`] after decompression.
    #[error("decompress a frame: it would take {0} bytes, over the limit of {MAX_MESSAGE}")]
    TooLarge(usize),
    /// No bytes can become that many: the claim is not believed.
    #[error("decompress a frame: {len} bytes can't become the {claimed} that they claim")]
    Claim {
        /// Bytes that arrived.
        len: usize,
        /// Bytes that they claim to become.
        claimed: usize,
    },
    /// One peer's messages together take more than a reader allows.
    #[error(
        "decode a message of {len} bytes: with it, all messages together take more than {limit} bytes"
    )]
    Budget {
        /// Bytes of this message after decompression.
        len: usize,
        /// Most bytes of all messages.
        limit: usize,
    },
    /// Compressed bytes are damaged.
    #[error("decompress a frame")]
    Decompress(#[source] lz4_flex::block::DecompressError),
    /// The bytes are not the message that was expected.
    #[error("decode a message of {0} bytes: it has another shape (versions differ?)")]
    Decode(usize, #[source] postcard::Error),
    /// Bytes are left over behind a message.
    #[error("decode a message: {0} bytes are left over behind it")]
    Trailing(usize),
    /// The message can't be encoded.
    #[error("encode a message")]
    Encode(#[source] postcard::Error),
}

/// The whole frame of a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body = postcard::to_allocvec(message).map_err(FrameError::Encode)?;
    if body.len() > MAX_MESSAGE {
        return Err(FrameError::TooLarge(body.len()));
    }
    let (flag, body) = if body.len() >= COMPRESS_FROM {
        (LZ4, lz4_flex::block::compress_prepend_size(&body))
    } else {
        (PLAIN, body)
    };
    let length = body.len() + 1;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let prefix = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    let mut frame = Vec::with_capacity(length + 4);
    frame.extend_from_slice(&prefix.to_le_bytes());
    frame.push(flag);
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Collects bytes until they make frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
    /// Most bytes of all messages, and how many of them are left.
    limit: usize,
    left: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::limited(usize::MAX)
    }
}

impl Decoder {
    /// Refuses messages that would together take more than `limit` bytes after decompression, before
    /// memory is taken for them.
    pub fn limited(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            limit,
            left: limit,
        }
    }

    /// Allows as much again: what came was given on and takes no memory any more.
    pub fn refill(&mut self) {
        self.left = self.limit;
    }

    /// Takes bytes in as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for the rest of their frame.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// The first bytes that wait, for an error message about a peer that speaks something else.
    pub fn peek(&self) -> &[u8] {
        let rest = self.buffer.get(self.consumed..).unwrap_or_default();
        rest.get(..rest.len().min(80)).unwrap_or_default()
    }

    /// The next message, or `None` until more bytes come.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let rest = self.buffer.get(self.consumed..).unwrap_or_default();
        let Some((prefix, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let message = unpacked(frame).and_then(|len| {
            let limit = self.limit;
            self.left = self
                .left
                .checked_sub(len)
                .ok_or(FrameError::Budget { len, limit })?;
            decode(frame)
        });
        self.consumed += 4 + length;
        message.map(Some)
    }
}

/// Bytes that a frame's message takes after decompression.
fn unpacked(frame: &[u8]) -> Result<usize, FrameError> {
    match frame.split_first() {
        Some((&PLAIN, body)) => Ok(body.len()),
        Some((&LZ4, body)) => {
            let (size, rest) =
                lz4_flex::block::uncompressed_size(body).map_err(FrameError::Decompress)?;
            if size > MAX_MESSAGE {
                return Err(FrameError::TooLarge(size));
            }
            // Memory is taken for what can come of the bytes that are here, not for what they claim.
            if size > rest.len().saturating_mul(LZ4_RATIO) {
                return Err(FrameError::Claim {
                    len: rest.len(),
                    claimed: size,
                });
            }
            Ok(size)
        }
        other => Err(FrameError::Encoding(other.map(|(flag, _)| *flag))),
    }
}

fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    let unpacked;
    let body = match frame.split_first() {
        Some((&LZ4, body)) => {
            unpacked =
                lz4_flex::block::decompress_size_prepended(body).map_err(FrameError::Decompress)?;
            &unpacked
        }
        Some((_, body)) => body,
        None => frame,
    };
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|error| FrameError::Decode(body.len(), error))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Trailing(rest.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Request;

    #[test]
    fn messages_survive_any_split_of_the_bytes() {
        let small = Request::Ping { id: 7 };
        let large = vec![42u32; 20_000];
        let mut bytes = encode(&small).expect("encodes");
        bytes.extend(encode(&large).expect("encodes"));
        for step in [1, 3, 1000, bytes.len()] {
            let mut decoder = Decoder::default();
            let (mut first, mut second) = (None, None);
            for chunk in bytes.chunks(step) {
                decoder.push(chunk);
                if first.is_none() {
                    first = decoder.message::<Request>().expect("a good frame");
                }
                if first.is_some() && second.is_none() {
                    second = decoder.message::<Vec<u32>>().expect("a good frame");
                }
            }
            assert_eq!(first, Some(small.clone()));
            assert_eq!(second.as_ref(), Some(&large));
            assert_eq!(decoder.pending(), 0);
        }
    }

    #[test]
    fn hostile_bytes_are_refused_without_being_believed() {
        let mut decoder = Decoder::default();
        decoder.push(b"bash: /netpath-helper: no such file");
        assert!(matches!(
            decoder.message::<Request>(),
            Err(FrameError::TooLong(_))
        ));
        // A frame that claims to decompress to 4 GiB.
        let mut decoder = Decoder::default();
        decoder.push(&[6, 0, 0, 0, LZ4, 0xff, 0xff, 0xff, 0xff, 0]);
        assert!(matches!(
            decoder.message::<Request>(),
            Err(FrameError::TooLarge(_))
        ));
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0]);
        assert!(matches!(
            decoder.message::<Request>(),
            Err(FrameError::Encoding(None))
        ));
    }

    #[test]
    fn all_messages_together_stay_below_a_limit() {
        // Compressed, each takes some hundred bytes on the wire.
        let frame = encode(&vec![7u8; 40_000]).expect("encodes");
        assert!(frame.len() < 1_000, "{}", frame.len());
        let mut decoder = Decoder::limited(100_000);
        decoder.push(&frame.repeat(3));
        for _ in 0..2 {
            let message = decoder.message::<Vec<u8>>().expect("within the limit");
            assert_eq!(message.map(|m| m.len()), Some(40_000));
        }
        let error = decoder.message::<Vec<u8>>().expect_err("above it");
        assert!(matches!(error, FrameError::Budget { limit: 100_000, .. }));
    }
}
