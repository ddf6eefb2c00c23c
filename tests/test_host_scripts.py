"""The scripts of the machine around the daemon: proof of life, provisioning, a stick, the boot loader's environment."""

import json
import os
import pathlib
import re
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

    def proves(self, code, trial="B", proven="AB", state=0):
        """Exit code of `prove`, and whether the machine is started again."""
        self.program("ichd", f"exit {code}")
        self.program("systemctl", f"echo \"$@\" > {self.folder}/asked")
        (self.folder / "asked").unlink(missing_ok=True)
        (self.folder / "cmdline").write_text("root=PARTLABEL=slot-b rauc.slot=B quiet\n")
        self.program("state", f"exit {state}")
        pages = {"proven": {slot: "1.0.0 -" for slot in proven}, "trial": {"slot": trial, "version": "1.1.0"} if trial else None}
        (self.folder / "slots.json").write_text(json.dumps(pages, indent=2))
        ended = subprocess.run(["sh", FILES / "prove"], stderr=subprocess.DEVNULL, env={
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "ICHD_UPDATE": str(self.folder), "ICHD_PAUSE_S": "0",
            "ICHD_CMDLINE": str(self.folder / "cmdline"), "ICHD_STATE": str(self.folder / "bin/state")})
        return ended.returncode, (self.folder / "asked").exists()

    def test_a_slot_on_trial_is_left_when_its_program_cannot_judge_it_and_no_other_is(self):
        for code in (0, 1, 75):
            self.assertEqual(self.proves(code), (code, False), "the program has judged")
        for code in (69, 70, 78, 127, 139):
            self.assertEqual(self.proves(code), (code, True))
            self.assertEqual(self.proves(code, trial="A"), (code, False), "the other slot is on trial")
            self.assertEqual(self.proves(code, trial=None), (code, False), "proven before")

    def test_a_slot_that_never_proved_itself_is_not_kept_beside_one_that_did(self):
        for code in (69, 70, 127):
            self.assertEqual(self.proves(code, trial=None, proven="A"), (code, True))
            self.assertEqual(self.proves(code, trial=None, proven="B"), (code, False), "it is the proven one")
            self.assertEqual(self.proves(code, trial=None, proven=""), (code, False), "there is nowhere to go")

    def test_a_box_without_its_data_starts_again(self):
        for code in (0, 78):
            self.assertEqual(self.proves(code, trial=None, state=1), (1, True))

    def test_a_box_whose_state_is_not_on_the_data_partition_refuses(self):
        """`state`, in a name space of its own: what the image mounts, then an overlay in RAM over it, then no data at all."""
        disk = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(dir="/var/tmp")))
        script = f"""
            set -e
            root={self.folder}/root; mkdir $root; mount -t tmpfs none $root; mkdir -p $root/data $root/var/lib $root/ram
            state() {{ ICHD_ROOT=$root sh {FILES}/state 2>&1 && echo stored || true; }}
            state
            mount --bind {disk} $root/data; state
            for place in var/lib etc/ichd etc/credstore etc/mosquitto; do
                mkdir -p $root/$place $root/data/$place; mount --bind $root/data/$place $root/$place
            done
            state
            mkdir $root/ram/upper $root/ram/work
            mount -t overlay -o lowerdir=$root/var/lib,upperdir=$root/ram/upper,workdir=$root/ram/work none $root/var/lib; state
            umount $root/var/lib; mount -t tmpfs none $root/data; state
        """
        ran = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertEqual(ran.stdout.splitlines(), [
            "ichd stores nothing: /data lies in RAM",
            "ichd stores nothing: /var/lib does not lie on the data partition",
            "stored",
            "ichd stores nothing: /var/lib does not lie on the data partition",
            "ichd stores nothing: /data lies in RAM"])

    def stick(self, **files):
        """Puts a stick in; what was said, and what was asked of systemd and of `ichd`. Names of files with `__` for `/`."""
        stick, data = self.folder / "stick", self.folder / "data"
        shutil.rmtree(stick, ignore_errors=True)
        for name, text in files.items():
            path = stick / name.replace("__", "/").replace("_toml", ".toml").replace("_key", ".key").replace("_nft", ".nft")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (self.folder / "asked").unlink(missing_ok=True)
        (self.folder / "consoles").write_text("tty0 ttyS0\n")
        (data / "etc/credstore").mkdir(parents=True, exist_ok=True)
        for name in ("ichd.toml.d", "firewall.d"):
            (data / "etc/ichd" / name).mkdir(parents=True, exist_ok=True)
        asked = f'echo "$(basename $0) $*" >> {self.folder}/asked'
        # The daemon runs with every configuration but one that says "wrong".
        self.program("systemctl", f'{asked}\n[ "$2" != ichd.service ] || ! grep -q wrong {data}/etc/ichd/ichd.toml.d/*.toml')
        for name in ("ichd", "chown", "journalctl"):
            self.program(name, asked)
        ran = subprocess.run(["sh", FILES / "stick"], capture_output=True, text=True, env={
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "ICHD_STICK": str(stick), "ICHD_DATA": str(data),
            "ICHD_CONSOLES": str(self.folder / "consoles")})
        asked = (self.folder / "asked").read_text() if (self.folder / "asked").exists() else ""
        return ran.stdout.strip().splitlines(), asked, data / "etc"

    def test_a_stick_commissions_a_box_once_and_what_was_wrong_on_it_can_be_corrected(self):
        site = {"site__device__40-enrolled_toml": "device = 1", "site__device__device_key": "secret", "site__daemon__50-stations_toml": "",
                "site__site_nft": "", "site__broker__mosquitto.conf": "", "site__broker__broker_key": "secret",
                "site__broker__conf.d__region.conf": "", "site__broker__region__site_key": "secret"}
        said, asked, etc = self.stick(site__90_toml="right = 1")
        self.assertIn("NOT TAKEN: site/device/40-enrolled.toml is missing", said[0])
        self.assertEqual((asked, list((etc / "ichd/ichd.toml.d").iterdir())), ("", []))

        said, asked, etc = self.stick(**site, site__80_toml="wrong = 1")
        self.assertIn("NOT TAKEN: the daemon does not run with this site", said[-1])
        said, asked, etc = self.stick(**site, site__90_toml="right = 1")
        self.assertIn("enrolled: the daemon runs with this site", said[-1])
        for unit in ("reload-or-restart ichd-firewall.service", "restart mosquitto.service", "restart ichd.service"):
            self.assertIn(f"systemctl {unit}\n", asked)
        self.assertNotIn("ichd-console", asked)
        here = {str(f.relative_to(etc)): f.stat().st_mode & 0o777 for f in etc.rglob("*") if f.is_file()}
        self.assertEqual(here, {
            "ichd/ichd.toml.d/40-enrolled.toml": 0o644, "ichd/ichd.toml.d/50-stations.toml": 0o644, "ichd/ichd.toml.d/90.toml": 0o644,
            "ichd/firewall.d/site.nft": 0o644, "credstore/device.key": 0o600, "mosquitto/mosquitto.conf": 0o644,
            "mosquitto/ichd/mosquitto.conf": 0o600, "mosquitto/ichd/broker.key": 0o600,
            "mosquitto/ichd/conf.d/region.conf": 0o600, "mosquitto/ichd/region/site.key": 0o600}, "nothing of the wrong stick is left")

        said, asked, etc = self.stick(**site | {"site__device__40-enrolled_toml": "device = 2"}, site__90_toml="other = 1", console_key="k" * 64)
        self.assertEqual((len(said), asked), (1, ""))
        self.assertIn("left alone: this box is enrolled", said[0])
        self.assertEqual((etc / "ichd/ichd.toml.d/40-enrolled.toml").read_text(), "device = 1")
        self.assertFalse((etc / "credstore/console.key").exists(), "nor does a later stick bring a key")

    def test_the_console_opens_to_the_key_of_commissioning_alone(self):
        site, opens = {"site__device__40-enrolled_toml": ""}, "systemctl start --no-block ichd-console@"
        self.assertNotIn(opens, self.stick(console_key="")[1], "an empty file is no key")
        (self.folder / "data/etc/credstore/console.key").unlink(missing_ok=True)
        _, asked, _ = self.stick(**site, console_key="k" * 64)
        self.assertIn(f"{opens}tty1.service\n{opens}ttyS0.service\n", asked)
        self.assertNotIn(opens, self.stick(**site)[1], "without it")
        self.assertNotIn(opens, self.stick(console_key="x" * 64)[1], "with another one")
        self.assertIn(opens, self.stick(console_key="k" * 64)[1])

    def test_an_enrolled_box_takes_a_changed_site_from_the_sticks_of_its_key_alone(self):
        """A station was revoked, or the first stick was wrong: the same key on the next one."""
        key, restart = {"console_key": "k" * 64}, "systemctl restart ichd.service"
        site = lambda stations: {"site__device__40-enrolled_toml": "", "site__daemon__50-stations_toml": stations}
        self.assertIn("enrolled: the daemon runs", self.stick(**site("1"), **key)[0][1])
        for other in ({}, {"console_key": "x" * 64}):
            said, asked, etc = self.stick(**site("2"), **other)
            self.assertIn("left alone", said[0])
            self.assertNotIn(restart, asked)
            self.assertEqual((etc / "ichd/ichd.toml.d/50-stations.toml").read_text(), "1")
        self.assertNotIn(restart, self.stick(**site("1"), **key)[1], "nothing is new: nobody is disturbed")
        self.assertIn("NOT TAKEN", self.stick(**site("wrong"), **key)[0][-2])
        self.assertIn("left alone", self.stick(**site("2"))[0][0], "nor does a mistake open it")
        said, asked, etc = self.stick(**site("2"), **key)
        self.assertIn(restart, asked)
        self.assertEqual((etc / "ichd/ichd.toml.d/50-stations.toml").read_text(), "2")

    def test_a_stick_brings_models_into_the_shadow_and_bundles_to_the_updater(self):
        more = {"models__new__manifest_toml": "", "models__note": "", "1.2.0.raucb": ""}
        self.assertNotIn("install", self.stick(**more)[1], "to a box that is somebody's")
        _, asked, _ = self.stick(**{"site__device__40-enrolled_toml": ""}, **more)
        self.assertRegex(asked, r"ichd model install \S+/models/new/ --shadow\nsystemctl start --no-block ichd-update.service\n$")

    def test_the_slot_that_a_jetson_takes_next_is_the_active_one(self):
        """What `nvbootctrl -t rootfs dump-slots-info` of Jetson Linux 36 prints, after an update was written."""
        self.program("nvbootctrl", "printf 'Current rootfs slot: A\\nActive rootfs slot: B\\nnum_slots: 2\\n"
                     "slot: 0,             retry_count: 3,             status: normal\\n'")
        backend = FILES.parents[1] / "rauc/files/rauc-nvbootctrl"
        ran = subprocess.run(["sh", backend, "get-primary"], capture_output=True, text=True, env={"PATH": f"{self.folder}/bin:/usr/bin:/bin"})
        self.assertEqual((ran.returncode, ran.stdout), (0, "B\n"), ran.stderr)
        self.program("nvbootctrl", "echo unknown")
        ran = subprocess.run(["sh", backend, "get-primary"], capture_output=True, text=True, env={"PATH": f"{self.folder}/bin:/usr/bin:/bin"})
        self.assertNotEqual(ran.returncode, 0)

    def test_the_scripts_use_no_program_that_the_image_does_not_have(self):
        """The image's small tools are busybox's, and core's configuration of it leaves these out."""
        for script in ("provision", "prove", "state", "stick", "grub-editenv", "factory-reset"):
            words = re.sub(r"#.*", "", (FILES / script).read_text())
            self.assertNotRegex(words, r"(?m)(^|[|;&(]|then|do)\s*(install|head -c|realpath|numfmt|tac)\s", script)

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
