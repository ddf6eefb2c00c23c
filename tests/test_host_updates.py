"""Who may have a bundle installed: the signing authority's list and RAUC's policy on the bus, by the real RAUC and bus."""

import os
import pathlib
import pwd
import re
import shutil
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
RAUC = ROOT / "yocto/meta-ichd/recipes-core/rauc/files"
TOOLS = all(shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin") for tool in ("rauc", "mksquashfs", "openssl", "dbus-daemon", "dbus-send"))
BUS = """<busconfig><type>system</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/><allow send_type="method_return"/>
<allow send_type="error"/><allow receive_type="*"/><allow send_destination="org.freedesktop.DBus"/></policy>
<include>{policy}</include></busconfig>"""


@unittest.skipUnless(TOOLS, "left out: needs rauc, squashfs-tools, openssl, dbus")
class Bundles(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o755)
        self.keys = self.folder / "keys"
        self.sign()

    def sign(self, *arguments):
        subprocess.run([ROOT / "yocto/signing", *arguments, self.keys], check=True, stdout=subprocess.DEVNULL)

    def bundle(self, name):
        folder = self.folder / name
        folder.mkdir()
        (folder / "rootfs.img").write_bytes(bytes(8192))
        (folder / "manifest.raucm").write_text("[update]\ncompatible=test\nversion=1.0.0\n[image.rootfs]\nfilename=rootfs.img\n")
        path = self.folder / f"{name}.raucb"
        subprocess.run(["rauc", f"--cert={self.keys}/bundle.cert.pem", f"--key={self.keys}/bundle.key.pem", "bundle", folder, path],
                       check=True, capture_output=True)
        return path

    def system(self, keyring):
        """The image's own [keyring], with the file where it lies here."""
        shipped = (RAUC / "system.conf").read_text()
        section = re.search(r"^\[keyring\]\n(.*?)^\[", shipped, re.M | re.S)[1].replace("/usr/lib/rauc/ca.cert.pem", str(keyring))
        path = self.folder / "system.conf"
        slots = "".join(f"[slot.rootfs.{n}]\ndevice={self.folder}/slot-{n}\ntype=raw\nbootname={name}\n" for n, name in enumerate("AB"))
        path.write_text(f"[system]\ncompatible=test\nbootloader=noop\nmountprefix={self.folder}/mnt\nstatusfile={self.folder}/status\n"
                        f"[keyring]\n{section}{slots}")
        return path

    def believed(self, bundle, keyring=None):
        conf = self.system(keyring or self.keys / "ca.cert.pem")
        ran = subprocess.run(["rauc", f"--conf={conf}", "info", bundle], capture_output=True, text=True)
        return ran.returncode == 0, ran.stderr

    def test_a_stolen_bundle_key_is_revoked_by_the_next_bundle(self):
        """Who carries the old list believes both; who carries the new one, only what the new key signed."""
        before = self.folder / "before.pem"
        old = self.bundle("old")
        shutil.copy(self.keys / "ca.cert.pem", before)
        self.assertEqual(self.believed(old)[0], True, self.believed(old)[1])
        self.sign("--renew")
        new = self.bundle("new")
        self.assertEqual(self.believed(new, before)[0], True, "a box of before takes the bundle that tells it")
        self.assertEqual(self.believed(new)[0], True, self.believed(new)[1])
        taken, words = self.believed(old)
        self.assertFalse(taken)
        self.assertIn("revoked", words)

    def test_an_authority_without_its_list_is_believed_nothing(self):
        """Why `yocto/signing` and `check-crl` come together."""
        taken, words = self.believed(self.bundle("one"), self.keys / "ca.only.pem")
        self.assertFalse(taken)
        self.assertIn("CRL", words)

    def test_the_key_of_a_new_authority_is_for_its_owner_only(self):
        for file in self.keys.iterdir():
            self.assertEqual(file.stat().st_mode & 0o077, 0, file.name)

    @unittest.skipUnless(os.geteuid() == 0, "left out: a bus with two users needs root")
    def test_only_root_commands_rauc(self):
        policy, bus = self.folder / "policy.conf", self.folder / "bus"
        shutil.copy(RAUC / "de.pengutronix.rauc.conf", policy)
        # hawkBit's user is of the image; here somebody plays it.
        policy.write_text(policy.read_text().replace('user="rauc-hawkbit"', 'user="daemon"'))
        (self.folder / "bus.conf").write_text(BUS.format(bus=bus, policy=policy))
        daemon = subprocess.Popen(["dbus-daemon", "--nofork", f"--config-file={self.folder}/bus.conf"], stderr=subprocess.DEVNULL)
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.terminate)
        env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
        while not bus.exists():
            self.assertIsNone(daemon.poll(), "the bus ended")
            time.sleep(0.05)
        for n in range(2):
            (self.folder / f"slot-{n}").write_bytes(bytes(8192))
        rauc = subprocess.Popen(["rauc", f"--conf={self.system(self.keys / 'ca.cert.pem')}", "service"], env=env, stderr=subprocess.DEVNULL)
        self.addCleanup(rauc.wait)
        self.addCleanup(rauc.terminate)

        def asks(user, member, *arguments, interface="de.pengutronix.rauc.Installer"):
            command = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user != "root" else []
            ran = subprocess.run([*command, "dbus-send", "--system", "--print-reply", "--dest=de.pengutronix.rauc", "/", f"{interface}.{member}",
                                  *arguments], env=env, capture_output=True, text=True)
            return "AccessDenied" if "AccessDenied" in ran.stderr else "answered" if ran.returncode == 0 else ran.stderr.strip()

        mark = ("Mark", "string:good", "string:booted")
        look = ("Get", "string:de.pengutronix.rauc.Installer", "string:Operation")
        properties = {"interface": "org.freedesktop.DBus.Properties"}
        until = time.monotonic() + 20
        while asks("root", *look, **properties) != "answered" and time.monotonic() < until:
            time.sleep(0.1)
        self.assertEqual(asks("root", *look, **properties), "answered")
        self.assertNotEqual(asks("root", *mark), "AccessDenied")
        for command in (mark, ("InstallBundle", "string:/nowhere", "dict:string:string:"), ("Install", "string:/nowhere")):
            self.assertEqual(asks("nobody", *command), "AccessDenied", command)
        self.assertEqual(asks("nobody", *look, **properties), "AccessDenied")
        self.assertEqual(asks("daemon", *mark), "AccessDenied", "hawkBit's client marks nothing")
        self.assertEqual(asks("daemon", *look, **properties), "answered")
        self.assertNotEqual(asks("daemon", "InstallBundle", "string:/nowhere", "dict:string:variant:"), "AccessDenied")


if __name__ == "__main__":
    unittest.main()
