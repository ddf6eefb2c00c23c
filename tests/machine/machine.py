"""The machine: QEMU with OVMF, its power, its serial lines, its disk seen from outside."""

import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

EFI_OFFSET = 1 << 20
FIRMWARE = pathlib.Path("/usr/share/OVMF")
CODE = ["-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.fd"]
EMULATION = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off,svm=off"]
KVM = ["-accel", "kvm", "-cpu", "host"]


def accelerator() -> tuple[list[str], str]:
    """KVM where it runs this firmware, and emulation otherwise; QEMU's options and a word on it. That /dev/kvm opens is not
    enough: inside a virtual machine it may be one without the processor's help, which runs only kernels made for it."""
    try:
        open("/dev/kvm", "r+b", buffering=0).close()
    except OSError as error:
        return EMULATION, f"emulated: /dev/kvm: {error.strerror}"
    trial = ["qemu-system-x86_64", "-machine", "q35", "-m", "256", "-display", "none", "-no-user-config", "-nodefaults", *CODE]
    with subprocess.Popen([*trial, *KVM], stderr=subprocess.PIPE, text=True) as process:
        threading.Timer(5, process.kill).start()
        complaints = [line.strip() for line in process.stderr if "warning:" not in line]
    return (EMULATION, f"emulated: /dev/kvm opens and does not run the firmware: {complaints[0]}") if complaints else (KVM, "KVM")


class Patience:
    """Counts seconds in which a process could run: not those in which it was stopped or waited for a processor, so that a
    limit means the same on a busy host."""

    def __init__(self, pid: int):
        self.pid, self.lived_s = pid, 0.0
        self.last, self.at = self.ran_and_waited(), time.monotonic()

    def ran_and_waited(self) -> tuple[int, int]:
        ran = waited = 0
        for task in pathlib.Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            try:
                words = task.read_text().split()
            except OSError:  # a thread that has ended
                continue
            ran, waited = ran + int(words[0]), waited + int(words[1])
        return ran, waited

    def look(self) -> float:
        now, at = self.ran_and_waited(), time.monotonic()
        ran, waited = (max(0, a - b) for a, b in zip(now, self.last))
        # A process that sleeps has run a little; one that is stopped has not run at all.
        share = ran / (ran + waited) if ran else 0.0
        self.lived_s += (at - self.at) * share
        self.last, self.at = now, at
        return self.lived_s


class Machine:
    """One machine that is switched on and off; the disk stays."""

    def __init__(self, work: pathlib.Path, disk: pathlib.Path):
        self.work, self.disk = work, disk
        self.accelerator, self.accelerated = accelerator()
        self.process = self.shell = None
        self.console = work / "console.log"
        self.boots = 0
        # The same ports in every run, so that a station that waits finds the machine again.
        self.ports = {104: free_port(), 8883: free_port()}

    def on(self):
        sockets = self.work / "shell.sock"
        sockets.unlink(missing_ok=True)
        variables = self.work / "firmware-variables.fd"
        if not variables.exists():
            shutil.copy(FIRMWARE / "OVMF_VARS_4M.fd", variables)
        forward = "".join(f",hostfwd=tcp:127.0.0.1:{outside}-:{inside}" for inside, outside in self.ports.items())
        self.boots += 1
        log = self.console.with_name(f"console-{self.boots:02}.log")
        self.console = log
        self.process = subprocess.Popen(
            [
                "nice", "-n", "10", "qemu-system-x86_64", "-machine", "q35", *self.accelerator,
                "-smp", "2", "-m", "1536", "-display", "none", "-no-user-config", "-nodefaults", *CODE,
                "-drive", f"if=pflash,format=raw,file={variables}",
                # What the guest has written to its disk outlives QEMU: this host's page cache is not what loses power.
                # What the guest holds in memory is gone, as it would be.
                "-drive", f"if=virtio,format=raw,file={self.disk},cache=unsafe",
                "-netdev", f"user,id=n{forward}", "-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci",
                "-device", "i6300esb", "-action", "watchdog=reset",
                # Where a stick is put in.
                "-device", "pcie-root-port,id=front", "-qmp", f"unix:{self.work / 'monitor.sock'},server=on,wait=off",
                "-serial", f"file:{log}", "-serial", f"unix:{sockets},server=on,wait=off",
            ],
            stderr=(self.work / "qemu.log").open("a"),
        )
        self.patience = Patience(self.process.pid)
        until = time.monotonic() + 300
        while True:
            try:
                self.shell = socket.socket(socket.AF_UNIX)
                self.shell.connect(str(sockets))
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def power_cut(self):
        if self.process and self.process.poll() is None:
            # nice(1) became QEMU: it is the process itself.
            self.process.kill()
            self.process.wait()
        if self.shell:
            self.shell.close()

    def lived_s(self) -> float:
        """Seconds in which it could run; see Patience."""
        assert self.process.poll() is None, "QEMU has ended; qemu.log says why"
        return self.patience.look()

    def monitor(self, *commands: dict):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.work / "monitor.sock"))
            answers = line.makefile("r")
            answers.readline()
            for command in ({"execute": "qmp_capabilities"}, *commands):
                line.sendall(json.dumps(command).encode() + b"\n")
                answer = {"event": ""}
                while "event" in answer:
                    answer = json.loads(answers.readline())
                assert "return" in answer, f"{command}: {answer}"

    def plug(self, stick: pathlib.Path):
        file = {"driver": "file", "filename": str(stick), "read-only": True}
        self.monitor({"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "stick", "read-only": True, "file": file}},
                     {"execute": "device_add", "arguments": {"driver": "virtio-blk-pci", "id": "stick", "drive": "stick", "bus": "front"}})

    def pull(self):
        self.monitor({"execute": "device_del", "arguments": {"id": "stick"}})

    def pause(self, on: bool):
        self.process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def grubenv(self) -> bytes:
        """The boot loader's environment as it lies on the disk at this moment."""
        read = subprocess.run(["mtype", "-i", f"{self.disk}@@{EFI_OFFSET}", "::/EFI/BOOT/grubenv"], capture_output=True)
        return read.stdout

    def send(self, line: str):
        self.shell.sendall(line.encode() + b"\n")

    def sh(self, command: str, patience_s: float = 300) -> tuple[int, str]:
        """Runs a command in the guest; exit code and output."""
        mark = f"mark{random.getrandbits(40):010x}"
        # The echo of the typed line holds the mark in two halves, so that only the answer matches.
        self.send(f"{command}\necho {mark[:6]}'{mark[6:]}' $?")
        until, seen = self.lived_s() + patience_s, b""
        self.shell.settimeout(1)
        while self.lived_s() < until:
            try:
                more = self.shell.recv(65536)
            except TimeoutError:
                continue
            if not more:
                raise ConnectionError("the machine is off")
            seen += more
            found = re.search(rb"(?s)(.*)" + mark.encode() + rb" (\d+)\r?\n", seen)
            if found:
                return int(found[2]), found[1].decode(errors="replace").replace("\r", "")
        raise TimeoutError(f"no answer to `{command}`: {seen[-400:]!r}")

    def must(self, command: str, patience_s: float = 300) -> str:
        code, words = self.sh(command, patience_s)
        assert code == 0, f"`{command}` ended with {code}: {words}"
        return words

    def up(self, patience_s: float = 1500):
        """Waits until a shell answers."""
        until = self.lived_s() + patience_s
        while True:
            try:
                self.sh("stty -echo; PS1=; true", 15)
                return
            except TimeoutError:
                if self.lived_s() > until:
                    raise

    def boot_id(self, patience_s: float = 300) -> str:
        return self.must("cat /proc/sys/kernel/random/boot_id", patience_s).split()[-1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
