"""The scripts of the machine around the daemon: proof of life, provisioning, the boot loader's environment."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import unittest

FILES = pathlib.Path(__file__).resolve().parents[1] / "yocto/meta-ichd/recipes-core/ichd-host/files"
GRUB_EDITENV = shutil.which("grub-editenv", path="/usr/bin:/usr/sbin")


class HostScripts(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def program(self, name, text):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def proves(self, code, trial="B", proven="AB", mounts="/dev/vda4 /data ext4 rw 0 0\n"):
        """Exit code of `prove`, and whether the machine is started again."""
        self.program("ichd", f"exit {code}")
        self.program("systemctl", f"echo \"$@\" > {self.folder}/asked")
        (self.folder / "asked").unlink(missing_ok=True)
        (self.folder / "cmdline").write_text("root=PARTLABEL=slot-b rauc.slot=B quiet\n")
        (self.folder / "mounts").write_text(mounts)
        pages = {"proven": {slot: "1.0.0 -" for slot in proven}, "trial": {"slot": trial, "version": "1.1.0"} if trial else None}
        (self.folder / "slots.json").write_text(json.dumps(pages, indent=2))
        ended = subprocess.run(["sh", FILES / "prove"], stderr=subprocess.DEVNULL, env={
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "ICHD_UPDATE": str(self.folder), "ICHD_PAUSE_S": "0",
            "ICHD_CMDLINE": str(self.folder / "cmdline"), "ICHD_MOUNTS": str(self.folder / "mounts")})
        return ended.returncode, (self.folder / "asked").exists()

    def test_a_slot_on_trial_is_left_when_its_program_cannot_judge_it_and_no_other_is(self):
        for code in (0, 1, 75):
            self.assertEqual(self.proves(code), (code, False), "the program has judged")
        for code in (70, 78, 127, 139):
            self.assertEqual(self.proves(code), (code, True))
            self.assertEqual(self.proves(code, trial="A"), (code, False), "the other slot is on trial")
            self.assertEqual(self.proves(code, trial=None), (code, False), "proven before")

    def test_a_slot_that_never_proved_itself_is_not_kept_beside_one_that_did(self):
        for code in (70, 127):
            self.assertEqual(self.proves(code, trial=None, proven="A"), (code, True))
            self.assertEqual(self.proves(code, trial=None, proven="B"), (code, False), "it is the proven one")
            self.assertEqual(self.proves(code, trial=None, proven=""), (code, False), "there is nowhere to go")

    def test_a_box_without_its_data_starts_again(self):
        self.assertEqual(self.proves(78, trial=None, mounts="/dev/vda3 / ext4 ro 0 0\n"), (78, True))

    @unittest.skipUnless(GRUB_EDITENV, "left out: grub-editenv (grub-common) is not installed")
    def test_the_boot_environment_is_whole_at_every_moment(self):
        file = self.folder / "grubenv"
        subprocess.run([GRUB_EDITENV, file, "create"], check=True)
        wrapped = ["sh", FILES / "grub-editenv", file]
        subprocess.run([*wrapped, "set", "ORDER=A B"], check=True)
        torn, done = [], threading.Event()

        def look():
            while not done.is_set():
                text = file.read_bytes()
                if len(text) != 1024 or b"\nORDER=A B\n" not in text:
                    torn.append(text)
        looks = threading.Thread(target=look)
        looks.start()
        for n in range(60):
            subprocess.run([*wrapped, "set", f"n={n}"], check=True)
        done.set()
        looks.join()
        self.assertEqual(torn, [])
        listed = subprocess.run([*wrapped, "list"], check=True, capture_output=True, text=True).stdout
        self.assertEqual(listed.split("\n")[:2], ["ORDER=A B", "n=59"])
        self.assertEqual([f.name for f in self.folder.iterdir()], ["grubenv"], "nothing is left over")

    def test_provisioning_mends_a_damaged_environment_and_changes_nothing_that_is_there(self):
        data, share, file = self.folder / "data", self.folder / "share", self.folder / "grubenv"
        (share / "ichd").mkdir(parents=True)
        for name in ("ichd.toml", "mosquitto.conf"):
            (share / "ichd" / name).write_text(f"# {name}\n")
        (data / "etc/ichd").mkdir(parents=True)
        (data / "etc/ichd/ichd.toml").write_text("# the site's own\n")
        for damage in (b"", b"# GRUB Environment Block\n" + b"\0" * 999):
            file.write_bytes(damage)
            subprocess.run(["sh", FILES / "provision"], check=True, stderr=subprocess.DEVNULL,
                           env=os.environ | {"ICHD_DATA": str(data), "ICHD_SHARE": str(share), "ICHD_GRUBENV": str(file)})
            listed = subprocess.run([GRUB_EDITENV, file, "list"], check=True, capture_output=True, text=True).stdout
            self.assertIn("ORDER=A B\n", listed)
            self.assertIn("A_TRY=1\n", listed)
            self.assertIn("machine_id=", listed)
        self.assertEqual((data / "etc/ichd/ichd.toml").read_text(), "# the site's own\n")
        self.assertEqual((data / "etc/mosquitto/mosquitto.conf").read_text(), "# mosquitto.conf\n")


if __name__ == "__main__":
    unittest.main()
