//! DIMSE command sets (PS3.7 6.3.1): implicit VR little endian, group 0000 only, bounded.

/// Largest command set taken, bytes; real ones have a few hundred.
pub const COMMAND_BYTES_MAX: usize = 64 << 10;

/// Longest UID (PS3.5 9).
const UID_BYTES_MAX: usize = 64;

/// C-STORE-RQ.
pub const C_STORE_RQ: u16 = 0x0001;
/// C-ECHO-RQ.
pub const C_ECHO_RQ: u16 = 0x0030;
/// N-ACTION-RQ.
pub const N_ACTION_RQ: u16 = 0x0130;
/// N-EVENT-REPORT-RQ.
pub const N_EVENT_REPORT_RQ: u16 = 0x0100;
/// N-EVENT-REPORT-RSP.
pub const N_EVENT_REPORT_RSP: u16 = 0x8100;
/// C-CANCEL-RQ.
pub const C_CANCEL_RQ: u16 = 0x0fff;
/// "No data set follows" in Command Data Set Type.
const NO_DATA_SET: u16 = 0x0101;

/// DIMSE statuses we answer with (PS3.7 annex C, PS3.4 table B.2-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Success.
    pub const SUCCESS: Status = Status(0x0000);
    /// Processing Failure.
    pub const PROCESSING_FAILURE: Status = Status(0x0110);
    /// No Such SOP Instance.
    pub const NO_SUCH_INSTANCE: Status = Status(0x0112);
    /// Invalid Argument Value.
    pub const INVALID_ARGUMENT: Status = Status(0x0115);
    /// Invalid SOP Instance.
    pub const INVALID_SOP_INSTANCE: Status = Status(0x0117);
    /// SOP Class Not Supported.
    pub const SOP_CLASS_NOT_SUPPORTED: Status = Status(0x0122);
    /// No Such Action.
    pub const NO_SUCH_ACTION: Status = Status(0x0123);
    /// Unrecognized Operation.
    pub const UNRECOGNIZED_OPERATION: Status = Status(0x0211);
    /// Resource Limitation.
    pub const RESOURCE_LIMITATION: Status = Status(0x0213);
    /// Refused: Out of Resources.
    pub const OUT_OF_RESOURCES: Status = Status(0xa700);
    /// Error: Data Set Does Not Match SOP Class.
    pub const DATA_SET_MISMATCH: Status = Status(0xa900);
    /// Error: Cannot Understand.
    pub const CANNOT_UNDERSTAND: Status = Status(0xc000);
}

/// Every status we answer with: name, to what, when.
pub const STATUSES: [(Status, &str, &str, &str); 12] = [
    (Status::SUCCESS, "Success", "everything", "done; of a C-STORE: synced to disk"),
    (
        Status::PROCESSING_FAILURE,
        "Processing Failure",
        "N-ACTION",
        "spool or database could not be read or written",
    ),
    (Status::NO_SUCH_INSTANCE, "No Such SOP Instance", "N-ACTION", "not the well-known instance"),
    (
        Status::INVALID_ARGUMENT,
        "Invalid Argument Value",
        "N-ACTION",
        "the data set asks for nothing, or names no UIDs",
    ),
    (Status::INVALID_SOP_INSTANCE, "Invalid SOP Instance", "C-STORE", "Affected SOP Instance UID is no UID"),
    (
        Status::SOP_CLASS_NOT_SUPPORTED,
        "SOP Class Not Supported",
        "C-STORE, N-ACTION",
        "SOP class differs from the presentation context's",
    ),
    (Status::NO_SUCH_ACTION, "No Such Action", "N-ACTION", "another action than Request Storage Commitment"),
    (
        Status::UNRECOGNIZED_OPERATION,
        "Unrecognized Operation",
        "everything else",
        "a command that is not served here",
    ),
    (Status::RESOURCE_LIMITATION, "Resource Limitation", "N-ACTION", "more than 4 MiB of references"),
    (
        Status::OUT_OF_RESOURCES,
        "Refused: Out of Resources",
        "C-STORE",
        "disk low or failing; instance or association larger than allowed",
    ),
    (
        Status::DATA_SET_MISMATCH,
        "Error: Data Set Does Not Match SOP Class",
        "C-STORE",
        "SOP Class or Instance UID of the data set differs from the command",
    ),
    (
        Status::CANNOT_UNDERSTAND,
        "Error: Cannot Understand",
        "C-STORE",
        "the data set is cut, malformed or lacks what identifies it; an image without pixels",
    ),
];

/// Why bytes are no command set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("command set is malformed: {0}")]
pub struct CommandError(&'static str);

/// The elements of a request that we act on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Command {
    /// Command Field (0000,0100).
    pub field: u16,
    /// Message ID (0000,0110), echoed in the response.
    pub message_id: u16,
    /// Affected (or Requested) SOP Class UID.
    pub sop_class: String,
    /// Affected (or Requested) SOP Instance UID, as sent.
    pub sop_instance: String,
    /// Whether a data set follows.
    pub has_data_set: bool,
    /// Status (0000,0900) of a response.
    pub status: Option<u16>,
    /// Action Type ID (0000,1008) of an N-ACTION.
    pub action_type: Option<u16>,
}

impl Command {
    /// Parses a whole command set.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, CommandError> {
        let mut command = Command { has_data_set: true, ..Command::default() };
        let (mut has_field, mut has_id) = (false, false);
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at_checked(8).ok_or(CommandError("ends within an element"))?;
            let group = u16::from_le_bytes([head[0], head[1]]);
            let element = u16::from_le_bytes([head[2], head[3]]);
            let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let (value, rest) =
                rest.split_at_checked(length).ok_or(CommandError("element is longer than the set"))?;
            bytes = rest;
            if group != 0 {
                return Err(CommandError("element outside group 0000"));
            }
            let short = || match value {
                [a, b] => Ok(u16::from_le_bytes([*a, *b])),
                _ => Err(CommandError("US element without two bytes")),
            };
            let text = || String::from_utf8_lossy(value).trim_end_matches(['\0', ' ']).to_owned();
            match element {
                0x0002 | 0x0003 => command.sop_class = text(),
                0x0100 => (command.field, has_field) = (short()?, true),
                // A C-CANCEL names the message it means in Message ID Being Responded To (PS3.7 9.3.2.3).
                0x0110 | 0x0120 => (command.message_id, has_id) = (short()?, true),
                0x0900 => command.status = Some(short()?),
                0x1008 => command.action_type = Some(short()?),
                0x0800 => command.has_data_set = short()? != NO_DATA_SET,
                0x1000 | 0x1001 => command.sop_instance = text(),
                _ => {}
            }
        }
        match (has_field, has_id) {
            (true, true) => Ok(command),
            (false, _) => Err(CommandError("no Command Field")),
            (_, false) => Err(CommandError("no Message ID")),
        }
    }

    /// The response command set: request field with the response bit, same message id, no data set. What is too long
    /// for a UID is not echoed: the response must fit the smallest PDU.
    pub fn response(&self, status: Status, comment: &str) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        if (1..=UID_BYTES_MAX).contains(&self.sop_class.len()) {
            element(&mut body, 0x0002, &uid(&self.sop_class));
        }
        element(&mut body, 0x0100, &(self.field | 0x8000).to_le_bytes());
        element(&mut body, 0x0120, &self.message_id.to_le_bytes());
        element(&mut body, 0x0800, &NO_DATA_SET.to_le_bytes());
        element(&mut body, 0x0900, &status.0.to_le_bytes());
        if !comment.is_empty() {
            // Error Comment is LO: 64 characters.
            let mut text: Vec<u8> = comment.bytes().filter(u8::is_ascii).take(64).collect();
            if text.len() % 2 == 1 {
                text.push(b' ');
            }
            element(&mut body, 0x0902, &text);
        }
        if (1..=UID_BYTES_MAX).contains(&self.sop_instance.len()) {
            element(&mut body, 0x1000, &uid(&self.sop_instance));
        }
        with_length(&body)
    }
}

/// C-STORE-RQ command set (PS3.7 9.3.1.1), medium priority, data set follows.
pub fn store_request(sop_class: &str, sop_instance: &str, message_id: u16) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    element(&mut body, 0x0002, &uid(sop_class));
    element(&mut body, 0x0100, &C_STORE_RQ.to_le_bytes());
    element(&mut body, 0x0110, &message_id.to_le_bytes());
    element(&mut body, 0x0700, &0u16.to_le_bytes());
    element(&mut body, 0x0800, &1u16.to_le_bytes());
    element(&mut body, 0x1000, &uid(sop_instance));
    with_length(&body)
}

/// N-EVENT-REPORT-RQ command set (PS3.7 10.3.1.1), data set follows.
pub fn event_report_request(
    sop_class: &str,
    sop_instance: &str,
    message_id: u16,
    event_type: u16,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    element(&mut body, 0x0002, &uid(sop_class));
    element(&mut body, 0x0100, &N_EVENT_REPORT_RQ.to_le_bytes());
    element(&mut body, 0x0110, &message_id.to_le_bytes());
    element(&mut body, 0x0800, &1u16.to_le_bytes());
    element(&mut body, 0x1000, &uid(sop_instance));
    element(&mut body, 0x1002, &event_type.to_le_bytes());
    with_length(&body)
}

/// Message id responded to and status of a response command set; `None` if it holds none.
pub fn response_status(mut bytes: &[u8]) -> Option<(u16, Status)> {
    let (mut message_id, mut status) = (None, None);
    while let Some((head, rest)) = bytes.split_at_checked(8) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let (value, rest) = rest.split_at_checked(length)?;
        let short = || Some(u16::from_le_bytes([*value.first()?, *value.get(1)?]));
        match u16::from_le_bytes([head[2], head[3]]) {
            0x0120 => message_id = short(),
            0x0900 => status = short(),
            _ => {}
        }
        bytes = rest;
    }
    Some((message_id?, Status(status?)))
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let mut set = Vec::with_capacity(body.len() + 12);
    element(&mut set, 0x0000, &u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    set.extend(body);
    set
}

fn element(into: &mut Vec<u8>, element: u16, value: &[u8]) {
    into.extend([0, 0]);
    into.extend(element.to_le_bytes());
    into.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
    into.extend(value);
}

fn uid(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_echo_is_answered_with_its_own_message_id() {
        let request = Command {
            field: C_ECHO_RQ,
            message_id: 4711,
            sop_class: "1.2.840.10008.1.1".into(),
            ..Default::default()
        };
        let set = request.response(Status::SUCCESS, "");
        assert_eq!(u32::from_le_bytes(set[8..12].try_into().unwrap()) as usize, set.len() - 12);
        assert_eq!(response_status(&set), Some((4711, Status::SUCCESS)));
    }

    #[test]
    fn a_store_request_reads_back_as_one() {
        let command = Command::parse(&store_request("1.2.840.10008.5.1.4.1.1.2", "1.2.3", 7)).unwrap();
        assert_eq!((command.field, command.message_id, command.has_data_set), (C_STORE_RQ, 7, true));
        assert_eq!(command.sop_instance, "1.2.3");
    }

    #[test]
    fn a_command_without_field_or_id_is_refused() {
        assert_eq!(Command::parse(&[]), Err(CommandError("no Command Field")));
        assert!(Command::parse(&[0, 0, 0, 1, 255, 255, 255, 255]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Command::parse(&bytes);
        }
    }
}
