//! Images on to further nodes: DCMTK receives them as they came, or in what it takes, or later.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::{Appliance, Mosquitto, Phantom, alone, dcmsend, free_port, storescu, wait_until};
use crate::report::Pacs;
use crate::tls::Authority;

fn rule(pacs: &Pacs, more: &str) -> String {
    format!("\n[[forward]]\nae-title = \"PACS\"\naddress = \"127.0.0.1:{}\"\n{more}\n", pacs.port)
}

fn appliance(broker: &Mosquitto, rules: &str) -> Appliance {
    Appliance::with(broker.port, &format!("free-bytes-min = 1000\n{rules}"))
}

/// Data sets by hash: what was sent and nothing else of a file.
fn data_sets(files: &[PathBuf]) -> BTreeSet<[u8; 32]> {
    files.iter().map(|f| ichd::dicom::dataset::sha256(f).unwrap()).collect()
}

fn bit_preserving() -> Vec<String> {
    vec!["+B".into()]
}

/// A secondary capture in the study of these files.
fn capture(files: &[PathBuf], copy: &Path) -> PathBuf {
    std::fs::copy(&files[3], copy).unwrap();
    let ended = Command::new("dcmodify")
        .args(["-nb", "-imt", "-gin", "-m", "0008,0016=1.2.840.10008.5.1.4.1.1.7", "-m", "0008,0060=OT"])
        .arg(copy)
        .status()
        .expect("dcmtk is needed");
    assert!(ended.success());
    let class = ichd::dicom::SliceHeader::read(copy).unwrap().sop_class;
    assert_eq!(class, "1.2.840.10008.5.1.4.1.1.7");
    copy.to_owned()
}

#[test]
fn a_node_that_takes_ct_only_gets_its_series_whatever_was_set_aside() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("storescp.cfg");
    let text = "[[TransferSyntaxes]]\n[Plain]\nTransferSyntax1 = LittleEndianExplicit\n\
                [[PresentationContexts]]\n[Narrow]\nPresentationContext1 = CTImageStorage\\Plain\n\
                [[Profiles]]\n[Default]\nPresentationContexts = Narrow\n";
    std::fs::write(&profile, text).unwrap();
    let node = Pacs::with(&["+B".into(), "-xf".into(), profile.display().to_string(), "Default".into()]);
    let appliance = appliance(&broker, &rule(&node, ""));
    let files = &Phantom::quiet().files;
    assert!(dcmsend(appliance.port, &[capture(files, &dir.path().join("aside.dcm"))]).0);
    wait_until("what was set aside is refused", || appliance.log().contains("event=forward_failed"));
    assert!(storescu(appliance.port, files, &[]).0);
    assert_eq!(data_sets(&node.received(30)), data_sets(files));
}

#[test]
fn a_node_that_is_down_gets_every_data_set_bit_for_bit_later_and_holds_up_no_other() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let up = Pacs::with(&bit_preserving());
    let mut late = Pacs::down();
    late.more = bit_preserving();
    let stranger = Pacs::start();
    let rules = [rule(&late, ""), rule(&up, "from = [\"CT1\"]"), rule(&stranger, "from = [\"CT9\"]")];
    let mut appliance = appliance(&broker, &rules.concat());
    let files = &Phantom::bleed().files;
    assert!(storescu(appliance.port, files, &[]).0);
    assert_eq!(data_sets(&up.received(30)), data_sets(files));
    wait_until("the other one has failed", || appliance.log().contains("event=forward_failed"));
    appliance.kill();
    appliance.up();
    late.up();
    assert_eq!(data_sets(&late.received(30)), data_sets(files));
    wait_until("it is settled", || appliance.log().matches("event=forwarded ").count() == 2);
    // What was delivered is not sent again; a rule for another scanner sent nothing.
    assert_eq!((up.files().len(), stranger.files().len()), (30, 0));
    assert!(!appliance.log().contains("event=forward_recoded"), "{}", appliance.log());
}

#[test]
fn rules_choose_by_verdict_a_dry_run_sends_nothing_and_what_was_set_aside_follows() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let (bleeds, dry) = (Pacs::start(), Pacs::start());
    let rules = [rule(&bleeds, "dispositions = [\"suspected\"]"), rule(&dry, "dry-run = true")];
    let appliance = appliance(&broker, &rules.concat());
    // A secondary capture that the scanner pushes with each study.
    let dir = tempfile::tempdir().unwrap();
    for (phantom, name) in [(Phantom::quiet(), "quiet.dcm"), (Phantom::bleed(), "bleed.dcm")] {
        let aside = capture(&phantom.files, &dir.path().join(name));
        assert!(dcmsend(appliance.port, &[aside]).0);
        assert!(storescu(appliance.port, &phantom.files, &[]).0);
    }
    appliance.dispositions(2);
    let study = |file: &Path| ichd::dicom::SliceHeader::read(file).unwrap().study;
    let received = bleeds.received(31);
    assert!(received.iter().all(|f| study(f) == study(&Phantom::bleed().files[0])));
    wait_until("the dry run says what it would do", || {
        appliance.log().matches("event=forward_dry_run").count() == 4
    });
    assert!(dry.files().is_empty());
    // Longer than the other one took.
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!((bleeds.files().len(), dry.files().len()), (31, 0));
}

#[test]
fn only_a_node_that_does_not_take_the_encoding_gets_another_and_that_is_said() {
    let _alone = alone();
    let broker = Mosquitto::start();
    // One takes everything as it is, one only implicit VR.
    let (any, plain) = (Pacs::with(&["+B".into(), "+xr".into()]), Pacs::with(&["+xi".into()]));
    let appliance = appliance(&broker, &[rule(&any, ""), rule(&plain, "")].concat());
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = Phantom::quiet()
        .files
        .iter()
        .map(|file| {
            let out = dir.path().join(file.file_name().unwrap());
            assert!(Command::new("dcmcrle").arg(file).arg(&out).status().expect("dcmtk is needed").success());
            out
        })
        .collect();
    assert!(dcmsend(appliance.port, &files).0);
    assert_eq!(data_sets(&any.received(30)), data_sets(&files));
    let received = plain.received(30);
    wait_until("it is said", || appliance.log().contains("event=forward_recoded"));
    assert_eq!(appliance.log().matches("event=forward_recoded").count(), 1, "{}", appliance.log());
    let by_sop = |file: &PathBuf| {
        let header = ichd::dicom::SliceHeader::read(file).unwrap();
        let image = ichd::infer::hounsfield::decode(file, &header).unwrap();
        (header.sop.to_string(), (header.transfer_syntax, image))
    };
    let sent: std::collections::BTreeMap<_, _> = files.iter().map(by_sop).collect();
    for (sop, (syntax, image)) in received.iter().map(by_sop) {
        assert_eq!(syntax, "1.2.840.10008.1.2");
        assert_eq!(image, sent[&sop].1, "{sop}");
    }
    crate::report::verify(&received[..3]);
}

#[test]
fn images_go_over_mutual_tls_where_that_is_asked_for() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let authority = Authority::new();
    authority.sign("dicom", 365);
    authority.sign("pacs", 365);
    let with = |more: Vec<String>| Pacs::with(&[bit_preserving(), more].concat());
    let node = with(authority.client("pacs"));
    // Another authority's, and one that speaks no TLS: neither is talked to.
    let stranger = Authority::new();
    stranger.sign("pacs", 365);
    let (foreign, plain) = (with(stranger.client("pacs")), with(Vec::new()));
    let rules: String = [&foreign, &plain, &node].map(|pacs| rule(pacs, "tls = true")).concat();
    let table = authority.table(free_port(), &format!("plaintext-ae-titles = [\"CT1\"]\n{rules}"));
    let appliance = Appliance::with(broker.port, &table);
    let files = &Phantom::quiet().files;
    assert!(storescu(appliance.port, files, &[]).0);
    assert_eq!(data_sets(&node.received(30)), data_sets(files));
    wait_until("the other ones have failed", || {
        appliance.log().matches("event=forward_failed").count() >= 2
            && appliance.log().contains("no association: tls_failed")
    });
    assert_eq!((foreign.files().len(), plain.files().len()), (0, 0));
}
