//! Associations in process: a real peer (`dicom-ul`, or raw bytes) against the SCP and a spool on disk.

use std::process::Command as Program;

use dicom_ul::association::client::{AsyncClientAssociation, ClientAssociationOptions};
use dicom_ul::pdu::{PDataValue, PDataValueType, Pdu};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dimse::{Status, response_status, store_request};
use super::*;
use crate::dicom::AeTitle;
use crate::evidence::auditor::Minutes;
use crate::health::Pulses;
use crate::spool::SpoolLimits;

const CT: &str = syntax::IMAGES[0];
const EXPLICIT: &str = "1.2.840.10008.1.2.1";

type Client = AsyncClientAssociation<TcpStream>;

struct Scp {
    port: u16,
    spool: Arc<Spool>,
    events: mpsc::Receiver<Event>,
    rescan_wanted: RescanWanted,
    minutes: Minutes,
    shutdown: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

fn config() -> config::Receive {
    config::Receive { calling_ae_titles: vec![AeTitle::parse("CT1").unwrap()], ..Default::default() }
}

async fn scp(config: config::Receive) -> Scp {
    scp_with(config, 64).await
}

async fn scp_with(config: config::Receive, events_max: usize) -> Scp {
    scp_on(TcpListener::bind(("127.0.0.1", 0)).await.unwrap(), config, events_max).await
}

async fn scp_on(listener: TcpListener, config: config::Receive, events_max: usize) -> Scp {
    let dir = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { free_bytes_min: 0, instance_bytes_max: config.instance_bytes_max };
    let spool = Arc::new(Spool::open(dir.path(), limits).unwrap());
    let port = listener.local_addr().unwrap().port();
    let (events_tx, events) = mpsc::channel(events_max);
    let rescan_wanted = RescanWanted::default();
    let (shutdown, watched) = watch::channel(false);
    let pulse = Pulses::new(crate::clock::now()).register("receive");
    let to = Events::new(events_tx, rescan_wanted.clone());
    let (auditor, minutes) = crate::evidence::auditor::new(false);
    let served = tokio::spawn(serve(
        Doors { plain: listener, tls: None },
        config,
        Wiring { spool: spool.clone(), commitments: None, events: to, auditor, pulse, shutdown: watched },
    ));
    Scp { port, spool, events, rescan_wanted, minutes, shutdown, served, dir }
}

impl Scp {
    async fn associate(
        &self,
        calling: &str,
        classes: &[&str],
    ) -> Result<Client, dicom_ul::association::Error> {
        let mut options = ClientAssociationOptions::new().calling_ae_title(calling).called_ae_title("ICHD");
        for class in classes {
            options = options.with_presentation_context(*class, vec![EXPLICIT]);
        }
        options.establish_async(("127.0.0.1", self.port)).await
    }

    async fn scanner(&self) -> Client {
        self.associate("CT1", &[CT, syntax::VERIFICATION, syntax::ASIDE[0]]).await.unwrap()
    }

    fn stored(&self) -> usize {
        self.spool.rescan().unwrap().len()
    }

    fn incoming(&self) -> usize {
        self.spool.n_arriving()
    }
}

fn phantom(seed: u64) -> ichd_phantom::Instance {
    let options = ichd_phantom::SeriesOptions {
        scan: ichd_phantom::scan::ScanOptions { matrix: 32, slices: 1, ..Default::default() },
        uid_seed: Some(seed),
        ..Default::default()
    };
    ichd_phantom::study(1, ichd_phantom::Bleed::None, &options).unwrap().remove(0)
}

fn context(client: &Client, class: &str) -> u8 {
    client.presentation_contexts().iter().find(|c| c.abstract_syntax == class).unwrap().id
}

fn pdv(id: u8, value_type: PDataValueType, is_last: bool, data: &[u8]) -> Pdu {
    Pdu::PData {
        data: vec![PDataValue { presentation_context_id: id, value_type, is_last, data: data.to_vec() }],
    }
}

/// Sends a command set and perhaps a data set, each in pieces of `piece` bytes.
async fn send(client: &mut Client, id: u8, command: &[u8], data: Option<&[u8]>, piece: usize) {
    for (bytes, kind) in [(Some(command), PDataValueType::Command), (data, PDataValueType::Data)] {
        let Some(bytes) = bytes else { continue };
        let n = bytes.len().div_ceil(piece);
        for (i, chunk) in bytes.chunks(piece).enumerate() {
            client.send(&pdv(id, kind.clone(), i + 1 == n, chunk)).await.unwrap();
        }
    }
}

async fn response(client: &mut Client) -> (u16, Status) {
    let Pdu::PData { data } = client.receive().await.unwrap() else { panic!("no response") };
    response_status(&data[0].data).unwrap()
}

async fn store_as(client: &mut Client, class: &str, sop: &str, bytes: &[u8]) -> Status {
    let id = context(client, CT);
    send(client, id, &store_request(class, sop, 77), Some(bytes), 7_000).await;
    let (message_id, status) = response(client).await;
    assert_eq!(message_id, 77);
    status
}

async fn store(client: &mut Client, p: &ichd_phantom::Instance) -> Status {
    store_as(client, CT, &p.sop_instance_uid, &p.dataset_bytes).await
}

/// A command set of US elements, and a UID.
fn command(field: u16, message_id: u16, class: &str) -> Vec<u8> {
    let mut set = store_request(class, "", message_id);
    let at = |set: &[u8], element: u8| set.windows(4).position(|w| w == [0, 0, element, 1]).unwrap() + 8;
    let field_at = at(&set, 0x00);
    set[field_at..field_at + 2].copy_from_slice(&field.to_le_bytes());
    let type_at = set.windows(4).position(|w| w == [0, 0, 0, 8]).unwrap() + 8;
    set[type_at..type_at + 2].copy_from_slice(&0x0101u16.to_le_bytes());
    set
}

#[tokio::test(flavor = "multi_thread")]
async fn echoes_are_answered_each_with_its_own_message_id() {
    let scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let id = context(&client, syntax::VERIFICATION);
    for message_id in [1, 9, 65_535] {
        send(&mut client, id, &command(0x0030, message_id, syntax::VERIFICATION), None, 1000).await;
        assert_eq!(response(&mut client).await, (message_id, Status::SUCCESS));
    }
    // C-CANCEL of nothing: no answer, no harm. It has no Message ID of its own.
    let mut cancel = command(0x0fff, 9, syntax::VERIFICATION);
    let id_at = cancel.windows(4).position(|w| w == [0, 0, 0x10, 1]).unwrap();
    cancel[id_at + 2] = 0x20;
    send(&mut client, id, &cancel, None, 1000).await;
    // C-FIND: nothing we do.
    send(&mut client, id, &command(0x0020, 5, syntax::VERIFICATION), None, 1000).await;
    assert_eq!(response(&mut client).await, (5, Status::UNRECOGNIZED_OPERATION));
    client.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_with_success_is_on_disk_and_announced() {
    let mut scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let p = phantom(1);
    assert_eq!(store(&mut client, &p).await, Status::SUCCESS);
    assert_eq!((scp.stored(), scp.incoming()), (1, 0));
    client.release().await.unwrap();
    let Some(Event::Stored { association: 1, instance }) = scp.events.recv().await else { panic!() };
    assert_eq!(instance.header.sop.as_str(), p.sop_instance_uid);
    assert!(matches!(scp.events.recv().await, Some(Event::Released { association: 1, orderly: true })));
    // The data set is kept exactly as it came, and the sender's name with it.
    let kept = std::fs::read(&instance.path).unwrap();
    assert!(kept.ends_with(&p.dataset_bytes));
    assert!(kept[..400].windows(4).any(|w| w == b"CT1 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn command_and_data_sets_may_come_in_any_number_of_pieces() {
    let scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let id = context(&client, CT);
    for (seed, piece) in [1, 3, 17, 1_000, 16_000].into_iter().enumerate() {
        let p = phantom(seed as u64);
        let request = store_request(CT, &p.sop_instance_uid, 7);
        send(&mut client, id, &request, Some(&p.dataset_bytes), piece).await;
        assert_eq!(response(&mut client).await, (7, Status::SUCCESS), "pieces of {piece} bytes");
    }
    assert_eq!(scp.stored(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_again_is_success_and_another_content_is_kept_apart() {
    let mut scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let p = phantom(1);
    let mut other = p.dataset_bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    assert_eq!(store(&mut client, &p).await, Status::SUCCESS);
    assert_eq!(store(&mut client, &p).await, Status::SUCCESS);
    assert_eq!(store_as(&mut client, CT, &p.sop_instance_uid, &other).await, Status::SUCCESS);
    assert_eq!(scp.stored(), 1);
    client.release().await.unwrap();
    let mut kinds = Vec::new();
    while let Some(event) = scp.events.recv().await {
        kinds.push(match event {
            Event::Stored { .. } => "stored",
            Event::Conflict { .. } => "conflict",
            Event::Released { .. } => break,
        });
    }
    assert_eq!(kinds, ["stored", "stored", "conflict"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_uid_in_two_series_of_a_study_is_a_conflict() {
    let mut scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let p = phantom(1);
    let mut moved = p.dataset_bytes.clone();
    let tag = [0x20, 0, 0x0e, 0, b'U', b'I'];
    let at = moved.windows(6).position(|w| w == tag).unwrap() + 8;
    let last = &mut moved[at + p.series_uid.len() - 1];
    *last = if *last == b'1' { b'2' } else { b'1' };
    assert_eq!(store(&mut client, &p).await, Status::SUCCESS);
    assert_eq!(store_as(&mut client, CT, &p.sop_instance_uid, &moved).await, Status::SUCCESS);
    client.release().await.unwrap();
    assert_eq!(scp.stored(), 1);
    assert_eq!(std::fs::read_dir(scp.dir.path().join("quarantine")).unwrap().count(), 1);
    let mut conflicts = Vec::new();
    while let Some(event) = scp.events.recv().await {
        match event {
            Event::Conflict { series, .. } => conflicts.push(series.to_string()),
            Event::Released { .. } => break,
            _ => {}
        }
    }
    assert_eq!(conflicts, std::slice::from_ref(&p.series_uid), "said of the series that has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_has_its_status_and_the_association_lives() {
    let scp = scp(config::Receive { instance_bytes_max: 4_000, ..config() }).await;
    let mut client = scp.scanner().await;
    let (p, q) = (phantom(1), phantom(2));
    let sop = p.sop_instance_uid.as_str();
    let bytes = &p.dataset_bytes;
    assert!(bytes.len() < 4_000, "{}", bytes.len());
    let n = bytes.len();
    let cases: [(&str, &str, &str, &[u8], Status); 7] = [
        ("another class", syntax::ASIDE[0], sop, bytes, Status::SOP_CLASS_NOT_SUPPORTED),
        ("no UID", CT, "../../etc/passwd", bytes, Status::INVALID_SOP_INSTANCE),
        ("an endless UID", CT, &"1.".repeat(9_000), bytes, Status::INVALID_SOP_INSTANCE),
        ("another instance", CT, &q.sop_instance_uid, bytes, Status::DATA_SET_MISMATCH),
        ("a cut data set", CT, sop, &bytes[..n - 100], Status::CANNOT_UNDERSTAND),
        ("no data set at all", CT, sop, b"I am a text, not a data set", Status::CANNOT_UNDERSTAND),
        ("too large", CT, sop, &[bytes.as_slice(), &[0; 4_000]].concat(), Status::OUT_OF_RESOURCES),
    ];
    for (fault, class, sop, data, status) in cases {
        assert_eq!(store_as(&mut client, class, sop, data).await, status, "{fault}");
        assert_eq!((scp.stored(), scp.incoming()), (0, 0), "{fault}");
    }
    assert_eq!(store(&mut client, &p).await, Status::SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_association_that_carries_too_much_is_refused_more() {
    let scp = scp(config::Receive { association_bytes_max: 1_000, ..config() }).await;
    let mut client = scp.scanner().await;
    assert_eq!(store(&mut client, &phantom(1)).await, Status::SUCCESS);
    assert_eq!(store(&mut client, &phantom(2)).await, Status::OUT_OF_RESOURCES);
    let mut client = scp.scanner().await;
    assert_eq!(store(&mut client, &phantom(2)).await, Status::SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_in_the_middle_leaves_nothing() {
    let mut scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let (id, p) = (context(&client, CT), phantom(1));
    let request = store_request(CT, &p.sop_instance_uid, 1);
    client.send(&pdv(id, PDataValueType::Command, true, &request)).await.unwrap();
    client.send(&pdv(id, PDataValueType::Data, false, &p.dataset_bytes[..900])).await.unwrap();
    client.abort().await.unwrap();
    while !matches!(scp.events.recv().await, Some(Event::Released { orderly: false, .. })) {}
    assert_eq!((scp.stored(), scp.incoming()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_set_on_another_context_than_its_command_ends_the_association() {
    let scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let (ct, other, p) = (context(&client, CT), context(&client, syntax::ASIDE[0]), phantom(1));
    let request = store_request(CT, &p.sop_instance_uid, 1);
    client.send(&pdv(ct, PDataValueType::Command, true, &request)).await.unwrap();
    client.send(&pdv(other, PDataValueType::Data, true, &p.dataset_bytes)).await.unwrap();
    assert!(!matches!(client.receive().await, Ok(Pdu::PData { .. })));
    assert_eq!(scp.stored(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_rejected_and_nobody_else_notices() {
    let scp = scp(config()).await;
    assert!(scp.associate("CT2", &[CT]).await.is_err());
    assert_eq!(store(&mut scp.scanner().await, &phantom(1)).await, Status::SUCCESS);
}

/// An A-ASSOCIATE-RQ for CT images as bytes.
fn request(calling: &str, transfer_syntaxes: &[&str]) -> Vec<u8> {
    use dicom_ul::pdu::{AssociationRQ, PresentationContextProposed};
    let request = AssociationRQ {
        protocol_version: 1,
        calling_ae_title: calling.into(),
        called_ae_title: "ICHD".into(),
        application_context_name: negotiate::APPLICATION_CONTEXT.into(),
        presentation_contexts: vec![PresentationContextProposed {
            id: 1,
            abstract_syntax: CT.into(),
            transfer_syntaxes: transfer_syntaxes.iter().map(|t| (*t).into()).collect(),
        }],
        user_variables: negotiate::user_information(16_384),
    };
    let mut bytes = Vec::new();
    dicom_ul::pdu::write_pdu(&mut bytes, &Pdu::AssociationRQ(request)).unwrap();
    bytes
}

/// Bytes until the connection ends.
async fn rest(socket: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes).await;
    bytes
}

const TRANSIENT_REJECTION: [u8; 10] = [3, 0, 0, 0, 0, 4, 0, 2, 3, 2];

#[tokio::test(flavor = "multi_thread")]
async fn one_too_many_is_told_to_come_back_and_does_not_block_the_next() {
    let mut scp =
        scp(config::Receive { associations_max: 1, handshake_timeout_ms: 60_000, ..config() }).await;
    let first = scp.scanner().await;
    let mut second = TcpStream::connect(("127.0.0.1", scp.port)).await.unwrap();
    second.write_all(&request("CT1", &[EXPLICIT])).await.unwrap();
    let mut answer = [0; 10];
    second.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, TRANSIENT_REJECTION);
    first.release().await.unwrap();
    while !matches!(scp.events.recv().await, Some(Event::Released { .. })) {}
    // The rejected one lingers on its connection; the free place is free all the same. The permit comes back an
    // instant after the event, so one more rejection may be met.
    let mut tries = 0;
    let mut third = loop {
        match scp.associate("CT1", &[CT]).await {
            Ok(client) => break client,
            Err(_) if tries < 20 => tries += 1,
            Err(error) => panic!("the free place was never given: {error}"),
        }
    };
    assert_eq!(store(&mut third, &phantom(1)).await, Status::SUCCESS);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_first_bytes_end_the_connection_and_nothing_else() {
    let scp = scp(config()).await;
    let first_bytes: [&[u8]; 5] = [
        &[1, 0, 0xff, 0xff, 0xff, 0xff],                   // 4 GiB are announced
        &[1, 0, 0, 0, 0, 4, 0, 1, 0, 0],                   // shorter than a request can be
        &[4, 0, 0, 0, 0, 8, 0, 0, 0, 4, 1, 3, b'X', b'Y'], // data before any association
        &[9, 0, 0, 0, 0, 0],                               // no PDU of ours
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for bytes in first_bytes {
        let mut socket = TcpStream::connect(("127.0.0.1", scp.port)).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        assert!(rest(&mut socket).await.len() <= 10, "{bytes:?}");
    }
    assert_eq!(store(&mut scp.scanner().await, &phantom(1)).await, Status::SUCCESS);
}

/// Data before any association may hold a patient; the journal gets a word of ours.
#[tokio::test(flavor = "multi_thread")]
async fn why_an_association_failed_is_said_without_what_it_carried() {
    let (ours, mut peer) = tokio::io::duplex(1024);
    peer.write_all(&[4, 0, 0, 0, 0, 14, 0, 0, 0, 10, 1, 3]).await.unwrap();
    peer.write_all(b"DOE^JANE").await.unwrap();
    let mut link = upper::Link::new(Box::new(ours), 16_384, Duration::from_secs(60));
    let Err(refusal) = association::establish(
        &config(),
        None,
        &mut link,
        association::Way { is_secure: false, holder: None, is_own: false },
    )
    .await
    else {
        panic!("associated")
    };
    assert_eq!(format!("{refusal:?}").matches("DOE").count(), 0);
    assert_eq!(refusal.reason, "unexpected_pdu");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_let_go_before_and_after_the_handshake() {
    let before = scp(config::Receive { handshake_timeout_ms: 100, ..config() }).await;
    let mut silent = TcpStream::connect(("127.0.0.1", before.port)).await.unwrap();
    assert!(rest(&mut silent).await.is_empty());
    let mut after = scp(config::Receive { idle_timeout_ms: 300, ..config() }).await;
    let mut client = after.scanner().await;
    assert!(!matches!(client.receive().await, Ok(Pdu::PData { .. })));
    while !matches!(after.events.recv().await, Some(Event::Released { orderly: false, .. })) {}
    assert_eq!(after.minutes.n_refusals(), 0, "a scanner that rests is no intruder");
    // In the middle of a command, or of a PDU, it is one.
    for piece in [pdu_in_the_middle(), vec![4, 0, 0]] {
        let mut half = after.scanner().await;
        half.inner_stream().write_all(&piece).await.unwrap();
        assert_eq!(after.minutes.refusal().await.unwrap().reason, "idle_timeout");
    }
}

/// The first half of a C-STORE command.
fn pdu_in_the_middle() -> Vec<u8> {
    let mut bytes = Vec::new();
    let half = pdv(1, PDataValueType::Command, false, &store_request(CT, "1.2.3", 1)[..40]);
    dicom_ul::pdu::write_pdu(&mut bytes, &half).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pdu_that_never_ends_is_let_go_however_steadily_it_drips() {
    let limits = config::Receive { idle_timeout_ms: 1_000, handshake_timeout_ms: 60_000, ..config() };
    let scp = scp(limits).await;
    // Half open: a request that stops in the middle.
    let whole = request("CT1", &[EXPLICIT]);
    let mut half = TcpStream::connect(("127.0.0.1", scp.port)).await.unwrap();
    half.write_all(&whole[..whole.len() / 2]).await.unwrap();
    rest(&mut half).await;
    // Slow drip: every byte comes, none of them late, the PDU never.
    let mut drip = TcpStream::connect(("127.0.0.1", scp.port)).await.unwrap();
    drip.write_all(&whole).await.unwrap();
    drip.write_all(&[4, 0, 0, 2, 0, 0]).await.unwrap();
    let mut n_dripped = 0;
    while drip.write_all(&[0]).await.is_ok() {
        n_dripped += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(n_dripped < 0x2_0000 - 6, "the PDU came to its end");
    }
    assert_eq!(store(&mut scp.scanner().await, &phantom(1)).await, Status::SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_outside_the_list_is_refused_before_a_byte_is_read() {
    // Loopback is always admitted, so the whole 127/8 is; a stranger is played by another address of this machine.
    let strangers = [[10, 9, 8, 7], [203, 0, 113, 9]].map(std::net::IpAddr::from);
    assert!(strangers.iter().all(|ip| !admit::peer(*ip, &config())));
    let stranger =
        std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("203.0.113.9:9").map(|()| s));
    let Some(own) = stranger.ok().and_then(|s| s.local_addr().ok()).filter(|a| !a.ip().is_loopback()) else {
        eprintln!("left out: this machine has no address but loopback");
        return;
    };
    let listener = TcpListener::bind(("0.0.0.0", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut scp = scp_on(listener, config(), 64).await;
    // From that address to loopback, so that the two ends differ: who calls an address from itself is this machine.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((own.ip(), 0).into()).unwrap();
    let mut socket = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    // Not even the head of a PDU is asked for.
    assert!(rest(&mut socket).await.is_empty());
    let refusal = scp.minutes.refusal().await.unwrap();
    assert_eq!((refusal.reason.as_str(), refusal.peer), ("unknown_address", own.ip().to_string()));
    assert_eq!(store(&mut scp.scanner().await, &phantom(1)).await, Status::SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_turned_away_and_the_scanner_still_served_afterwards() {
    let scp = scp(config::Receive { associations_max: 2, handshake_timeout_ms: 60_000, ..config() }).await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(TcpStream::connect(("127.0.0.1", scp.port)).await.unwrap());
    }
    // All but twice the limit are closed at once, unread.
    for socket in &mut open[4..] {
        assert!(rest(socket).await.is_empty());
    }
    drop(open);
    let mut tries = 0;
    let mut client = loop {
        match scp.associate("CT1", &[CT]).await {
            Ok(client) => break client,
            Err(_) if tries < 1_000 => tries += 1,
            Err(error) => panic!("nobody is served any more: {error}"),
        }
    };
    assert_eq!(store(&mut client, &phantom(1)).await, Status::SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drip_fed_association_ends_at_the_total_limit() {
    let mut scp = scp(config::Receive { total_timeout_ms: 50, ..config() }).await;
    let mut client = scp.scanner().await;
    let (id, p) = (context(&client, CT), phantom(1));
    let request = store_request(CT, &p.sop_instance_uid, 1);
    client.send(&pdv(id, PDataValueType::Command, true, &request)).await.unwrap();
    while client.send(&pdv(id, PDataValueType::Data, false, b"drip")).await.is_ok() {
        tokio::task::yield_now().await;
    }
    while !matches!(scp.events.recv().await, Some(Event::Released { orderly: false, .. })) {}
    assert_eq!((scp.stored(), scp.incoming()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_do_not_fit_ask_for_a_rescan_and_storing_goes_on() {
    let scp = scp_with(config(), 1).await;
    let mut client = scp.scanner().await;
    for seed in 0..4 {
        assert_eq!(store(&mut client, &phantom(seed)).await, Status::SUCCESS);
    }
    assert!(scp.rescan_wanted.load(Ordering::Acquire));
    assert_eq!(scp.stored(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_the_current_instance_finish() {
    let scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let (id, p) = (context(&client, CT), phantom(1));
    let request = store_request(CT, &p.sop_instance_uid, 1);
    let (head, tail) = p.dataset_bytes.split_at(900);
    let holders = Arc::strong_count(&scp.spool);
    client.send(&pdv(id, PDataValueType::Command, true, &request)).await.unwrap();
    client.send(&pdv(id, PDataValueType::Data, false, head)).await.unwrap();
    // The request has certainly been taken in once an instance of it holds the spool.
    while Arc::strong_count(&scp.spool) == holders {
        tokio::task::yield_now().await;
    }
    scp.shutdown.send(true).unwrap();
    client.send(&pdv(id, PDataValueType::Data, true, tail)).await.unwrap();
    assert_eq!(response(&mut client).await, (1, Status::SUCCESS));
    scp.served.await.unwrap();
    assert_eq!(scp.spool.rescan().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dcmtk_is_served() {
    if Program::new("storescu").arg("--version").output().is_err() {
        eprintln!("left out: DCMTK is not installed");
        return;
    }
    let scp = scp(config()).await;
    let mut client = scp.scanner().await;
    let p = phantom(1);
    assert_eq!(store(&mut client, &p).await, Status::SUCCESS);
    let file = scp.spool.rescan().unwrap().remove(0).path;
    let port = scp.port.to_string();
    let peer = ["-aet", "CT1", "-aec", "ICHD", "127.0.0.1", &port];
    let echo = Program::new("echoscu").args(peer).output();
    assert!(echo.unwrap().status.success());
    // The file as we keep it is one that others read and send.
    let sent = Program::new("storescu").arg("-v").args(peer).arg(&file).output().unwrap();
    let words = String::from_utf8_lossy(&[sent.stdout, sent.stderr].concat()).into_owned();
    assert!(words.contains("Success"), "{words}");
    assert_eq!(scp.stored(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_storescu_proposes_in_its_order_we_accept_by_ours() {
    if Program::new("storescu").arg("--version").output().is_err() {
        eprintln!("left out: DCMTK is not installed");
        return;
    }
    let scp = scp(config()).await;
    let p = phantom(1);
    assert_eq!(store(&mut scp.scanner().await, &p).await, Status::SUCCESS);
    let file = scp.spool.rescan().unwrap().remove(0).path;
    let port = scp.port.to_string();
    let peer = ["-aet", "CT1", "-aec", "ICHD", "127.0.0.1", &port];
    // Big endian first, JPEG Lossless first, RLE first; all in one context with the uncompressed ones behind.
    for first in ["-xb", "-xs", "-xr"] {
        let sent = Program::new("storescu").args(["-d", "+C", first]).args(peer).arg(&file).output().unwrap();
        let words = String::from_utf8_lossy(&[sent.stdout, sent.stderr].concat()).into_owned();
        let accepted: Vec<&str> = words.lines().filter(|l| l.contains("Accepted Transfer Syntax")).collect();
        assert!(!accepted.is_empty(), "{words}");
        assert!(accepted.iter().any(|l| l.contains("=LittleEndianExplicit")), "{first}: {words}");
        let proposed = words.split("Proposed Transfer Syntax(es):").nth(1).unwrap().lines().nth(1).unwrap();
        assert!(
            !proposed.contains("=LittleEndianExplicit"),
            "{first} does not put another one first: {words}"
        );
    }
}
