//! The broker under test: Mosquitto as a process of our own, and what the kernel says that it costs.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ticks of `/proc/PID/stat` per second: `sysconf(_SC_CLK_TCK)`, 100 on every Linux of today.
const TICKS_PER_S: f64 = 100.0;

/// A running broker; ended when dropped.
pub struct Broker {
    program: PathBuf,
    folder: tempfile::TempDir,
    child: Child,
    /// Where it listens, on loopback.
    pub port: u16,
}

impl Broker {
    /// Starts Mosquitto as `ichd enrol` configures it, but for TLS: persistence, limits, one listener.
    pub fn start(program: PathBuf) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::write(
            folder.path().join("mosquitto.conf"),
            format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 1048576\npersistence true\n\
                 persistence_location {}/\nautosave_interval 60\nmax_queued_messages 100000\nsys_interval 1\nlog_type error\n\
                 user root\n",
                folder.path().display()
            ),
        )?;
        let child = spawn(&program, &folder, port)?;
        Ok(Broker { program, folder, child, port })
    }

    /// Kills it and starts it again, as after a power cut of the region's data centre.
    pub fn restart(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.program, &self.folder, self.port)?;
        Ok(())
    }

    /// Processor time so far, s.
    pub fn cpu_s(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name may hold spaces; the fields that count come after its parenthesis.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / TICKS_PER_S
    }

    /// Memory that it holds, MiB.
    pub fn rss_mib(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    }
}

/// Starts it and waits until it listens.
fn spawn(program: &PathBuf, folder: &tempfile::TempDir, port: u16) -> std::io::Result<Child> {
    let mut child = Command::new(program)
        .arg("-c")
        .arg(folder.path().join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    for _ in 0..100 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(child);
        }
        if let Some(status) = child.try_wait()? {
            return Err(std::io::Error::other(format!("it ended with {status}")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(child)
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Open files that this process and the broker it starts may have.
pub fn files_max() -> usize {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("Max open files")).unwrap_or("");
    line.split_whitespace().nth(3).and_then(|n| n.parse().ok()).unwrap_or(1024)
}
