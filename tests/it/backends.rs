//! ONNX Runtime asked for and not to be had: tract reads on, and the box says that it is degraded.

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, storescu, wait_until};

#[test]
fn without_its_library_a_box_reads_with_tract_alerts_and_says_degraded() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    appliance.kill();
    let drop_ins = appliance.config().with_extension("toml.d");
    std::fs::create_dir(&drop_ins).unwrap();
    let no_library = appliance.dir.path().join("libonnxruntime.so");
    std::fs::write(&no_library, "not a library").unwrap();
    let text = format!("[infer]\nbackend = \"onnxruntime\"\nonnxruntime-library = {no_library:?}\n");
    std::fs::write(drop_ins.join("backend.toml"), text).unwrap();
    let listener = Listener::on(&broker);
    appliance.up();
    wait_until("degraded on MQTT, with its reason", || {
        listener.drain().iter().any(|(_, b)| {
            b["state"] == "degraded"
                && b["reasons"].as_array().is_some_and(|r| r.contains(&"backend_failed:onnxruntime".into()))
        })
    });
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    assert_eq!(appliance.dispositions(1)[0]["disposition"], "suspected");
}
