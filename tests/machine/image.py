"""Slots, bundles and the disk of the machine, made from Debian and from the layer's own files.

Everything of the layer that Debian can run is the layer's: units, mounts, provisioning, packet filter, RAUC's and GRUB's
configuration. Recipes are not retyped: the text of their `do_install` is run by a shell. What is Debian's instead of
Yocto's: packages, kernel with an initial RAM disk, and what is marked "only of this test" below.
"""

import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYER = ROOT / "yocto/meta-ichd"
UNITS = "usr/lib/systemd/system"
SLOT_MB = 640
DATA_MB = 256
DATA_TYPE = "7b8f6c1e-3d54-4c5a-9f0e-1c4d6a2e5b90"
COMPATIBLE = "ichd-test"
PACKAGES = (
    "systemd,systemd-sysv,systemd-repart,systemd-timesyncd,dbus,udev,rauc,rauc-service,mosquitto,mosquitto-clients,"
    "linux-image-cloud-amd64,initramfs-tools,zstd,grub2-common,e2fsprogs,nftables,iproute2,kmod,ca-certificates,libstdc++6"
)
# What bitbake would set.
PLACES = {
    "systemd_system_unitdir": "/usr/lib/systemd/system",
    "nonarch_libdir": "/usr/lib",
    "sysconfdir": "/etc",
    "datadir": "/usr/share",
    "libexecdir": "/usr/libexec",
    "sbindir": "/usr/sbin",
    "bindir": "/usr/bin",
    "CARGO_TARGET_SUBDIR": "release",
    "MACHINE": COMPATIBLE,
}


def sh(*command, **more):
    return subprocess.run([str(c) for c in command], check=True, **more)


def fresh(folder: pathlib.Path) -> pathlib.Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def run_recipe(recipe: str, root: pathlib.Path, body="do_install", **variables):
    """Runs the shell function of a recipe, with its variables as bitbake would expand them."""
    path = LAYER / recipe
    text = path.read_text()
    script = re.search(r"^" + re.escape(body) + r"\(\) \{\n(.*?)^\}", text, re.M | re.S)[1]
    services = dict(re.findall(r'^(SYSTEMD_SERVICE:\$\{PN\}(?:-grub)?) = "(.*?)"', text, re.M | re.S))
    values = PLACES | {"D": str(root), "UNPACKDIR": str(path.parent / "files")} | {k: str(v) for k, v in variables.items()}
    services = {name: units.replace("\\\n", " ") for name, units in services.items()}
    for name, units in services.items():
        script = script.replace("${" + name + "}", units)
    for name, value in values.items():
        script = script.replace("${" + name + "}", value)
    left = re.findall(r"\$\{[A-Za-z_:]+\}", script)
    assert not left, f"{recipe}: {left} is not expanded"
    sh("sh", "-eu", "-c", script)
    return " ".join(services.values()).split()


class Builder:
    """Makes everything in one work folder; the Debian root is made once."""

    def __init__(self, work: pathlib.Path, binary: pathlib.Path):
        self.work, self.binary = work, binary
        self.keys = work / "signing"
        if not (self.keys / "ca.cert.pem").exists():
            sh(ROOT / "yocto/signing", self.keys, stdout=subprocess.DEVNULL)
        self.https()

    def https(self):
        """Certificate of the server that bundles come from; the machine believes its authority."""
        self.server_ca, self.server = self.work / "https-ca.pem", self.work / "https.pem"
        if self.server.exists():
            return
        key, request = self.work / "https-ca.key", self.work / "https.csr"
        make = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        sh(*make, "-x509", "-days", 3650, "-subj", "/CN=update test", "-keyout", key, "-out", self.server_ca, stderr=subprocess.DEVNULL)
        sh(*make, "-subj", "/CN=10.0.2.2", "-keyout", self.server, "-out", request, stderr=subprocess.DEVNULL)
        names = self.work / "https.ext"
        names.write_text("subjectAltName=IP:10.0.2.2\n")
        signed = sh("openssl", "x509", "-req", "-in", request, "-CA", self.server_ca, "-CAkey", key, "-days", 3650, "-extfile", names,
                    capture_output=True)
        with self.server.open("ab") as file:
            file.write(signed.stdout)

    def debian(self) -> pathlib.Path:
        tar = pathlib.Path(os.environ.get("ICHD_MACHINE_ROOT", self.work / "debian.tar"))
        if not tar.exists():
            initrd = (
                'printf "MODULES=list\\nCOMPRESS=zstd\\n" > $1/etc/initramfs-tools/conf.d/ichd; '
                'printf "virtio_blk\\nvirtio_pci\\next4\\n" >> $1/etc/initramfs-tools/modules; chroot $1 update-initramfs -u'
            )
            leave_out = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")]
            sh("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={PACKAGES}", *leave_out,
               '--aptopt=APT::Install-Recommends "false"', f"--customize-hook={initrd}", "trixie", tar)
        return tar

    def root(self, version: str, broken: str | None) -> pathlib.Path:
        """A root file system of a version. Broken: `program` cannot run, `model` cannot be loaded."""
        root = fresh(self.work / "root")
        sh("tar", "-xf", self.debian(), "-C", root, "--exclude=./dev/*")

        def write(target, text, mode=0o644):
            to = root / target
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(text)
            to.chmod(mode)

        enabled = ["systemd-networkd.service", "systemd-timesyncd.service", "mosquitto.service"]
        tree = fresh(self.work / "tree/target/release").parents[1]
        os.link(self.binary, tree / "target/release/ichd")
        enabled += run_recipe("recipes-core/ichd-host/ichd-host_1.0.bb", root)
        core = "recipes-core/ichd"
        enabled += run_recipe(f"{core}/ichd_0.1.0.bb", root, S=ROOT, B=tree)
        run_recipe(f"{core}/ichd-model-base_0.1.0.bb", root, S=ROOT)
        run_recipe("recipes-connectivity/mosquitto/mosquitto_%.bbappend", root, "do_install:append:ichd-appliance")
        # meta-rauc brings system.conf and keyring; the bbappend only edits them.
        write("usr/lib/rauc/system.conf", (LAYER / "recipes-core/rauc/files/system.conf").read_text())
        write("usr/lib/rauc/ca.cert.pem", (self.keys / "ca.cert.pem").read_text())
        run_recipe("recipes-core/rauc/rauc-conf.bbappend", root, "do_install:append:ichd-appliance", ICHD_MIN_BUNDLE_VERSION="0.9.0")
        run_recipe("recipes-core/rauc/rauc_%.bbappend", root, "do_install:append:ichd-appliance")
        release = (LAYER / "recipes-core/images/ichd-image.bb").read_text()
        release = re.search(r"^ichd_release\(\) \{\n(.*?)^\}", release, re.M | re.S)[1]
        release = release.replace("${IMAGE_ROOTFS}", str(root)).replace("${nonarch_libdir}", "/usr/lib").replace("${DISTRO_VERSION}", version)
        sh("sh", "-euc", release)
        if broken == "program":
            write("usr/bin/ichd", "#!/bin/sh\necho this program is broken >&2\nexit 70\n", 0o755)
        if broken == "model":
            with (root / "usr/share/ichd/models/ichd-base/base.onnx").open("r+b") as file:
                file.seek(5000)
                file.write(b"not what was signed")

        # What a Yocto image brings by itself: an address by DHCP, no root password, no fstab, no unit of RAUC's that
        # marks a slot good because it has booted.
        write("usr/lib/systemd/network/80-wired.network", "[Match]\nName=e*\n[Network]\nDHCP=yes\n")
        # Of core's base-files: /var/volatile in RAM, /var/log a link into it.
        write("etc/fstab", "tmpfs /var/volatile tmpfs defaults 0 0\n")
        (root / "var/volatile").mkdir()
        shutil.rmtree(root / "var/log")
        (root / "var/log").symlink_to("volatile/log")
        write("usr/lib/tmpfiles.d/00-create-volatile.conf", "d /var/volatile/log - - - -\n")
        write("etc/machine-id", "")
        for unit in ["rauc-mark-good.service", "systemd-firstboot.service", "e2scrub_reap.service", "apt-daily.timer", "apt-daily-upgrade.timer",
                     "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"]:
            (root / UNITS / unit).unlink(missing_ok=True)
            link = root / "etc/systemd/system" / unit
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        # Each image numbers its users as it likes; what lies on the data partition must not care.
        if version != "1.0.0":
            sh("chroot", root, "groupmod", "-g", 777, "mosquitto")
            sh("chroot", root, "usermod", "-u", 777, "-g", 777, "mosquitto")

        # Only of this test: a root shell on the second serial line, the update server's authority, and patience for an
        # emulated processor (a golden series takes a minute here, not a second).
        write(f"{UNITS}/test-shell.service",
              "[Unit]\nDescription=Root shell for the test's driver\nAfter=sysinit.target\nDefaultDependencies=no\n"
              "[Service]\nExecStart=/bin/sh\nEnvironment=HOME=/root\nStandardInput=tty-force\nStandardOutput=tty\nStandardError=tty\n"
              "TTYPath=/dev/ttyS1\nRestart=always\nRestartSec=1\n[Install]\nWantedBy=sysinit.target\n")
        write(f"{UNITS}/ichd.service.d/only-of-this-test.conf", "[Service]\nTimeoutStartSec=900\nWatchdogSec=600\n")
        write("usr/lib/systemd/system.conf.d/50-only-of-this-test.conf", "[Manager]\nRuntimeWatchdogSec=10min\nRebootWatchdogSec=20min\n")
        with (root / "etc/ssl/certs/ca-certificates.crt").open("a") as file:
            file.write(self.server_ca.read_text())
        with (root / "etc/modules-load.d/test.conf").open("w") as file:
            file.write("nls_ascii\nnls_cp437\nvfat\nnbd\nloop\ndm-verity\nsquashfs\ni6300esb\n")
        sh("systemctl", f"--root={root}", "enable", *enabled, "test-shell.service", stderr=subprocess.DEVNULL)
        kernel, = (root / "boot").glob("vmlinuz-*")
        kernel.rename(root / "boot/bzImage")
        initrd, = (root / "boot").glob("initrd.img-*")
        initrd.rename(root / "boot/initrd")
        for trash in ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"]:
            shutil.rmtree(root / trash, ignore_errors=True)
        return root

    def image(self, version: str, broken: str | None = None) -> pathlib.Path:
        path = self.work / f"{version}.ext4"
        root = self.root(version, broken)
        path.unlink(missing_ok=True)
        used_mb = int(sh("du", "-sxm", root, capture_output=True).stdout.split()[0])
        size_mb = min(SLOT_MB, used_mb * 5 // 4 + 24)
        sh("mke2fs", "-q", "-t", "ext4", "-m", 0, "-L", "image", "-d", root, path, f"{size_mb}M")
        shutil.rmtree(root)
        return path

    def bundle(self, image: pathlib.Path, version: str) -> pathlib.Path:
        folder = fresh(self.work / "input")
        os.link(image, folder / "root.ext4")
        (folder / "manifest.raucm").write_text(
            f"[update]\ncompatible={COMPATIBLE}\nversion={version}\n[bundle]\nformat=verity\n[image.rootfs]\nfilename=root.ext4\n"
        )
        path = self.work / "bundles" / f"{version}.raucb"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        keys = self.keys
        sh("rauc", f"--cert={keys}/bundle.cert.pem", f"--key={keys}/bundle.key.pem", f"--keyring={keys}/ca.cert.pem",
           "bundle", "--mksquashfs-args=-comp zstd -Xcompression-level 3", folder, path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder)
        return path

    def disk(self, slot: pathlib.Path) -> pathlib.Path:
        """EFI, slot A and slot B with the same image as at the factory, data, and room that the first boot gives to data."""
        work, disk = self.work, self.work / "disk.raw"
        early = work / "early.cfg"
        early.write_text("search --no-floppy --set=root --file /EFI/BOOT/grubenv\nset prefix=($root)/EFI/BOOT\nconfigfile $prefix/grub.cfg\n")
        modules = "part_gpt fat ext2 linux normal configfile search search_fs_file loadenv test regexp reboot serial terminal boot echo"
        sh("grub-mkimage", "-O", "x86_64-efi", "-p", "/EFI/BOOT", "-c", early, "-o", work / "BOOTX64.EFI", *modules.split())
        recipe = (LAYER / "recipes-bsp/grub/ichd-grub-config_1.0.bb").read_text()
        script = re.search(r"^do_compile\(\) \{\n(.*?)^\}", recipe, re.M | re.S)[1]
        for name, value in {"KERNEL_IMAGETYPE": "bzImage", "ICHD_CONSOLE": "ttyS0,115200", "B": str(work),
                            "UNPACKDIR": str(LAYER / "recipes-bsp/grub/files")}.items():
            script = script.replace("${" + name + "}", value)
        sh("sh", "-euc", script)
        # Debian's kernel has its drivers in an initial RAM disk; the layer's kernel has them built in. A starved emulator
        # fails the kernel's check of the timer, needs no guard against leaks of a processor that it is not, and is late.
        text = (work / "ichd-grub.cfg").read_text()
        (work / "ichd-grub.cfg").write_text(re.sub(r"^(\s*)(linux /boot/bzImage .*)$", r"\1\2 no_timer_check tsc=reliable mitigations=off rcupdate.rcu_expedited=1 systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900\n\1initrd /boot/initrd", text, flags=re.M))
        efi = work / "efi.img"
        efi.unlink(missing_ok=True)
        sh("mkfs.vfat", "-C", "-n", "EFI", efi, 64 * 1024, stdout=subprocess.DEVNULL)
        sh("mmd", "-i", efi, "::/EFI", "::/EFI/BOOT")
        for source, name in [("BOOTX64.EFI", "BOOTX64.EFI"), ("ichd-grub.cfg", "grub.cfg"), ("ichd-grubenv", "grubenv")]:
            sh("mcopy", "-i", efi, work / source, f"::/EFI/BOOT/{name}")
        data = work / "data.img"
        data.unlink(missing_ok=True)
        sh("mke2fs", "-q", "-t", "ext4", "-L", "data", data, f"{DATA_MB}M")
        disk.unlink(missing_ok=True)
        sh("truncate", "-s", f"{1 + 64 + 2 * SLOT_MB + DATA_MB + 1024}M", disk)
        start = 1
        for number, (name, kind, size, content) in enumerate(
            [("efi", "ef00", 64, efi), ("slot-a", "8300", SLOT_MB, slot), ("slot-b", "8300", SLOT_MB, slot), ("data", DATA_TYPE, DATA_MB, data)], 1
        ):
            sh("sgdisk", f"--new={number}:{start}M:+{size}M", f"--typecode={number}:{kind}", f"--change-name={number}:{name}", disk,
               stdout=subprocess.DEVNULL)
            sh("dd", f"if={content}", f"of={disk}", "bs=1M", f"seek={start}", "conv=notrunc,sparse", "status=none")
            start += size
        return disk
