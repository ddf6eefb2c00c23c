//! RAUC over D-Bus (`de.pengutronix.rauc.Installer`), which writes slots, checks signatures and talks to the boot
//! loader. Nothing here decides anything. Source: RAUC documentation, "D-Bus API".

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;
use zbus::zvariant::{OwnedValue, Value};

use super::gate::Bundle;

const NAME: &str = "de.pengutronix.rauc";
/// Argument of InstallBundle: refuse another bundle than the one that was inspected.
const MANIFEST_HASH: &str = "require-manifest-hash";
const INTERFACE: &str = "de.pengutronix.rauc.Installer";
/// Between two looks at the progress.
const LOOK: Duration = Duration::from_millis(300);
/// A question that RAUC answers from memory or one bundle's head; a large bundle's signature takes a while.
const ANSWER: Duration = Duration::from_secs(120);

/// Why RAUC did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RaucError {
    /// No system bus, or no RAUC on it.
    #[error("failed to reach RAUC on the system bus; is rauc.service running?")]
    Reach(#[source] zbus::Error),
    /// A call was refused; RAUC's own words.
    #[error("RAUC refused to {doing}: {words} (`journalctl -u rauc` says more)")]
    Refused {
        /// What was asked.
        doing: &'static str,
        /// Its answer.
        words: String,
    },
    /// No answer.
    #[error("RAUC gave no answer when asked to {0}")]
    Silent(&'static str),
    /// It ended while it was installing.
    #[error("RAUC ended while it was installing; the running slot is untouched, install again")]
    Lost,
    /// The installation failed; RAUC's last error.
    #[error("the installation failed: {0}")]
    Failed(String),
}

/// One slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// RAUC's name, `rootfs.0`.
    pub name: String,
    /// The boot loader's name, `A`.
    pub bootname: Option<String>,
    /// `booted`, `inactive` or `active`.
    pub state: String,
    /// What the boot loader thinks of it: `good` or `bad`.
    pub boot_status: Option<String>,
    /// Version of the bundle that was installed there; none for what came from the factory.
    pub version: Option<String>,
    /// When, RFC 3339.
    pub installed_at: Option<String>,
    /// When the boot loader was told to take it, RFC 3339.
    pub activated_at: Option<String>,
}

/// What RAUC knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RaucStatus {
    /// Which bundles fit.
    pub compatible: String,
    /// The slot that runs, by its boot name.
    pub booted: String,
    /// The slot that boots next, by RAUC's name.
    pub primary: Option<String>,
    /// `idle` or `installing`.
    pub operation: String,
    /// Bootable slots.
    pub slots: Vec<Slot>,
}

impl RaucStatus {
    /// The slot that runs.
    pub fn running(&self) -> Option<&Slot> {
        self.slots.iter().find(|s| s.state == "booted")
    }

    /// The boot loader's name of the slot that runs; `BootSlot` may be a device instead.
    pub fn running_name(&self) -> String {
        self.running().and_then(|s| s.bootname.clone()).unwrap_or_else(|| self.booted.clone())
    }

    /// A slot that could run instead.
    pub fn other(&self) -> Option<&Slot> {
        self.slots.iter().find(|s| s.state != "booted")
    }

    /// Another slot than the running one boots next, because somebody decided so. A running slot that is not marked good
    /// yet is no such decision: GRUB has spent its attempt at the boot, and RAUC then names the other slot.
    pub fn reboot_pending(&self) -> bool {
        self.primary.is_some()
            && self.primary.as_deref() != self.running().map(|s| s.name.as_str())
            && self.running().is_some_and(|s| s.boot_status.as_deref() == Some("good"))
    }
}

/// How far an installation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// 0 to 100.
    pub percent: i32,
    /// RAUC's words.
    pub step: String,
}

/// A connection to RAUC.
#[derive(Debug)]
pub struct Rauc {
    proxy: zbus::Proxy<'static>,
}

impl Rauc {
    /// Connects to the system bus (`DBUS_SYSTEM_BUS_ADDRESS` where set).
    pub async fn connect() -> Result<Self, RaucError> {
        let connection = zbus::Connection::system().await.map_err(RaucError::Reach)?;
        let proxy = zbus::proxy::Builder::new(&connection)
            .destination(NAME)
            .and_then(|b| b.path("/"))
            .and_then(|b| b.interface(INTERFACE))
            .map_err(RaucError::Reach)?
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .map_err(RaucError::Reach)?;
        Ok(Rauc { proxy })
    }

    /// Everything at once.
    pub async fn status(&self) -> Result<RaucStatus, RaucError> {
        let slots: Vec<(String, HashMap<String, OwnedValue>)> =
            self.call("read the slots", "GetSlotStatus", &()).await?;
        let slots = slots
            .into_iter()
            .filter(|(_, values)| values.contains_key("bootname"))
            .map(|(name, values)| Slot {
                name,
                bootname: text(&values, "bootname"),
                state: text(&values, "state").unwrap_or_default(),
                boot_status: text(&values, "boot-status"),
                version: text(&values, "bundle.version"),
                installed_at: text(&values, "installed.timestamp"),
                activated_at: text(&values, "activated.timestamp"),
            })
            .collect();
        Ok(RaucStatus {
            compatible: self.property("Compatible").await?,
            booted: self.property("BootSlot").await?,
            // A boot loader that names no primary is no reason to fail a status.
            primary: self.call("read the primary slot", "GetPrimary", &()).await.ok(),
            operation: self.property("Operation").await?,
            slots,
        })
    }

    /// What a bundle says of itself, once its signature is found right.
    pub async fn inspect(&self, source: &str) -> Result<Bundle, RaucError> {
        let doing = "read the bundle";
        let arguments = (source, HashMap::<&str, Value>::new());
        let inspected: Result<HashMap<String, OwnedValue>, _> =
            self.call(doing, "InspectBundle", &arguments).await;
        match inspected {
            Ok(info) => {
                let update = group(&info, "update");
                Ok(Bundle {
                    compatible: text(&update, "compatible").unwrap_or_default(),
                    version: text(&update, "version").unwrap_or_default(),
                    manifest_hash: text(&info, "manifest-hash"),
                })
            }
            // RAUC before 1.9 has only the older call.
            Err(RaucError::Refused { words, .. }) if words.contains("InspectBundle") => {
                let (compatible, version) = self.call(doing, "Info", &(source)).await?;
                Ok(Bundle { compatible, version, manifest_hash: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a bundle to the slot that does not run; tells how far it is. Ends with RAUC's verdict.
    pub async fn install(
        &self,
        source: &str,
        bundle: &Bundle,
        mut progress: impl FnMut(&Progress),
    ) -> Result<(), RaucError> {
        // Listening begins before asking: an installation may fail at once.
        let mut completed = self.proxy.receive_signal("Completed").await.map_err(RaucError::Reach)?;
        let mut owner = self.proxy.receive_owner_changed().await.map_err(RaucError::Reach)?;
        // What was looked at is what is installed, though the stick or the server may have changed it since.
        let hash = bundle.manifest_hash.as_deref().map(|hash| (MANIFEST_HASH, Value::from(hash)));
        let asked = (source, hash.into_iter().collect::<HashMap<&str, Value>>());
        match self.call::<()>("install", "InstallBundle", &asked).await {
            // RAUC says the hash for longer than it takes it.
            Err(RaucError::Refused { words, .. }) if words.contains(MANIFEST_HASH) => {
                self.call::<()>("install", "InstallBundle", &(source, HashMap::<&str, Value>::new())).await?;
            }
            asked => asked?,
        }
        let mut last = None;
        loop {
            tokio::select! {
                signal = completed.next() => {
                    let Some(signal) = signal else { return Err(RaucError::Lost) };
                    let result: i32 = signal.body().deserialize().map_err(RaucError::Reach)?;
                    if result == 0 {
                        return Ok(());
                    }
                    let words: String = self.property("LastError").await.unwrap_or_default();
                    return Err(RaucError::Failed(one_line(&words)));
                }
                // It may tell of the owner that is there first.
                Some(None) = owner.next() => return Err(RaucError::Lost),
                () = tokio::time::sleep(LOOK) => {
                    let now: (i32, String, i32) = self.property("Progress").await?;
                    let now = Progress { percent: now.0, step: one_line(&now.1) };
                    if last.as_ref() != Some(&now) {
                        progress(&now);
                        last = Some(now);
                    }
                }
            }
        }
    }

    /// Marks a slot (`booted`, `other` or a name) as `good`, `bad` or `active`; RAUC's words.
    pub async fn mark(&self, state: &str, slot: &str) -> Result<String, RaucError> {
        let (_, words): (String, String) = self.call("mark a slot", "Mark", &(state, slot)).await?;
        Ok(one_line(&words))
    }

    async fn call<R>(
        &self,
        doing: &'static str,
        method: &'static str,
        arguments: &(impl serde::Serialize + zbus::zvariant::DynamicType),
    ) -> Result<R, RaucError>
    where
        R: for<'d> zbus::zvariant::DynamicDeserialize<'d>,
    {
        let call = self.proxy.call_method(method, arguments);
        let reply = tokio::time::timeout(ANSWER, call).await.map_err(|_| RaucError::Silent(doing))?;
        let reply = reply.map_err(|error| refused(doing, error))?;
        reply.body().deserialize().map_err(|error| refused(doing, error))
    }

    async fn property<T>(&self, name: &'static str) -> Result<T, RaucError>
    where
        T: TryFrom<OwnedValue>,
        T::Error: Into<zbus::Error>,
    {
        tokio::time::timeout(ANSWER, self.proxy.get_property(name))
            .await
            .map_err(|_| RaucError::Silent(name))?
            .map_err(|error| refused(name, error))
    }
}

fn refused(doing: &'static str, error: zbus::Error) -> RaucError {
    match error {
        zbus::Error::MethodError(name, words, _)
            if name.as_str() != "org.freedesktop.DBus.Error.ServiceUnknown" =>
        {
            RaucError::Refused { doing, words: one_line(words.as_deref().unwrap_or(name.as_str())) }
        }
        other => RaucError::Reach(other),
    }
}

/// A group of a bundle's information. RAUC wraps it in a variant of its own, within the one that every value has.
fn group(info: &HashMap<String, OwnedValue>, name: &str) -> HashMap<String, OwnedValue> {
    let Some(mut value) = info.get(name).map(|v| &**v) else { return HashMap::new() };
    while let Value::Value(inner) = value {
        value = inner;
    }
    OwnedValue::try_from(value).ok().and_then(|v| v.try_into().ok()).unwrap_or_default()
}

fn text(values: &HashMap<String, OwnedValue>, key: &str) -> Option<String> {
    // Within the variant that every value has, some have one of their own.
    let mut value = &**values.get(key)?;
    while let Value::Value(inner) = value {
        value = inner;
    }
    value.downcast_ref::<String>().ok().filter(|s| !s.is_empty())
}

fn one_line(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_rauc_1_9_and_later_are_found_in_the_variant_within_the_variant() {
        let update = || Value::from(HashMap::from([("compatible", "box"), ("version", "1.1.0")]));
        for wrapped in [update(), Value::Value(Box::new(update()))] {
            let info = HashMap::from([("update".to_owned(), OwnedValue::try_from(wrapped).unwrap())]);
            let found = group(&info, "update");
            assert_eq!(text(&found, "compatible").as_deref(), Some("box"));
            assert_eq!(text(&found, "version").as_deref(), Some("1.1.0"));
        }
        assert!(group(&HashMap::new(), "update").is_empty());
    }
}
