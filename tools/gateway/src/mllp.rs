//! MLLP: `0x0B` message `0x1C 0x0D` over TCP, one message, one acknowledgement, one connection.
//!
//! Plain TCP, as nearly every interface engine has it: keep it on this machine, in a tunnel, or in a network of its own.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::hl7::{Answer, answer};
use crate::http::Outcome;

const TIMEOUT: Duration = Duration::from_secs(20);
const ACK_BYTES_MAX: usize = 64 << 10;
const START: u8 = 0x0b;
const END: [u8; 2] = [0x1c, 0x0d];

/// Sends a message and reads its acknowledgement.
pub fn send(address: &str, message: &str, id: &str) -> Outcome {
    match exchange(address, message).and_then(|ack| answer(&ack, id)) {
        Ok(Answer::Accepted) => Outcome::Taken,
        Ok(Answer::Error(words)) => Outcome::Later(format!("application error: {words}")),
        Ok(Answer::Rejected(words)) => Outcome::Never(format!("rejected: {words}")),
        Err(error) => Outcome::Later(error),
    }
}

fn exchange(address: &str, message: &str) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("{address}: {e}");
    let to = address
        .to_socket_addrs()
        .map_err(failed)?
        .next()
        .ok_or_else(|| format!("{address} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
    let frame = [&[START], message.as_bytes(), &END].concat();
    stream.write_all(&frame).map_err(failed)?;
    let mut ack = Vec::new();
    let mut buffer = [0; 1024];
    while !ack.ends_with(&END) {
        let n = stream.read(&mut buffer).map_err(failed)?;
        if n == 0 || ack.len() > ACK_BYTES_MAX {
            return Err(format!("{address} closed without an acknowledgement"));
        }
        ack.extend_from_slice(&buffer[..n]);
    }
    let ack = ack.strip_prefix(&[START]).ok_or("the answer is no MLLP block")?;
    Ok(String::from_utf8_lossy(&ack[..ack.len() - END.len()]).into_owned())
}
