//! Where log events go: the journal with structured fields under systemd, readable lines elsewhere.

use std::fmt::Write as _;
use std::io::Write as _;

use log::kv::{Error, Key, Value, VisitSource};

use super::Failure;

/// Installs the logger; `ICHD_LOG` (error, warn, info, debug, trace) sets the level, default info.
pub fn install() -> Result<(), Failure> {
    let level = match std::env::var("ICHD_LOG") {
        Ok(text) => text.parse().map_err(|_| Failure {
            code: 64,
            message: format!("ICHD_LOG is `{text}`; use error, warn, info, debug or trace"),
        })?,
        Err(_) => log::LevelFilter::Info,
    };
    log::set_max_level(level);
    let installed = if systemd_journal_logger::connected_to_journal() {
        let journal = systemd_journal_logger::JournalLog::new()
            .map_err(|e| Failure::internal(format!("failed to open the journal: {e}")))?;
        log::set_boxed_logger(Box::new(Ours(journal)))
    } else {
        log::set_boxed_logger(Box::new(Ours(Lines)))
    };
    installed.map_err(|e| Failure::internal(e.to_string()))
}

/// Our own events at any level. Libraries may print what peers sent, or the password in `MqttOptions`: of theirs only
/// warnings, whatever `ICHD_LOG` says.
struct Ours<L>(L);

impl<L: log::Log> log::Log for Ours<L> {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn || metadata.target().starts_with("ichd")
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            crate::evidence::counts::count(record);
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let mut fields = Fields(String::new());
        let _ = record.key_values().visit(&mut fields);
        let time = crate::clock::rfc3339(crate::clock::wall_ms());
        // Where nobody can listen any more, `eprintln!` would panic: the journal may fail, an alert must not notice.
        let _ = writeln!(std::io::stderr(), "{time} {:5} {}{}", record.level(), record.args(), fields.0);
    }

    fn flush(&self) {}
}

struct Fields(String);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let _ = write!(self.0, " {key}={value}");
        Ok(())
    }
}
