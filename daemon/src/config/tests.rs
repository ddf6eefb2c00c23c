use super::*;

const SITE: &str = "[site]\nname = \"north\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n";

fn checked(text: &str) -> Result<(), String> {
    let config = Config::parse(&format!("{SITE}{text}"))?;
    check::check(&config).map_err(|e| e.to_string())
}

#[test]
fn the_smallest_configuration_is_safe() {
    let config = Config::parse(SITE).unwrap();
    assert!(config.receive.listen.ip().is_loopback());
    assert!(config.receive.calling_ae_titles.is_empty());
    checked("").unwrap();
}

#[test]
fn the_shipped_example_loads_and_names_assist() {
    let config = Config::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/ichd.toml"))).unwrap();
    assert_eq!(config.site.profile, Profile::Assist);
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_right_one() {
    let message = checked("[receive]\nae-titel = \"ICHD\"\n").unwrap_err();
    assert_eq!(message, "unknown key `ae-titel`, did you mean `ae-title`?");
}

#[test]
fn nothing_is_reported_unless_a_destination_is_named() {
    assert!(Config::parse(SITE).unwrap().report.destination.is_empty());
    checked("[[report.destination]]\nae-title = \"PACS\"\naddress = \"pacs.example:104\"\n").unwrap();
    let no_port = "[[report.destination]]\nae-title = \"PACS\"\naddress = \"10.1.2.3\"\n";
    assert!(checked(no_port).unwrap_err().contains("report.destination.address"));
    let tls = "[[report.destination]]\nae-title = \"PACS\"\naddress = \"h:104\"\ntls = true\n";
    assert!(checked(tls).unwrap_err().contains("add [receive.tls]"));
    let kind = "[[report.destination]]\nae-title = \"PACS\"\naddress = \"h:104\"\nobjects = [\"sr\"]\n";
    assert!(checked(kind).unwrap_err().contains("report"));
}

#[test]
fn nothing_is_forwarded_unless_a_rule_says_so() {
    assert!(Config::parse(SITE).unwrap().forward.is_empty());
    let rule = "[[forward]]\nae-title = \"ARCHIVE\"\naddress = \"archive:104\"\n";
    checked(rule).unwrap();
    assert!(checked(&rule.replace(":104", "")).unwrap_err().contains("forward.address"));
    assert!(checked(&format!("{rule}tls = true\n")).unwrap_err().contains("add [receive.tls]"));
    assert!(checked(&format!("{rule}{rule}")).unwrap_err().contains("twice"));
    assert!(checked(&format!("{rule}dispositions = [\"positive\"]\n")).is_err());
}

#[test]
fn audit_messages_leave_only_over_mutual_tls_and_only_if_asked_for() {
    assert!(Config::parse(SITE).unwrap().atna.is_none());
    let atna = "[atna]\naddress = \"audit:6514\"\nca = \"a\"\ncertificate = \"b\"\nkey = \"c\"\n";
    checked(atna).unwrap();
    assert!(checked(&atna.replace(":6514", "")).unwrap_err().contains("atna.address"));
    assert!(checked("[atna]\naddress = \"audit:6514\"\n").unwrap_err().contains("ca"));
}

#[test]
fn room_is_made_before_a_scanner_is_refused() {
    let message = checked("[spool]\nfree-bytes-target = 1000\n").unwrap_err();
    assert!(message.contains("spool.free-bytes-target"), "{message}");
    checked("[spool]\nkeep-days = 0\n").unwrap();
}

#[test]
fn metrics_leave_the_box_only_through_somebody_elses_door() {
    assert!(Config::parse(SITE).unwrap().metrics.listen.is_none());
    checked("[metrics]\nlisten = \"127.0.0.1:9273\"\n").unwrap();
    assert!(checked("[metrics]\nlisten = \"0.0.0.0:9273\"\n").unwrap_err().contains("metrics.listen"));
}

#[test]
fn a_bad_value_names_key_and_mend() {
    let message = checked("[alert]\nbroker-host = \"10.0.0.9\"\n").unwrap_err();
    assert!(message.contains("alert.tls") && message.contains("add [alert.tls]"), "{message}");
    let peer = "[receive]\ncalling-ae-titles = [\"CT1\"]\n[[receive.peer]]\nae-title = \"CT1\"\n";
    checked(&format!("{peer}address = \"10.1.2.3:104\"\n")).unwrap();
    assert!(checked(&format!("{peer}address = \"10.1.2.3\"\n")).unwrap_err().contains("peer.address"));
    assert!(checked(&peer.replace("[\"CT1\"]", "[]")).unwrap_err().contains("address"));
    let tls = "[receive.tls]\nca = \"c\"\ncertificate = \"c\"\nkey = \"k\"\n";
    assert!(checked(&format!("{tls}listen = \"127.0.0.1:11112\"\n")).unwrap_err().contains("2762"));
    let stranger = format!("{tls}listen = \"127.0.0.1:2762\"\nplaintext-ae-titles = [\"CT9\"]\n");
    assert!(checked(&stranger).unwrap_err().contains("plaintext-ae-titles"));
    let bound = format!("{tls}listen = \"127.0.0.1:2762\"\n[receive.tls.ae-titles]\nct9 = [\"CT9\"]\n");
    assert!(checked(&bound).unwrap_err().contains("receive.tls.ae-titles"));
    assert!(checked("[receive]\npdu-bytes-max = 16\n").unwrap_err().contains("receive.pdu-bytes-max"));
    assert!(checked("[proof]\ninterval-s = 5\n").unwrap_err().contains("proof.interval-s"));
    assert!(checked("[alert.stations]\n\"Ward 3\" = \"nurse\"\n").unwrap_err().contains("alert.stations"));
    let unsorted =
        "[escalation]\nsteps = [{ after-s = 60, roles = [\"a\"] }, { after-s = 30, roles = [\"b\"] }]\n";
    assert!(checked(unsorted).unwrap_err().contains("escalation.steps"));
    let shift = "[[escalation.shift]]\nname = \"night\"\nfrom = \"25:00\"\nto = \"07:00\"\nfirst = [\"nurse\"]\nsteps = []\n";
    assert!(checked(shift).unwrap_err().contains("escalation.shift"));
    checked(&shift.replace("25", "22")).unwrap();
    let key = if cfg!(feature = "ort") { "infer.onnxruntime-library" } else { "infer.backend" };
    assert!(checked("[infer]\nbackend = \"onnxruntime\"\n").unwrap_err().contains(key));
    assert!(Config::parse("[site]\nname = \"north\"\ndevice = \"ct-1\"\n").unwrap_err().contains("profile"));
}
#[test]
fn the_station_page_leaves_the_machine_only_over_mutual_tls() {
    checked("").unwrap();
    let page = |rest: &str| checked(&format!("[station]\nbroker-url = \"wss://box:8884\"\n{rest}"));
    page("listen = \"127.0.0.1:8443\"\n").unwrap();
    let refused = page("listen = \"0.0.0.0:8443\"\n").unwrap_err();
    assert!(refused.contains("add [station.tls]"), "{refused}");
    let tls = "[station.tls]\ncertificate = \"a\"\nkey = \"b\"\n";
    let leaves = "listen = \"0.0.0.0:8443\"\n";
    assert!(page(&format!("{leaves}{tls}")).unwrap_err().contains("station.tls.ca"));
    page(&format!("{leaves}{tls}ca = \"c\"\n")).unwrap();
    page(&format!("{leaves}allow-anonymous = true\n{tls}")).unwrap();
}

#[test]
fn the_page_is_given_no_broker_it_may_not_use() {
    let url = |url: &str, tls: &str| {
        checked(&format!("[station]\nlisten = \"127.0.0.1:1\"\nbroker-url = \"{url}\"\n{tls}"))
    };
    let tls = "[station.tls]\ncertificate = \"a\"\nkey = \"b\"\n";
    url("ws://127.0.0.1:9001", "").unwrap();
    url("wss://[fd00::1]:8884/mqtt", tls).unwrap();
    for (bad, tls) in
        [("", ""), ("mqtts://box", ""), ("ws://box", tls), ("wss://", ""), ("wss://box; script-src *", "")]
    {
        assert!(url(bad, tls).unwrap_err().contains("station.broker-url"), "{bad}");
    }
}
