"""A hospital's side of the gateway with other people's libraries: hl7apy receives over MLLP and holds messages against
HL7's structure, fhir.resources holds resources against FHIR. Prints its two ports, then a line of JSON for each message;
`wrong` in it is what a receiver would complain of. Ends when its standard input does."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

from fhir.resources.R4B.communication import Communication  # R4B's Communication is R4's
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.mllp import AbstractHandler, MLLPServer
from hl7apy.parser import parse_message
from hl7apy.validation import Validator

LOCK = Lock()


def say(**line):
    with LOCK:
        print(json.dumps(line), flush=True)


class Alert(AbstractHandler):
    """R40 has the structure of ORU_R01 (IHE PCD TF-2) and is not in hl7apy's 2.6 by its own name."""

    def reply(self):
        wrong = None
        as_r01 = self.incoming_message.replace("ORU^R40^ORU_R40", "ORU^R01^ORU_R01")
        message = parse_message(as_r01, validation_level=VALIDATION_LEVEL.STRICT)
        try:
            Validator.validate(message)
        except Exception as error:
            wrong = str(error)
        result = message.oru_r01_patient_result
        values = [o.obx.obx_5.value for o in result.oru_r01_order_observation.oru_r01_observation]
        patient = result.oru_r01_patient.pid.pid_3.pid_3_1.value if result.oru_r01_patient else None
        control = message.msh.msh_10.value
        say(kind="hl7", id=control, patient=patient, values=values, wrong=wrong)
        code = "AR" if wrong else "AA"
        return f"\x0bMSH|^~\\&|HOSPITAL||||20261125220132||ACK^R40^ACK|1|P|2.6\rMSA|{code}|{control}\r\x1c\r"


class Resources(BaseHTTPRequestHandler):
    """Conditional create: what has the identifier is there already, and is not made twice."""

    known = set()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        condition = self.headers["If-None-Exist"]
        status, wrong, resource = 201, None, json.loads(body)
        try:
            Communication.model_validate_json(body)
        except Exception as error:
            status, wrong = 422, str(error)
        if condition in self.known:
            status = 200
        self.known.add(condition)
        say(kind="fhir", id=condition, status=resource.get("status"), wrong=wrong)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


mllp = MLLPServer("127.0.0.1", 0, {"ORU^R40^ORU_R40": (Alert,)})
fhir = ThreadingHTTPServer(("127.0.0.1", 0), Resources)
for server in (mllp, fhir):
    Thread(target=server.serve_forever, daemon=True).start()
say(mllp=mllp.server_address[1], fhir=fhir.server_address[1])
sys.stdin.read()
