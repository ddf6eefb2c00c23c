//! Audit messages as XML (PS3.15 A.5.1) in a syslog envelope (RFC 5424 6). Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::clock;

/// Facility 10 (security), severity 5 (notice), as PS3.15 A.6 wants it.
const PRIORITY: u8 = 10 * 8 + 5;

/// Who reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Audit Enterprise Site ID.
    pub enterprise_site: String,
    /// Audit Source ID: site and device.
    pub source: String,
    /// Our AE title.
    pub ae_title: String,
    /// Name of this machine.
    pub host: String,
    /// Process ID.
    pub process: u32,
    /// Messages kept while nobody takes them.
    pub queue_max: u64,
}

/// Another node of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// AE title, as it called itself or is called; may be empty.
    pub ae_title: String,
    /// Name or IP address; may be empty.
    pub host: String,
}

/// Instances of one study on their way from one node to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Study Instance UID.
    pub study_uid: String,
    /// Patient ID; empty where the data set had none.
    pub patient_id: String,
    /// Number of instances by SOP Class UID.
    pub instances: BTreeMap<String, usize>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The daemon is there, or ends in order.
    Application {
        /// Started, or stopped.
        started: bool,
    },
    /// We begin to send (Begin Transferring DICOM Instances).
    Begin {
        /// What.
        transfer: Transfer,
        /// To whom.
        to: Node,
    },
    /// We have sent, or could not (DICOM Instances Transferred).
    Sent {
        /// What.
        transfer: Transfer,
        /// To whom.
        to: Node,
        /// Why not, where not.
        failure: Option<String>,
    },
    /// We have received (DICOM Instances Transferred).
    Received {
        /// What.
        transfer: Transfer,
        /// From whom.
        from: Node,
    },
    /// De-identified copies were made for somebody (Export).
    Export {
        /// What.
        transfer: Transfer,
        /// Who asked for it: a user of this machine.
        user: String,
    },
    /// Somebody was turned away (Security Alert).
    Refused {
        /// Whether at the door, rather than for what it asked once inside.
        at_the_door: bool,
        /// Who.
        by: Node,
        /// Why, how often and when.
        description: String,
    },
}

struct Code(&'static str, &'static str);

impl Event {
    /// The whole syslog message, without the length that RFC 5425 puts before it.
    pub fn syslog(&self, source: &Source, at_ms: u64) -> String {
        let host: String = source.host.chars().filter(|c| c.is_ascii_graphic()).take(255).collect();
        let host = if host.is_empty() { "-" } else { &host };
        let xml = self.xml(source, at_ms);
        // MSG is UTF-8 and says so by its byte order mark (RFC 5424 6.4).
        format!(
            "<{PRIORITY}>1 {} {host} ichd {} DICOM+RFC3881 - \u{feff}{xml}",
            clock::rfc3339(at_ms),
            source.process
        )
    }

    /// The audit message.
    pub fn xml(&self, source: &Source, at_ms: u64) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><AuditMessage>");
        self.identification(&mut xml, at_ms);
        self.participants(&mut xml, source);
        let _ = write!(
            xml,
            "<AuditSourceIdentification AuditEnterpriseSiteID=\"{}\" AuditSourceID=\"{}\">\
             <AuditSourceTypeCode csd-code=\"4\"/></AuditSourceIdentification>",
            escaped(&source.enterprise_site),
            escaped(&source.source)
        );
        self.objects(&mut xml);
        xml += "</AuditMessage>";
        xml
    }

    fn identification(&self, xml: &mut String, at_ms: u64) {
        let (event, action, kind) = match self {
            Event::Application { started } => (
                Code("110100", "Application Activity"),
                'E',
                Some(match started {
                    true => Code("110120", "Application Start"),
                    false => Code("110121", "Application Stop"),
                }),
            ),
            Event::Begin { .. } => (Code("110102", "Begin Transferring DICOM Instances"), 'E', None),
            Event::Sent { .. } => (Code("110104", "DICOM Instances Transferred"), 'R', None),
            Event::Received { .. } => (Code("110104", "DICOM Instances Transferred"), 'C', None),
            Event::Export { .. } => (Code("110106", "Export"), 'R', None),
            Event::Refused { at_the_door, .. } => (
                Code("110113", "Security Alert"),
                'E',
                Some(match at_the_door {
                    true => Code("110126", "Node Authentication"),
                    false => Code("110132", "Use of Restricted Function"),
                }),
            ),
        };
        let failure = match self {
            Event::Sent { failure: Some(failure), .. } => Some(failure.as_str()),
            Event::Refused { description, .. } => Some(description.as_str()),
            _ => None,
        };
        let outcome = match self {
            Event::Sent { failure: Some(_), .. } => 8,
            Event::Refused { .. } => 4,
            _ => 0,
        };
        let _ = write!(
            xml,
            "<EventIdentification EventActionCode=\"{action}\" EventDateTime=\"{}\" EventOutcomeIndicator=\"{outcome}\">",
            clock::rfc3339(at_ms)
        );
        coded(xml, "EventID", &event);
        kind.iter().for_each(|kind| coded(xml, "EventTypeCode", kind));
        if let Some(failure) = failure {
            let _ = write!(xml, "<EventOutcomeDescription>{}</EventOutcomeDescription>", escaped(failure));
        }
        *xml += "</EventIdentification>";
    }

    fn participants(&self, xml: &mut String, source: &Source) {
        const SOURCE: Code = Code("110153", "Source Role ID");
        const DESTINATION: Code = Code("110152", "Destination Role ID");
        let own = Node { ae_title: source.ae_title.clone(), host: source.host.clone() };
        let mut us = |requestor, role: Option<&Code>| {
            participant(xml, &source.process.to_string(), &own, requestor, role);
        };
        match self {
            Event::Application { .. } => us(false, Some(&Code("110150", "Application"))),
            Event::Begin { to, .. } | Event::Sent { to, .. } => {
                us(true, Some(&SOURCE));
                participant(xml, &to.ae_title, to, false, Some(&DESTINATION));
            }
            Event::Received { from, .. } => {
                us(false, Some(&DESTINATION));
                participant(xml, &from.ae_title, from, true, Some(&SOURCE));
            }
            Event::Export { user, .. } => {
                us(false, Some(&SOURCE));
                let person = Node { host: source.host.clone(), ..Node::default() };
                participant(xml, user, &person, true, Some(&DESTINATION));
            }
            Event::Refused { by, .. } => {
                us(false, None);
                let name = if by.ae_title.is_empty() { &by.host } else { &by.ae_title };
                participant(xml, name, by, true, None);
            }
        }
    }

    fn objects(&self, xml: &mut String) {
        match self {
            Event::Application { .. } => {}
            Event::Begin { transfer, .. }
            | Event::Sent { transfer, .. }
            | Event::Received { transfer, .. }
            | Event::Export { transfer, .. } => {
                let _ = write!(
                    xml,
                    "<ParticipantObjectIdentification ParticipantObjectID=\"{}\" ParticipantObjectTypeCode=\"2\" \
                     ParticipantObjectTypeCodeRole=\"3\">",
                    escaped(&transfer.study_uid)
                );
                coded(xml, "ParticipantObjectIDTypeCode", &Code("110180", "Study Instance UID"));
                *xml += "<ParticipantObjectName/><ParticipantObjectDescription>";
                for (class, n) in &transfer.instances {
                    let _ = write!(xml, "<SOPClass UID=\"{}\" NumberOfInstances=\"{n}\"/>", escaped(class));
                }
                if matches!(self, Event::Export { .. }) {
                    *xml += "<Anonymized>true</Anonymized>";
                }
                *xml += "</ParticipantObjectDescription></ParticipantObjectIdentification>";
                let _ = write!(
                    xml,
                    "<ParticipantObjectIdentification ParticipantObjectID=\"{}\" ParticipantObjectTypeCode=\"1\" \
                     ParticipantObjectTypeCodeRole=\"1\"><ParticipantObjectIDTypeCode csd-code=\"2\" \
                     codeSystemName=\"RFC-3881\" originalText=\"Patient Number\"/><ParticipantObjectName/>\
                     </ParticipantObjectIdentification>",
                    escaped(&transfer.patient_id)
                );
            }
            Event::Refused { by, description, .. } => {
                let _ = write!(
                    xml,
                    "<ParticipantObjectIdentification ParticipantObjectID=\"{}\" ParticipantObjectTypeCode=\"2\">",
                    escaped(&by.host)
                );
                coded(xml, "ParticipantObjectIDTypeCode", &Code("110182", "Node ID"));
                let _ = write!(
                    xml,
                    "<ParticipantObjectName/><ParticipantObjectDetail type=\"Alert Description\" value=\"{}\"/>\
                     </ParticipantObjectIdentification>",
                    STANDARD.encode(description)
                );
            }
        }
    }
}

fn coded(xml: &mut String, element: &str, Code(code, meaning): &Code) {
    let _ = write!(
        xml,
        "<{element} csd-code=\"{code}\" codeSystemName=\"DCM\" displayName=\"{meaning}\" originalText=\"{meaning}\"/>"
    );
}

/// Network Access Point Type Code: 1 a name, 2 an IP address.
fn participant(xml: &mut String, user: &str, node: &Node, requestor: bool, role: Option<&Code>) {
    let _ = write!(xml, "<ActiveParticipant UserID=\"{}\"", escaped(user));
    if !node.ae_title.is_empty() {
        let _ = write!(xml, " AlternativeUserID=\"AETITLES={}\"", escaped(&node.ae_title));
    }
    let _ = write!(xml, " UserIsRequestor=\"{requestor}\"");
    if !node.host.is_empty() {
        let kind = if node.host.parse::<std::net::IpAddr>().is_ok() { 2 } else { 1 };
        let _ = write!(
            xml,
            " NetworkAccessPointID=\"{}\" NetworkAccessPointTypeCode=\"{kind}\"",
            escaped(&node.host)
        );
    }
    *xml += ">";
    role.iter().for_each(|role| coded(xml, "RoleIDCode", role));
    *xml += "</ActiveParticipant>";
}

/// Text that may stand in an attribute or element; what XML 1.0 has no place for becomes a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\t' | '\n' | '\r' => out.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn source() -> Source {
        Source {
            enterprise_site: "north".into(),
            source: "north/ct-1".into(),
            ae_title: "ICHD".into(),
            host: "box".into(),
            process: 42,
            queue_max: 10,
        }
    }

    fn all(text: &str) -> Vec<Event> {
        let transfer = Transfer {
            study_uid: "1.2.3".into(),
            patient_id: text.into(),
            instances: [("1.2.840.10008.5.1.4.1.1.2".to_owned(), 30), (text.to_owned(), 1)].into(),
        };
        let node = Node { ae_title: text.into(), host: "10.1.2.3".into() };
        vec![
            Event::Application { started: true },
            Event::Application { started: false },
            Event::Begin { transfer: transfer.clone(), to: node.clone() },
            Event::Sent { transfer: transfer.clone(), to: node.clone(), failure: None },
            Event::Sent { transfer: transfer.clone(), to: node.clone(), failure: Some(text.into()) },
            Event::Sent {
                transfer: Transfer { instances: BTreeMap::new(), ..transfer.clone() },
                to: node.clone(),
                failure: Some("lost before anything had arrived".into()),
            },
            Event::Received { transfer: transfer.clone(), from: node.clone() },
            Event::Export { transfer, user: text.into() },
            Event::Refused { at_the_door: true, by: node.clone(), description: text.into() },
            Event::Refused { at_the_door: false, by: Node::default(), description: text.into() },
        ]
    }

    /// The schema of PS3.15 A.5.1.1, rule by rule, with libxml2.
    #[test]
    fn every_message_is_valid_by_the_standards_schema() {
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/atna.rng");
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for text in ["", "CT1", "a<b>&\"c\" \u{0}\u{1b}\n \u{ffff} Müller^渡辺"] {
            for event in all(text) {
                let path = dir.path().join(format!("{}.xml", files.len()));
                std::fs::write(&path, event.xml(&source(), 1_700_000_000_123)).unwrap();
                files.push(path);
            }
        }
        let validate = |files: &[std::path::PathBuf]| {
            let output = std::process::Command::new("xmllint")
                .args(["--noout", "--relaxng", schema])
                .args(files)
                .output()
                .expect("libxml2-utils is needed (tests/run installs it)");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (ok, said) = validate(&files);
        assert!(ok, "{said}");
        // And the schema can say no.
        let broken = std::fs::read_to_string(&files[3]).unwrap().replace("csd-code", "code");
        std::fs::write(&files[3], broken).unwrap();
        assert!(!validate(&files[3..4]).0);
    }

    #[test]
    fn the_envelope_is_one_that_rfc_5424_knows() {
        let message = Event::Application { started: true }.syslog(&source(), 0);
        let head = "<85>1 1970-01-01T00:00:00.000Z box ichd 42 DICOM+RFC3881 - \u{feff}<?xml version=\"1.0\"";
        assert!(message.starts_with(head), "{message}");
        let nameless = Source { host: " \n".into(), ..source() };
        assert!(Event::Application { started: true }.syslog(&nameless, 0).contains("Z - ichd 42 "));
    }

    proptest! {
        #[test]
        fn nothing_a_peer_says_breaks_out_of_its_place(text in any::<String>()) {
            for event in all(&text) {
                let xml = event.xml(&source(), 0);
                prop_assert_eq!(xml.matches("<AuditMessage>").count(), 1);
                let tags = |xml: &str| (xml.matches('<').count(), xml.matches('>').count(), xml.matches('"').count());
                let plain = all("x").into_iter().find(|e| std::mem::discriminant(e) == std::mem::discriminant(&event));
                // As many tags as with harmless text, give or take what is left out where a text is empty.
                let (a, b) = (tags(&xml), tags(&plain.unwrap().xml(&source(), 0)));
                prop_assert!(a.0 == a.1 && a.0.abs_diff(b.0) <= 4, "{}", xml);
            }
        }
    }
}
