#!/usr/bin/env python3
"""The night of the machine: boots, alerts, updates itself, falls back, loses power. See README.md.

Each check says what it saw; the summary at the end has a line for each. Exit code 0 only if all passed.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import threading
import time
import traceback

from image import Builder, sh
from machine import EFI_OFFSET, Machine
from people import Scanner, Site, Updates, Wall

FIRST, NEXT, BROKEN = "1.0.0", "1.1.0", "1.2.0"
SPOOL = "/var/lib/private/ichd/spool"
START = time.monotonic()


def say(text: str):
    print(f"{time.monotonic() - START:7.1f} s  {text}", flush=True)


def utc(offset_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + offset_s))


class Night:
    """Everybody of the scenario, and what was seen."""

    def __init__(self, work: pathlib.Path, ichd: pathlib.Path, phantom: pathlib.Path):
        self.work, self.ichd, self.phantom = work, ichd, phantom
        self.results: list[tuple[str, bool, str]] = []
        self.open: set[str] = set()  # alerts that nobody has answered
        self.install_s = self.boot_s = 60.0

    def check(self, name: str, step, *arguments):
        """Runs a step; its words and its time go into the summary. A failed one does not end the night."""
        say(f"-- {name}")
        began = time.monotonic()
        try:
            words, passed = step(*arguments) or "", True
        except Exception as error:  # the summary tells
            words, passed = f"{type(error).__name__}: {error}", False
            traceback.print_exc()
        self.results.append((name, passed, f"{words} ({time.monotonic() - began:.0f} s)"))
        say(f"   {'passed' if passed else 'FAILED'}: {words}")
        return passed

    def build(self):
        builder = Builder(self.work, self.ichd)
        self.bundles = {}
        for version, broken in [(NEXT, None), (BROKEN, "program")]:
            image = builder.image(version, broken)
            self.bundles[version] = builder.bundle(image, version)
            image.unlink()
        first = builder.image(FIRST)
        self.bundles[FIRST] = builder.bundle(first, FIRST)
        whole = self.bundles[NEXT].read_bytes()
        self.bundles["half"] = self.bundles[NEXT].with_name("half.raucb")
        self.bundles["half"].write_bytes(whole[:len(whole) // 2])
        self.machine = Machine(self.work, builder.disk(first))
        words = f"{self.machine.accelerated}; root of {first.stat().st_size >> 20} MB, bundle of {self.bundles[NEXT].stat().st_size >> 20} MB"
        first.unlink()
        self.site = Site(self.work, self.ichd)
        self.updates = Updates(builder.server)
        self.wall, self.scanner = Wall(self.machine, self.site), Scanner(self.machine, self.phantom)
        return words

    # What is waited for.

    def wait(self, what: str, test, patience_s: float = 900, pause_s: float = 2):
        until = self.machine.lived_s() + patience_s
        while self.machine.lived_s() < until:
            answer = test()
            if answer:
                return answer
            time.sleep(pause_s)
        raise TimeoutError(f"waited {patience_s:.0f} s of the machine's life for {what}")

    def ready(self):
        """The daemon runs. The machine may go down meanwhile and take an answer with it."""
        def look():
            try:
                return self.machine.sh("systemctl is-active --quiet ichd.service", 60)[0] == 0
            except TimeoutError:
                self.machine.up()
        self.machine.up()
        self.wait("ichd", look, 1800)

    def proven(self):
        """The slot has passed its proof of life and was marked good."""
        self.wait("proof of life", lambda: self.machine.sh("systemctl is-active --quiet ichd-mark-good.service")[0] == 0)

    def status(self) -> dict:
        words = self.machine.must("ichd update status --json")
        return json.loads(next(line for line in words.splitlines() if line.startswith("{")))

    def running(self) -> tuple[str, str]:
        status = self.status()
        return status["booted"], status["version"]

    # The checks.

    def first_boot(self):
        self.machine.on()
        began = time.monotonic()
        self.ready()
        ready_s = time.monotonic() - began
        self.proven()
        self.boot_s = time.monotonic() - began
        failed = self.machine.must("systemctl --failed --plain --no-legend --no-pager").strip()
        assert not failed, failed
        self.machine.must("/usr/libexec/ichd/state && mountpoint -q /var/volatile/log/journal && ls /var/log/journal/*/system.journal")
        size = int(self.machine.must("df -B1M --output=size /data | tail -1").split()[-1])
        assert size > 1000, f"the data partition did not grow: {size} MB"
        slots = {slot["bootname"]: slot["boot_status"] for slot in self.status()["slots"]}
        assert slots == {"A": "good", "B": "good"}, slots
        return f"{self.running()}, receiving after {ready_s:.0f} s, data grown to {size} MB, both slots good"

    def enrolment(self):
        console = "systemctl is-active --quiet ichd-console@ttyS0.service"
        self.machine.plug(self.site.stick(self.work, self.updates.port))
        taken = "test -e /etc/ichd/ichd.toml.d/40-enrolled.toml && ! test -e /etc/ichd/commissioning"
        try:
            self.wait("the site of the stick", lambda: self.machine.sh(taken)[0] == 0)
        finally:
            said = self.machine.sh("journalctl -u ichd-stick -o cat --no-pager | tail -n 8")[1]
            say(f"   {said.strip()}")
        self.wait("the service console", lambda: self.machine.sh(console)[0] == 0, 60)
        self.machine.pull()
        self.wait("its end without the stick", lambda: self.machine.sh(console)[0] != 0, 60)
        self.wait("the device's status at the broker", lambda: self.wall.status().get("state") in ("ready", "degraded"))
        return "by a stick: broker over mutual TLS, device key as a credential, packet filter with one scanner and one station net"

    def alert(self):
        files = self.scanner.series()
        began, since = time.monotonic(), utc(-5)
        assert self.scanner.send(files, 20) == len(files), "the series was not taken"
        found = self.new_alert(since, len(files))
        return f"{found['alert_id']} rev {found['rev']}, {time.monotonic() - began:.0f} s after the first slice was sent"

    def new_alert(self, since: str, slices: int) -> dict:
        """Of a whole series sent since then; one that a power cut left in the middle gets its alert as well."""
        def look():
            for alert_id, document in self.wall.findings().items():
                if alert_id not in self.open and document["stage"] == "final" and document["raised_at"] > since and document["study"]["slices"] == slices:
                    return document
        document = self.wait("an alert at the broker", look, 600)
        self.open.add(document["alert_id"])
        return document

    def deferred(self):
        self.updates.offer = self.bundles[NEXT]
        code, words = self.machine.sh("ichd update install --if-configured")
        assert code == 75, f"exit {code}: {words}"
        return words.strip().splitlines()[-1]

    def answered(self):
        for alert_id in self.open:
            def acknowledged():
                document = self.wall.findings().get(alert_id)
                if document is None or document["ack"]:
                    return True
                self.wall.act(document)
            self.wait("acknowledgement", acknowledged, 120, 5)
        self.open.clear()
        return "acknowledged by name from a station"

    def over_the_air(self):
        """The unit that the timer starts does it all: fetches, checks, waits until nobody waits, writes, restarts."""
        boot, began, words = self.machine.boot_id(), time.monotonic(), ""

        def restarted():
            nonlocal words
            try:
                if self.machine.boot_id(30) != boot:
                    return True
                words = self.machine.sh("systemctl start --no-block ichd-update.service; journalctl -b -u ichd-update SYSLOG_IDENTIFIER=ichd --no-pager -o cat | tail -n 1", 30)[1]
                say(f"   {words.strip()}")
            except TimeoutError:
                pass
        self.wait("the update", restarted, 1500, 20)
        self.install_s = self.updates.last_s - self.updates.first_s
        self.updates.offer = None
        self.ready()
        self.proven()
        running, slots = self.running(), {s["bootname"]: s["boot_status"] for s in self.status()["slots"]}
        assert running == ("B", NEXT) and slots["B"] == "good", (running, slots)
        return (f"{self.updates.bytes_sent / 1e6:.0f} MB over HTTPS, read and written in {self.install_s:.0f} s; {running} passed its proof of life and "
                f"is good {time.monotonic() - began:.0f} s after the update began")

    def falls_back(self):
        self.updates.offer = self.bundles[BROKEN]
        before = self.running()
        boot = self.machine.boot_id()
        self.machine.must("ichd update install --now", 900)
        self.updates.offer = None
        self.machine.send("systemctl reboot")
        time.sleep(15)
        # Nobody touches it: the broken slot starts, cannot prove itself, and the machine comes back.
        self.ready()
        seen = self.console_since()
        assert self.machine.boot_id() != boot and self.running() == before, self.running()
        self.proven()
        journal = self.machine.must("journalctl --list-boots --no-pager -o json 2>/dev/null | tail -n 1; ichd update status")
        assert seen >= 2, f"only {seen} kernels started"
        return f"back in {before} by itself after {seen} starts; {[l for l in journal.splitlines() if 'failed here' in l]}"

    def said_why(self):
        """The program of the slot that returned tells the stations."""
        def look():
            for document in self.wall.documents().values():
                if document["kind"] == "technical" and document["technical"]["code"] == "update_failed":
                    return document["technical"]["text"]
        return self.wait("the technical alert update_failed at a station", look, 300)

    def console_since(self) -> int:
        text = self.machine.console.read_bytes()
        return text.count(b"Linux version") - getattr(self, "kernels", 1)

    def refused(self, *offers: str):
        """Exit code 1 for each, without a word of writing."""
        said = []
        for offer in offers:
            self.updates.offer = self.bundles[offer]
            code, words = self.machine.sh("ichd update install --now")
            self.updates.offer = None
            assert code == 1 and "Copying" not in words, f"{offer}: exit {code}: {words}"
            said.append(words.strip().splitlines()[-1])
        return "; ".join(said)

    def boot_environment(self, moments: int):
        """What a power cut would leave of the boot loader's memory, looked at while it is written all the time."""
        self.machine.send("(PATH=/usr/libexec/ichd:$PATH; n=0; while :; do n=$((n+1)); grub-editenv /boot/efi/EFI/BOOT/grubenv set test=$n; done) & echo $! > /run/loop")
        seen, bad = set(), []
        time.sleep(2)
        for _ in range(moments):
            time.sleep(random.uniform(0.01, 0.3))
            self.machine.pause(True)
            text = self.machine.grubenv()
            self.machine.pause(False)
            if len(text) == 1024 and text.startswith(b"# GRUB Environment Block\n") and b"\nORDER=" in text:
                seen.add(text)
            else:
                bad.append(text[:40])
        self.machine.must("kill $(cat /run/loop); sleep 1; PATH=/usr/libexec/ichd:$PATH grub-editenv /boot/efi/EFI/BOOT/grubenv unset test")
        assert not bad, f"{len(bad)} of {moments} moments leave no environment: {bad[:3]}"
        assert len(seen) > 3, f"only {len(seen)} states were seen"
        return f"{moments} moments, {len(seen)} states, each one whole"

    def kept(self, stored: set[str] | None = None) -> str:
        """Nothing that was acknowledged to the scanner is lost, and no open alert."""
        stored = set(self.scanner.stored) if stored is None else stored
        listing = self.machine.must(f"find {SPOOL}/studies -type f | sed 's:.*/::'").split()
        on_disk = {name.removesuffix(".dcm") for name in listing}
        lost = stored - on_disk
        assert not lost, f"{len(lost)} of {len(stored)} stored instances are gone"
        missing: set[str] = set()

        def all_there():
            nonlocal missing
            found = self.wall.findings()
            missing = {i for i in self.open if i not in found or found[i]["state"] in ("expired", "withdrawn", "resolved")}
            return not missing
        try:
            self.wait("open alerts", all_there, 120)
        except TimeoutError:
            raise AssertionError(f"open alerts are gone: {missing}") from None
        return f"{len(stored)} stored instances and {len(self.open)} open alerts are there"

    def moments(self, cuts: int):
        """An update from beginning to end, with series that arrive meanwhile; at random moments the disk is copied while
        the machine stands still. Each copy is what a machine that loses power at that moment keeps: its memory is gone."""
        self.proven()
        self.updates.offer, sent = self.bundles[NEXT], self.updates.bytes_sent
        before = self.running()
        span = self.install_s + 1.5 * self.boot_s
        at = sorted(random.uniform(span * n / cuts, span * (n + 1) / cuts) for n in range(cuts))
        began, self.copies, stop = time.monotonic(), [], threading.Event()
        self.machine.send("ichd update install --now --again --reboot >/run/update.log 2>&1 &")

        def scan():
            while not stop.is_set():
                self.scanner.send(self.scanner.series())
                stop.wait(self.boot_s / 4)
        scanner = threading.Thread(target=scan)
        scanner.start()
        try:
            for n, at_s in enumerate(at, 1):
                time.sleep(max(0.0, began + at_s - time.monotonic()))
                copy = self.work / f"cut-{n:02}.raw"
                known = set(self.wall.findings(3))
                self.machine.pause(True)
                stored = set(self.scanner.stored)
                sh("cp", "--sparse=always", self.machine.disk, copy)
                paused = time.monotonic()
                self.machine.pause(False)
                self.copies.append((n, time.monotonic() - began, copy, stored, self.open | known))
                began += time.monotonic() - paused
        finally:
            stop.set()
            scanner.join()
        self.updates.offer = None
        sent = (self.updates.bytes_sent - sent) / 1e6
        assert sent > 10, f"only {sent:.1f} MB were fetched: no update was cut"
        return f"from {before}, {sent:.0f} MB fetched, over {time.monotonic() - began:.0f} s: at " + ", ".join(f"{c[1]:.0f}" for c in self.copies) + " s"

    def power_cut(self, n: int):
        """Switches on what was left at that moment."""
        _, at_s, copy, stored, alerts = self.copies[n - 1]
        self.machine.power_cut()
        disk, self.machine.disk = self.machine.disk, copy
        # What happens on the copy is not told of the machine itself.
        open_before, self.open = self.open, set(alerts)
        stored_before = set(self.scanner.stored)
        try:
            self.machine.on()
            self.ready()
            kept = self.kept(stored)
            files, since = self.scanner.series(), utc(-5)
            assert self.scanner.send(files, 20) == len(files), "the series was not taken after the cut"
            alert = self.new_alert(since, len(files))
            return f"at {at_s:.0f} s: up in {self.running()}, {kept}, alerts ({alert['alert_id']})"
        finally:
            self.machine.power_cut()
            copy.unlink()
            self.machine.disk, self.open, self.scanner.stored = disk, open_before, stored_before

    def switched_on(self):
        self.machine.on()
        self.ready()
        return f"up in {self.running()}, {self.kept()}"

    def stored_in_ram(self):
        """What core's volatile-binds would lay over /var/lib: daemon and broker do not start, and the machine starts again."""
        self.machine.must("systemctl stop ichd.socket ichd mosquitto ichd-state && mkdir -p /run/ram/upper /run/ram/work && "
                          "mount -t overlay -o lowerdir=/var/lib,upperdir=/run/ram/upper,workdir=/run/ram/work none /var/lib")
        for unit in ("ichd.service", "ichd.socket", "mosquitto.service"):
            assert self.machine.sh(f"systemctl start {unit}")[0] != 0, f"{unit} started"
        boot = self.machine.boot_id()
        self.machine.send("systemctl restart --no-block ichd-mark-good.service")

        def restarted():
            try:
                return self.machine.boot_id(30) != boot
            except TimeoutError:
                return False
        self.wait("the next start", restarted, 900, 10)
        self.ready()
        return f"nothing started; after a restart {self.kept()}"

    def lost_environment(self):
        """The boot loader's memory is gone altogether, and the slot it would try first cannot be loaded."""
        self.machine.must("sync")
        self.machine.power_cut()
        empty = self.work / "empty"
        empty.write_bytes(b"")
        sh("mcopy", "-o", "-i", f"{self.machine.disk}@@{EFI_OFFSET}", empty, "::/EFI/BOOT/grubenv")
        self.machine.on()
        self.ready()
        kept = self.kept()
        self.proven()
        return f"up in {self.running()}, {kept}, both slots known again"

    def whole(self, cuts: int):
        if not self.check("images, bundles, disk", self.build):
            return
        if not self.check("first boot, slot A, proof of life, marked good", self.first_boot) or not self.check("enrolment", self.enrolment):
            return
        self.check("a bleed over DICOM alerts on Mosquitto", self.alert)
        self.check("an update waits while the alert is open", self.deferred)
        self.check("the alert is answered", self.answered)
        self.check("update over the air, slot B proves itself", self.over_the_air)
        self.kernels = self.machine.console.read_bytes().count(b"Linux version")
        self.check("a bundle whose daemon is broken falls back by itself", self.falls_back)
        self.check("a technical alert says why", self.said_why)
        self.check("refused: what failed here, the same version, an older one, half of one", self.refused, BROKEN, NEXT, FIRST, "half")
        self.check("after the fall-back: a bleed alerts", self.alert)
        self.check("after the fall-back: nothing is lost", self.kept)
        if self.check(f"{cuts} moments of an update", self.moments, cuts):
            for n in range(1, cuts + 1):
                self.check(f"power cut {n} of {cuts}", self.power_cut, n)
        self.check("power is back, after it all", self.switched_on)
        self.check("RAM over /var/lib: nothing starts", self.stored_in_ram)
        self.check("the boot loader's environment, written all the time", self.boot_environment, 100)
        self.check("the boot loader's environment is lost", self.lost_environment)
        self.check("a bleed alerts at the end of the night", self.alert)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--cuts", type=int, default=10, help="power cuts during updates")
    parser.add_argument("--seed", type=int, help="of the moments, to repeat a night")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    random.seed(seed)
    say(f"seed {seed}")
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    night = Night(work, pathlib.Path(os.environ["ICHD_BINARY"]).resolve(), pathlib.Path(os.environ["ICHD_PHANTOM"]).resolve())
    try:
        night.whole(args.cuts)
    finally:
        if getattr(night, "machine", None):
            night.machine.power_cut()
    failed = [name for name, passed, _ in night.results if not passed]
    print(f"\nsummary, seed {seed}, {time.monotonic() - START:.0f} s in all")
    for name, passed, words in night.results:
        print(f"{'pass' if passed else 'FAIL'}  {name}: {words}")
    print(f"{len(night.results) - len(failed)} of {len(night.results)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
