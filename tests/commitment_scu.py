"""A scanner that asks for storage commitment, played by pynetdicom.

commitment_scu.py PORT LISTEN MODE FILE...
  same    waits for the N-EVENT-REPORT on the association that asked
  later   refuses it there, as one without a handler for it does, and waits for the answer on LISTEN
  ask     refuses it there and does not listen (the answer is fetched by `listen`)
  listen  only listens on LISTEN
Sends the files first (not in `listen`), asks about them and about one instance that nobody has sent.
With TLS="CA CERTIFICATE KEY" in the environment both directions are mutual TLS.
Prints one JSON object: what the report said.
"""

import json
import os
import ssl
import sys
import threading

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
NEVER_SENT = "1.2.3.4.5.6.7"


def context(purpose):
    """Mutual TLS with the files named in the environment; None without."""
    if "TLS" not in os.environ:
        return None
    ca, certificate, key = os.environ["TLS"].split()
    made = ssl.create_default_context(purpose, cafile=ca)
    made.load_cert_chain(certificate, key)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def main():
    port, listen, mode, files = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    told, reports = threading.Event(), []

    def on_report(event):
        info = event.event_information
        reports.append({
            "event": event.event_type,
            "transaction": info.TransactionUID,
            "committed": [i.ReferencedSOPInstanceUID for i in info.get("ReferencedSOPSequence", [])],
            "failed": [[i.ReferencedSOPInstanceUID, i.FailureReason] for i in info.get("FailedSOPSequence", [])],
        })
        told.set()
        return 0x0000, None

    handlers = [(evt.EVT_N_EVENT_REPORT, on_report)]
    ae = AE(ae_title="CT1")
    server = None
    if mode in ("later", "listen"):
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        server = ae.start_server(("127.0.0.1", listen), block=False, evt_handlers=handlers, ssl_context=context(ssl.Purpose.CLIENT_AUTH))
    asked = {}
    if mode != "listen":
        ae.add_requested_context(CTImageStorage)
        ae.add_requested_context(StorageCommitmentPushModel)
        tls = context(ssl.Purpose.SERVER_AUTH)
        tls = (tls, "127.0.0.1") if tls else None
        association = ae.associate("127.0.0.1", port, ae_title="ICHD", evt_handlers=handlers if mode == "same" else [], tls_args=tls)
        assert association.is_established, "no association"
        accepted = {c.abstract_syntax for c in association.accepted_contexts}
        if StorageCommitmentPushModel not in accepted:
            association.release()
            print(json.dumps({"offered": False}))
            return
        references = []
        for path in files:
            instance = dcmread(path)
            assert association.send_c_store(instance).Status == 0
            references.append((instance.SOPClassUID, instance.SOPInstanceUID))
        references.append((CTImageStorage, NEVER_SENT))
        action = Dataset()
        action.TransactionUID = generate_uid()
        action.ReferencedSOPSequence = []
        for sop_class, sop in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
            action.ReferencedSOPSequence.append(item)
        status, _ = association.send_n_action(action, 1, StorageCommitmentPushModel, WELL_KNOWN)
        asked = {"status": status.Status, "asked": action.TransactionUID}
        if mode == "same":
            told.wait(60)
        association.release()
    if mode in ("later", "listen"):
        told.wait(60)
    if server:
        server.shutdown()
    print(json.dumps({"offered": True, **asked, "reports": reports}))


main()
