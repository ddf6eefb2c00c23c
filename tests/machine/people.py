"""Who is around the machine: the scanner, the station that acts, the viewer that sees, the server with bundles."""

import http.server
import json
import pathlib
import re
import shutil
import ssl
import subprocess
import threading
import time
import uuid

from image import fresh, sh
from machine import Machine

SITE, DEVICE = "north", "ct-1"
ALERTS = f"ichd/1/{SITE}/dev/{DEVICE}/alert/+"


class Site:
    """What `ichd enrol` makes, off the box, and the configuration that field service brings to it."""

    def __init__(self, work: pathlib.Path, ichd: pathlib.Path):
        self.folder = work / "site"
        if self.folder.exists():
            return
        enrol = [ichd, "enrol", "--dir", self.folder]
        quiet = {"stdout": subprocess.DEVNULL}
        sh(*enrol, "init", "--site", SITE, "--broker", "127.0.0.1", **quiet)
        sh(*enrol, "add", "device", DEVICE, **quiet)
        sh(*enrol, "add", "station", "nurse-1", **quiet)
        sh(*enrol, "add", "viewer", "wall", **quiet)

    def find(self, name: str, under: str = "") -> pathlib.Path:
        found = [f for f in self.folder.rglob(name) if under in f.parts or not under]
        assert found, f"enrolment made no {name}"
        return found[0]

    def stick(self, work: pathlib.Path, updates_port: int) -> pathlib.Path:
        """What field service makes of the enrolment, as yocto/README.md says under "Commissioning"."""
        folder = fresh(work / "stick")
        for part in ["daemon", "broker"]:
            shutil.copytree(self.folder / part, folder / "site" / part)
        shutil.copytree(self.folder / "device" / DEVICE, folder / "site/device")
        (folder / "console.key").write_text("of this test alone, 32 bytes at least")
        (folder / "site/90-site.toml").write_text(f"""[receive]
calling-ae-titles = ["CT1"]
peer-addresses = ["10.0.2.2"]
free-bytes-min = 50000000
[spool]
free-bytes-target = 60000000
[proof]
limit-s = 600                   # an emulated processor
[health]
stage-silence-max-s = 300
[update]
source = "https://10.0.2.2:{updates_port}/update.raucb"
""")
        (folder / "site/site.nft").write_text("add element inet ichd scanners { 10.0.2.2 }\nadd element inet ichd stations { 10.0.2.2 }\n")
        image = work / "stick.img"
        image.unlink(missing_ok=True)
        sh("mkfs.vfat", "-C", "-n", "ICHD-SITE", image, 16 * 1024, stdout=subprocess.DEVNULL)
        sh("mcopy", "-s", "-i", image, folder / "site", folder / "console.key", "::/")
        return image


class Wall:
    """Stations, over mutual TLS from outside: one that sees, one that acts."""

    def __init__(self, machine: Machine, site: Site):
        self.machine, self.site = machine, site

    def _tls(self, role: str, name: str) -> list[str]:
        files = {"--cafile": "ca.crt", "--cert": f"{role}.crt", "--key": f"{role}.key"}
        words = ["-h", "127.0.0.1", "-p", str(self.machine.ports[8883]), "-V", "5", "-q", "1", "-i", name]
        return words + [w for option, file in files.items() for w in (option, str(self.site.find(file, name)))]

    def status(self) -> dict:
        """The device's, as the broker keeps it."""
        topic = f"ichd/1/{SITE}/dev/{DEVICE}/status"
        seen = subprocess.run(["mosquitto_sub", *self._tls("viewer", "wall"), "-t", topic, "-C", "1", "-W", "5", "-F", "%p"], capture_output=True, text=True)
        return json.loads(seen.stdout) if seen.stdout.strip() else {}

    def documents(self, listen_s: int = 4) -> dict[str, dict]:
        """Every alert document that the broker holds for somebody who comes now."""
        seen = subprocess.run(["mosquitto_sub", *self._tls("viewer", "wall"), "-t", ALERTS, "-W", str(listen_s), "-F", "%p"],
                              capture_output=True, text=True)
        documents = {}
        for line in seen.stdout.splitlines():
            if line.startswith("{"):
                document = json.loads(line)
                documents[document["alert_id"]] = document
        return documents

    def findings(self, listen_s: int = 4) -> dict[str, dict]:
        return {k: d for k, d in self.documents(listen_s).items() if d["kind"] == "finding"}

    def act(self, alert: dict, verb: str = "ack"):
        """A named person answers."""
        tls = self._tls("station", "nurse-1")
        root = f"ichd/1/{SITE}/sta/nurse-1"
        status = {"schema": "ichd.station/1", "state": "ready", "role": "nurse", "ward": "1", "user": "n.night", "sound_ok": True,
                  "visible": True, "version": "test", "shift_started_at": None, "kind": "page"}
        action = {"schema": "ichd.action/1", "action_id": str(uuid.uuid4()), "alert_id": alert["alert_id"], "rev": alert["rev"],
                  "verb": verb, "user": "n.night", "reason": None, "feedback": None,
                  "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 600))}
        sh("mosquitto_pub", *tls, "-t", f"{root}/status", "-r", "-m", json.dumps(status))
        sh("mosquitto_pub", *tls, "-t", f"{root}/action/{DEVICE}", "-m", json.dumps(action))
        # It leaves again: proofs of life must not wait for it.
        sh("mosquitto_pub", *tls, "-t", f"{root}/status", "-r", "-m", json.dumps(status | {"state": "offline"}))


class Scanner:
    """Sends phantoms and remembers what the box said is stored."""

    def __init__(self, machine: Machine, phantom: pathlib.Path):
        self.machine, self.phantom, self.seed = machine, phantom, 1000
        self.stored: set[str] = set()  # SOP Instance UIDs that the box has answered for
        self.names: dict[str, str] = {}

    def series(self) -> list[pathlib.Path]:
        self.seed += 1
        folder = self.machine.work / "series" / str(self.seed)
        sh(self.phantom, "series", "--seed", 12, "--uid-seed", self.seed, "--bleed", "intraparenchymal", "--volume-ml", 45,
           "--slices", 8, "--step-mm", 12, "--matrix", 256, "--out", fresh(folder), stdout=subprocess.DEVNULL)
        files = sorted(folder.rglob("*.dcm"))
        self.names |= {str(file): sop_uid(file) for file in files}
        return files

    def send(self, files: list[pathlib.Path], tries: int = 1) -> int:
        """How many were acknowledged with success; each of them is held against the box later."""
        """One instance after the other is noted as soon as the box has said that it is stored."""
        taken = 0
        for attempt in range(tries):
            if attempt:
                time.sleep(3)
            process = subprocess.Popen(
                ["storescu", "-v", "-aet", "CT1", "-aec", "ICHD", "-to", "30", "-ta", "60", "-td", "60", "127.0.0.1", str(self.machine.ports[104]),
                 *map(str, files)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
            taken, current = 0, None
            for line in process.stdout:
                sending = re.search(r"Sending file: (.*)", line)
                if sending:
                    current = self.names[sending[1]]
                if "Received Store Response (Success)" in line and current:
                    self.stored.add(current)
                    taken += 1
            process.wait()
            if process.returncode == 0 and taken == len(files):
                break
        return taken


def sop_uid(file: pathlib.Path) -> str:
    words = subprocess.run(["dcmdump", "+P", "0008,0018", str(file)], capture_output=True, text=True, check=True).stdout
    return re.search(r"\[([0-9.]+)\]", words)[1]


class Updates:
    """An HTTPS server with one bundle on offer, and byte ranges as RAUC's streaming asks for."""

    def __init__(self, server_pem: pathlib.Path):
        self.offer: pathlib.Path | None = None
        self.bytes_sent = 0
        self.first_s = self.last_s = 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, body: bool):
                if outer.offer is None:
                    return self.send_error(404)
                size = outer.offer.stat().st_size
                first, last = 0, size - 1
                asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if asked:
                    first, last = int(asked[1]), min(int(asked[2] or last), last)
                self.send_response(206 if asked else 200)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(last - first + 1))
                if asked:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                self.end_headers()
                outer.first_s = outer.first_s or time.monotonic()
                if body:
                    with outer.offer.open("rb") as file:
                        file.seek(first)
                        left = last - first + 1
                        while left:
                            part = file.read(min(left, 1 << 18))
                            self.wfile.write(part)
                            outer.bytes_sent += len(part)
                            outer.last_s = time.monotonic()
                            left -= len(part)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a machine that lost power hangs up

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server_pem)
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
