//! MQTT topics (docs/MQTT.md). Levels are site and device names, checked by the configuration; never patient data.

use crate::config::Site;

fn device(site: &Site, rest: &str) -> String {
    format!("ichd/1/{}/dev/{}/{rest}", site.name, site.device)
}

/// Retained status; also the will.
pub fn status(site: &Site) -> String {
    device(site, "status")
}

/// Liveness of the pipeline.
pub fn heartbeat(site: &Site) -> String {
    device(site, "heartbeat")
}

/// The document of one alert.
pub fn alert(site: &Site, alert_id: &str) -> String {
    device(site, &format!("alert/{alert_id}"))
}

/// Every disposition.
pub fn study(site: &Site, study_ref: &str) -> String {
    device(site, &format!("study/{study_ref}"))
}

/// Result of an action.
pub fn reply(site: &Site, station: &str) -> String {
    device(site, &format!("reply/{station}"))
}

/// What an engineer's station asked for.
pub fn answer(site: &Site, station: &str) -> String {
    device(site, &format!("answer/{station}"))
}

/// `ichd/1/{site}`.
pub fn root(site: &Site) -> String {
    format!("ichd/1/{}", site.name)
}

/// What the daemon listens to: stations' status, and receipts, actions and requests for this device.
pub fn subscriptions(site: &Site) -> [String; 4] {
    let root = root(site);
    [
        format!("{root}/sta/+/status"),
        format!("{root}/sta/+/receipt/{}", site.device),
        format!("{root}/sta/+/action/{}", site.device),
        format!("{root}/sta/+/request/{}", site.device),
    ]
}

/// Where stations answer. A response topic may hold no wildcard: stations put their own name in place of `{station}`.
pub fn receipt(site: &Site) -> String {
    format!("ichd/1/{}/sta/{{station}}/receipt/{}", site.name, site.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_those_of_the_contract() {
        let site =
            Site { name: "north".into(), device: "ct-1".into(), profile: crate::config::Profile::Assist };
        assert_eq!(status(&site), "ichd/1/north/dev/ct-1/status");
        assert_eq!(alert(&site, "01J"), "ichd/1/north/dev/ct-1/alert/01J");
        assert_eq!(receipt(&site), "ichd/1/north/sta/{station}/receipt/ct-1");
    }
}
