"""The bridge template between two real Mosquittos over mutual TLS: what the region gets, and what it does not."""

import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "yocto/meta-ichd/recipes-core/ichd-host/files/region.conf"
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Bridge(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.ports = {"region": free_port(), "region-tls": free_port(), "site": free_port()}
        self.certificates()
        f = self.folder
        (f / "region.conf").write_text(
            f"user root\nallow_anonymous true\nlistener {self.ports['region']} 127.0.0.1\nlistener {self.ports['region-tls']} 127.0.0.1\n"
            f"cafile {f}/ca.crt\ncertfile {f}/broker.crt\nkeyfile {f}/broker.key\nrequire_certificate true\nuse_identity_as_username true\n")
        text = TEMPLATE.read_text().replace("SITE", "north").replace("REGION", f"localhost:{self.ports['region-tls']}")
        text = re.sub("/etc/mosquitto/ichd/region", str(f), text)
        (f / "site.conf").write_text(f"user root\nallow_anonymous true\nlistener {self.ports['site']} 127.0.0.1\n{text}")
        self.region = self.start("region")
        self.start("site")

    def start(self, name):
        process = subprocess.Popen([MOSQUITTO, "-c", self.folder / f"{name}.conf"], stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (process.kill(), process.wait()))
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.ports[name])).close()
                return process
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"{name} did not start")

    def certificates(self):
        def run(*command):
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        key = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run(*key, "-x509", "-subj", "/CN=region", "-keyout", "ca.key", "-out", "ca.crt")
        (self.folder / "broker.ext").write_text("subjectAltName=DNS:localhost\n")
        (self.folder / "site.ext").write_text("extendedKeyUsage=clientAuth\n")
        for name, who in [("broker", "localhost"), ("site", "north")]:
            run(*key, "-subj", f"/CN={who}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            run("openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", f"{name}.ext", "-out", f"{name}.crt")

    def say(self, broker, topic, text, *options):
        subprocess.run(["mosquitto_pub", "-p", str(self.ports[broker]), "-q", "1", "-t", topic, "-m", text, *options], check=True)

    def hears(self, broker, topic, seconds=1, until=None):
        for _ in range(30):
            words = ["mosquitto_sub", "-p", str(self.ports[broker]), "-q", "1", "-t", topic, "-W", str(seconds), "-F", "%t %p"]
            seen = subprocess.run(words, capture_output=True, text=True).stdout
            if until is None or until in seen:
                return seen
        return seen

    def test_status_and_alerts_go_out_and_nothing_else_either_way(self):
        dev = "ichd/1/north/dev/ct-1"
        self.say("site", "ichd/1/north/sta/nurse-1/status", "a person's name", "-r")
        self.say("site", f"{dev}/study/0123", "a disposition", "-r")
        self.say("site", "ichd/1/south/dev/ct-1/status", "another site's name", "-r")
        self.say("site", f"{dev}/status", "ready", "-r")
        self.say("site", f"{dev}/alert/01A", "K7P-29", "-r")
        seen = self.hears("region", "#", until="K7P-29")
        # At least once: what was kept and what came live are the same documents.
        self.assertEqual(set(seen.split("\n")) - {""}, {f"{dev}/alert/01A K7P-29", f"{dev}/status ready"})
        # An order from the region, a forged alert: neither comes in.
        self.say("region", "ichd/1/north/sta/nurse-1/action/ct-1", "forged", "-r")
        self.say("region", f"{dev}/alert/01B", "forged", "-r")
        time.sleep(1)
        self.assertNotIn("forged", self.hears("site", "#"))

    def test_what_the_region_missed_comes_afterwards(self):
        dev = "ichd/1/north/dev/ct-1"
        self.say("site", f"{dev}/status", "ready", "-r")
        self.hears("region", "#", until="ready")
        self.region.kill()
        self.region.wait()
        for n in range(20):
            self.say("site", f"{dev}/alert/{n:02}", "while away", "-r")
        self.start("region")
        for _ in range(40):
            seen = self.hears("region", f"{dev}/alert/+")
            arrived = {line for line in seen.split("\n") if "while away" in line}
            if len(arrived) == 20:
                return
        self.fail(f"only {len(arrived)} of 20 alerts arrived")


if __name__ == "__main__":
    unittest.main()
