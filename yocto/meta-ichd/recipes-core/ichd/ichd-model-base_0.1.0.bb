SUMMARY = "The model package that ichd reads with until another one is installed"
DESCRIPTION = "Signed graphs, operating points, golden series and model card: what the image ships in its read-only slot"
HOMEPAGE = "https://onnx.ai/"
BUGTRACKER = "https://onnx.ai/"
SECTION = "misc"

require ichd-source.inc

inherit allarch

CVE_PRODUCT = ""

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${datadir}/ichd/models/keys
    cp -R --no-preserve=ownership ${S}/models/ichd-base ${D}${datadir}/ichd/models/
    install -m 0644 ${S}/models/keys/*.pub ${D}${datadir}/ichd/models/keys/
}

FILES:${PN} += "${datadir}/ichd"
