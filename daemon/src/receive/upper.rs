//! The DICOM upper layer (PS3.8) over any byte stream: PDUs in, PDUs out, and the limits they are held to.
//!
//! `dicom-ul` parses and writes the association PDUs; P-DATA, of which there is a lot, is cut here without copying.
//! Ours rather than the library's acceptor, because that one takes the requestor's order of transfer syntaxes,
//! announces itself as somebody else and knows neither a transient rejection nor a time limit on a TLS handshake.
//!
//! Memory is bounded by one PDU. A PDU that is longer than allowed is refused by its header, before it is read.

use std::io::Error as IoError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use dicom_ul::pdu::{self, AssociationAC, AssociationRQ};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// PDU type and length.
const HEAD_BYTES: usize = 6;
/// Largest association PDU: 128 presentation contexts of 24 transfer syntaxes fit.
const ASSOCIATION_BYTES_MAX: u32 = 256 << 10;
/// Largest PDU that we send, whatever the peer would take.
const SEND_BYTES_MAX: u32 = 64 << 10;
/// PS3.8 D.1: what a peer that says nothing takes. Smaller than that is a lie or an attack.
const SEND_BYTES_MIN: u32 = 1024;

/// What an association runs on: TCP, or TLS on it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Acknowledges what was read at once. A sender with Nagle's algorithm on, as many scanners are, holds back every
    /// short write until then, and a delayed acknowledgement takes 40 ms a slice. The system forgets this wish.
    fn acknowledge_now(&self) {}
}

impl Stream for TcpStream {
    fn acknowledge_now(&self) {
        let _ = self.set_quickack(true);
    }
}

impl Stream for tokio_rustls::server::TlsStream<TcpStream> {
    fn acknowledge_now(&self) {
        self.get_ref().0.acknowledge_now();
    }
}

impl Stream for tokio_rustls::client::TlsStream<TcpStream> {}

#[cfg(test)]
impl Stream for tokio::io::DuplexStream {}

/// Why the conversation cannot go on. Never quotes what the peer sent: that may be a patient.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// No whole PDU within the limit, or the peer takes none.
    #[error("time limit reached")]
    Timeout,
    /// Longer than we said we take.
    #[error("PDU is too large")]
    TooLarge,
    /// Not what the standard says.
    #[error("PDU is malformed")]
    Malformed,
    /// A PDU that has no place here.
    #[error("PDU is out of place")]
    Unexpected,
    /// A TLS client on a plaintext port.
    #[error("TLS where none is spoken")]
    TlsOnPlaintext,
    /// A-ASSOCIATE-RJ in answer to our own request.
    #[error("association rejected")]
    Rejected,
    /// The peer went away.
    #[error("connection lost")]
    Lost(#[source] IoError),
}

impl UpperError {
    /// A stable word for the journal.
    pub fn reason(&self) -> &'static str {
        match self {
            UpperError::Timeout => "idle_timeout",
            UpperError::TooLarge => "pdu_too_large",
            UpperError::Malformed => "malformed_pdu",
            UpperError::Unexpected => "unexpected_pdu",
            UpperError::TlsOnPlaintext => "tls_on_plaintext",
            UpperError::Rejected => "rejected",
            UpperError::Lost(_) => "connection_lost",
        }
    }
}

/// One presentation data value (PS3.8 9.3.5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Presentation context id.
    pub context: u8,
    /// Part of a command set, not of a data set.
    pub is_command: bool,
    /// The set ends here.
    pub is_last: bool,
    /// Its bytes.
    pub data: Bytes,
}

/// What may come on an established association.
#[derive(Debug, PartialEq, Eq)]
pub enum Pdu {
    /// P-DATA-TF.
    Data(Vec<Value>),
    /// A-RELEASE-RQ.
    ReleaseRequest,
    /// A-RELEASE-RP.
    ReleaseResponse,
    /// A-ABORT.
    Abort,
}

/// A-ASSOCIATE-RJ (PS3.8 9.3.4).
#[derive(Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Result, source, reason as they go out.
    pub code: [u8; 3],
    /// Stable word for the journal.
    pub reason: &'static str,
    /// When, for people.
    pub when: &'static str,
}

/// More associations than allowed.
pub const TOO_MANY: Rejection = Rejection {
    code: [2, 3, 2],
    reason: "too_many",
    when: "`receive.associations-max` associations are open (transient: local limit exceeded)",
};
/// Another protocol version.
pub const PROTOCOL_VERSION: Rejection = Rejection {
    code: [1, 2, 2],
    reason: "protocol_version",
    when: "the requestor does not speak protocol version 1 (permanent)",
};
/// Another application context.
pub const APPLICATION_CONTEXT: Rejection = Rejection {
    code: [1, 1, 2],
    reason: "application_context",
    when: "the application context is not DICOM's (permanent)",
};
/// Not our title.
pub const UNKNOWN_CALLED: Rejection = Rejection {
    code: [1, 1, 7],
    reason: "unknown_called",
    when: "the called AE title is not `receive.ae-title` (permanent)",
};
/// Not a title we know.
pub const UNKNOWN_CALLING: Rejection = Rejection {
    code: [1, 1, 3],
    reason: "unknown_calling",
    when: "the calling AE title is not in `receive.calling-ae-titles` (permanent)",
};
/// A title that has to come over TLS.
pub const PLAINTEXT_REFUSED: Rejection = Rejection {
    code: [1, 1, 1],
    reason: "plaintext_refused",
    when: "TLS is configured and the title is not in `receive.tls.plaintext-ae-titles` (permanent, no reason given)",
};
/// A certificate that may not use this title.
pub const CERTIFICATE_MISMATCH: Rejection = Rejection {
    code: [1, 1, 3],
    reason: "certificate_mismatch",
    when: "the peer's certificate is not one of those that may use the calling AE title by `receive.tls.ae-titles` (permanent)",
};
/// Every rejection there is.
pub const REJECTIONS: [&Rejection; 7] = [
    &TOO_MANY,
    &PROTOCOL_VERSION,
    &APPLICATION_CONTEXT,
    &UNKNOWN_CALLED,
    &UNKNOWN_CALLING,
    &PLAINTEXT_REFUSED,
    &CERTIFICATE_MISMATCH,
];

/// One connection, PDU by PDU.
pub struct Link {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    /// Largest PDU body we take, bytes.
    receive_bytes_max: u32,
    /// Largest PDU body the peer takes, bytes.
    send_bytes_max: u32,
    /// For one whole PDU, either way: a drip is as good as silence.
    pdu_timeout: Duration,
}

impl Link {
    /// Nothing is read yet.
    pub fn new(stream: Box<dyn Stream>, receive_bytes_max: u32, pdu_timeout: Duration) -> Self {
        Link {
            stream,
            buffer: BytesMut::new(),
            receive_bytes_max,
            send_bytes_max: SEND_BYTES_MIN,
            pdu_timeout,
        }
    }

    /// What the peer said it takes; 0 means "anything".
    pub fn limit_sending(&mut self, peer_bytes_max: u32) {
        self.send_bytes_max = match peer_bytes_max {
            0 => SEND_BYTES_MAX,
            n => n.clamp(SEND_BYTES_MIN, SEND_BYTES_MAX),
        };
    }

    /// The A-ASSOCIATE-RQ; nothing else may come first.
    pub async fn association_request(&mut self) -> Result<AssociationRQ, UpperError> {
        match self.association_pdu(0x01).await? {
            pdu::Pdu::AssociationRQ(request) => Ok(request),
            _ => Err(UpperError::Unexpected),
        }
    }

    /// The answer to our own A-ASSOCIATE-RQ.
    pub async fn association_answer(&mut self) -> Result<AssociationAC, UpperError> {
        match self.association_pdu(0x02).await? {
            pdu::Pdu::AssociationAC(answer) => Ok(answer),
            _ => Err(UpperError::Unexpected),
        }
    }

    async fn association_pdu(&mut self, expected: u8) -> Result<pdu::Pdu, UpperError> {
        let limit = ASSOCIATION_BYTES_MAX;
        let bytes = within(self.pdu_timeout, self.pdu_bytes(limit, Some(expected))).await?;
        parse_association(&bytes)
    }

    /// The next PDU of an established association.
    pub async fn receive(&mut self) -> Result<Pdu, UpperError> {
        let limit = self.receive_bytes_max;
        let mut bytes = within(self.pdu_timeout, self.pdu_bytes(limit, None)).await?;
        let kind = bytes[0];
        bytes.advance(HEAD_BYTES);
        parse(kind, bytes)
    }

    /// Nothing of a PDU is there yet.
    pub fn is_at_rest(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Head and body of one PDU.
    async fn pdu_bytes(&mut self, limit: u32, expected: Option<u8>) -> Result<Bytes, UpperError> {
        loop {
            let mut wanted = HEAD_BYTES;
            if let Some(kind) = self.buffer.first() {
                match expected {
                    // The first byte of a TLS handshake record.
                    Some(0x01) if *kind == 0x16 => return Err(UpperError::TlsOnPlaintext),
                    Some(0x02) if *kind == 0x03 => return Err(UpperError::Rejected),
                    Some(expected) if *kind != expected => return Err(UpperError::Unexpected),
                    _ => {}
                }
            }
            if let Some(head) = self.buffer.first_chunk::<HEAD_BYTES>() {
                let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]);
                if length > limit {
                    return Err(UpperError::TooLarge);
                }
                wanted += length as usize;
                if self.buffer.len() >= wanted {
                    return Ok(self.buffer.split_to(wanted).freeze());
                }
            }
            self.buffer.reserve(wanted - self.buffer.len());
            let room = self.buffer.capacity() - self.buffer.len();
            match self.stream.read_buf(&mut self.buffer).await.map_err(UpperError::Lost)? {
                0 => return Err(UpperError::Lost(std::io::ErrorKind::UnexpectedEof.into())),
                // Nothing else is there: the sender may be waiting.
                n if n < room => self.stream.acknowledge_now(),
                _ => {}
            }
        }
    }

    /// Sends an association PDU.
    pub async fn send_association(&mut self, pdu: &pdu::Pdu) -> Result<(), UpperError> {
        let mut bytes = Vec::with_capacity(1024);
        pdu::write_pdu(&mut bytes, pdu).map_err(|_| UpperError::Malformed)?;
        self.write(&bytes).await
    }

    /// Sends a command set and what follows it: one write, since split ones meet Nagle and delayed ACK at 40 ms a
    /// piece; as many PDUs as the peer's limit makes of it.
    pub async fn send_message(
        &mut self,
        context: u8,
        command: &[u8],
        data_set: Option<&[u8]>,
    ) -> Result<(), UpperError> {
        let mut bytes = Vec::with_capacity(command.len() + data_set.map_or(0, <[u8]>::len) + 64);
        self.push_values(&mut bytes, context, command, 1, true);
        if let Some(data_set) = data_set {
            self.push_values(&mut bytes, context, data_set, 0, true);
        }
        self.write(&bytes).await
    }

    /// Sends a part of a data set; the last one ends it.
    pub async fn send_data(&mut self, context: u8, part: &[u8], is_last: bool) -> Result<(), UpperError> {
        let mut bytes = Vec::with_capacity(part.len() + part.len() / 64 + 64);
        self.push_values(&mut bytes, context, part, 0, is_last);
        self.write(&bytes).await
    }

    /// P-DATA-TF PDUs with one value each, as large as the peer takes.
    fn push_values(&self, bytes: &mut Vec<u8>, context: u8, set: &[u8], is_command: u8, ends: bool) {
        let most = self.send_bytes_max as usize - HEAD_BYTES;
        let n = set.len().div_ceil(most).max(1);
        for i in 0..n {
            let chunk = &set[i * most..set.len().min((i + 1) * most)];
            let value_bytes = u32::try_from(chunk.len() + 2).unwrap_or(u32::MAX);
            bytes.extend([0x04, 0]);
            bytes.extend((value_bytes + 4).to_be_bytes());
            bytes.extend(value_bytes.to_be_bytes());
            bytes.extend([context, is_command | if ends && i + 1 == n { 2 } else { 0 }]);
            bytes.extend(chunk);
        }
    }

    /// A-RELEASE-RQ.
    pub async fn send_release_request(&mut self) -> Result<(), UpperError> {
        self.write(&[0x05, 0, 0, 0, 0, 4, 0, 0, 0, 0]).await
    }

    /// A-RELEASE-RP.
    pub async fn send_release_response(&mut self) -> Result<(), UpperError> {
        self.write(&[0x06, 0, 0, 0, 0, 4, 0, 0, 0, 0]).await
    }

    /// A-ASSOCIATE-RJ, then waits for the peer to close, so that our answer is not lost to a reset.
    pub async fn reject(&mut self, rejection: &Rejection) -> Result<(), UpperError> {
        let [result, source, reason] = rejection.code;
        self.write(&[0x03, 0, 0, 0, 0, 4, 0, result, source, reason]).await?;
        self.close().await
    }

    /// A-ABORT by the service provider, then the end.
    pub async fn abort(&mut self) -> Result<(), UpperError> {
        self.write(&[0x07, 0, 0, 0, 0, 4, 0, 0, 2, 0]).await?;
        within(self.pdu_timeout, async { self.stream.shutdown().await.map_err(UpperError::Lost) }).await
    }

    /// No more from us; what the peer still says is thrown away.
    pub async fn close(&mut self) -> Result<(), UpperError> {
        within(self.pdu_timeout, async {
            self.stream.shutdown().await.map_err(UpperError::Lost)?;
            let mut rest = [0; 4096];
            while self.stream.read(&mut rest).await.map_err(UpperError::Lost)? > 0 {}
            Ok(())
        })
        .await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), UpperError> {
        within(self.pdu_timeout, async {
            self.stream.write_all(bytes).await.map_err(UpperError::Lost)?;
            self.stream.flush().await.map_err(UpperError::Lost)
        })
        .await
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, UpperError>>,
) -> Result<T, UpperError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(UpperError::Timeout))
}

/// An association PDU, head included. Guarded: the library trusts lengths within items.
pub fn parse_association(bytes: &[u8]) -> Result<pdu::Pdu, UpperError> {
    let parsed =
        catch_unwind(AssertUnwindSafe(|| pdu::read_pdu(bytes, ASSOCIATION_BYTES_MAX, true).ok().flatten()));
    parsed.ok().flatten().ok_or(UpperError::Malformed)
}

/// A PDU body of an established association.
pub fn parse(kind: u8, mut body: Bytes) -> Result<Pdu, UpperError> {
    match kind {
        0x04 => {
            let mut values = Vec::with_capacity(1);
            while !body.is_empty() {
                let head = *body.first_chunk::<6>().ok_or(UpperError::Malformed)?;
                let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
                if length < 2 || length > body.len() - 4 {
                    return Err(UpperError::Malformed);
                }
                body.advance(6);
                values.push(Value {
                    context: head[4],
                    is_command: head[5] & 1 != 0,
                    is_last: head[5] & 2 != 0,
                    data: body.split_to(length - 2),
                });
            }
            Ok(Pdu::Data(values))
        }
        0x05 => Ok(Pdu::ReleaseRequest),
        0x06 => Ok(Pdu::ReleaseResponse),
        0x07 => Ok(Pdu::Abort),
        _ => Err(UpperError::Unexpected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(stream: tokio::io::DuplexStream) -> Link {
        Link::new(Box::new(stream), 16_384, Duration::from_secs(60))
    }

    #[tokio::test]
    async fn a_long_message_is_cut_to_what_the_peer_takes_and_reads_back_whole() {
        let (a, b) = tokio::io::duplex(1 << 20);
        let (mut sender, mut receiver) = (link(a), link(b));
        sender.limit_sending(2_000);
        let data: Vec<u8> = (0..9_001u32).map(|i| i as u8).collect();
        sender.send_message(3, &[1, 2, 3], Some(&data)).await.unwrap();
        let Pdu::Data(command) = receiver.receive().await.unwrap() else { panic!() };
        assert_eq!(
            (command[0].is_command, command[0].is_last, &command[0].data[..]),
            (true, true, &[1, 2, 3][..])
        );
        let mut got = Vec::new();
        loop {
            let Pdu::Data(values) = receiver.receive().await.unwrap() else { panic!() };
            for value in &values {
                assert!(!value.is_command && value.data.len() <= 2_000 - 6);
                got.extend_from_slice(&value.data);
            }
            if values[0].is_last {
                break;
            }
        }
        assert_eq!(got, data);
    }

    #[tokio::test]
    async fn a_pdu_that_announces_too_much_is_refused_by_its_head() {
        let (a, mut b) = tokio::io::duplex(1 << 20);
        b.write_all(&[4, 0, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        let mut link = link(a);
        assert!(matches!(link.receive().await, Err(UpperError::TooLarge)));
        assert!(link.buffer.capacity() < 100_000);
    }

    #[tokio::test]
    async fn a_tls_client_on_a_plaintext_port_is_named() {
        let (a, mut b) = tokio::io::duplex(64);
        b.write_all(&[0x16, 3, 1]).await.unwrap();
        assert!(matches!(link(a).association_request().await, Err(UpperError::TlsOnPlaintext)));
    }

    #[test]
    fn a_value_longer_than_its_pdu_is_malformed() {
        let body = Bytes::from_static(&[0, 0, 0, 9, 1, 3, b'X']);
        assert!(matches!(parse(4, body), Err(UpperError::Malformed)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(kind in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(kind, Bytes::from(bytes.clone()));
            let mut pdu = vec![kind % 4, 0];
            pdu.extend((bytes.len() as u32).to_be_bytes());
            pdu.extend(bytes);
            let _ = parse_association(&pdu);
        }
    }
}
