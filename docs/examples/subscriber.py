#!/usr/bin/env python3
"""The least that takes part in the alert chain: shows alerts, answers them with receipts, acknowledges when told to.

    pip install paho-mqtt
    subscriber.py --site north --station pager-1 --user "Li Na" --host broker.hospital.example --port 8883 \
                  --ca ca.crt --certificate station.crt --key station.key

Prints one line per news. With --acknowledge it takes every finding in the name of --user: an exercise, not a way to
run a ward. The station must be enrolled (docs/ENROLMENT.md); every rule here is in docs/MQTT.md.
"""

import argparse
import json
import uuid
from datetime import datetime, timedelta, timezone

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

arguments = argparse.ArgumentParser()
arguments.add_argument("--site", required=True)
arguments.add_argument("--station", required=True)
arguments.add_argument("--user", required=True)
arguments.add_argument("--role", default="nurse")
arguments.add_argument("--host", default="127.0.0.1")
arguments.add_argument("--port", type=int, default=1883)
arguments.add_argument("--ca")
arguments.add_argument("--certificate")
arguments.add_argument("--key")
arguments.add_argument("--acknowledge", action="store_true")
args = arguments.parse_args()

root, mine = f"ichd/1/{args.site}", f"ichd/1/{args.site}/sta/{args.station}"
held: dict[str, int] = {}  # alert_id: highest revision; a document is state, not an event


def say(topic, document, retain=False, expires_s=None):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    if expires_s:
        properties.MessageExpiryInterval = expires_s
    client.publish(f"{mine}/{topic}", json.dumps(document), qos=1, retain=retain, properties=properties)


def status(state):
    return {"schema": "ichd.station/1", "state": state, "role": args.role, "ward": "", "user": args.user,
            "sound_ok": False, "visible": True, "version": "example", "kind": "phone"}


def on_connect(client, userdata, flags, reason, properties):
    say("status", status("ready"), retain=True)
    client.subscribe([(f"{root}/dev/+/alert/+", 1), (f"{root}/dev/+/reply/{args.station}", 1)])


def on_message(client, userdata, message):
    _, _, _, _, device, kind, name = message.topic.split("/")
    if not message.payload:  # purged: the alert is closed
        return
    document = json.loads(message.payload)
    if kind == "reply":
        print("reply", document["result"], document["code"], document["message"], flush=True)
        return
    if document["schema"] != "ichd.alert/1":
        return
    alert_id, rev = document["alert_id"], document["rev"]
    news = rev > held.get(alert_id, 0)
    held[alert_id] = max(rev, held.get(alert_id, 0))
    # A document that comes again is answered again: the first receipt may have been lost.
    for stage in ("received", "displayed"):
        say(f"receipt/{device}", {"schema": "ichd.receipt/1", "alert_id": alert_id, "rev": rev, "stage": stage},
            expires_s=600)
    if not news:
        return
    print("alert", document["subject"]["ref"], f"rev {rev}", document["kind"], document["stage"], document["state"],
          flush=True)
    if args.acknowledge and document["kind"] == "finding" and document["state"] in ("raised", "delivered", "escalated"):
        expires = datetime.now(timezone.utc) + timedelta(minutes=5)
        say(f"action/{device}", {
            "schema": "ichd.action/1", "action_id": str(uuid.uuid4()), "alert_id": alert_id, "rev": rev, "verb": "ack",
            "user": args.user, "expires_at": expires.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }, expires_s=600)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=args.station, protocol=mqtt.MQTTv5)
client.username_pw_set(args.station)
if args.ca:
    client.tls_set(args.ca, args.certificate, args.key)
client.will_set(f"{mine}/status", json.dumps(status("offline")), qos=1, retain=True)
client.on_connect, client.on_message = on_connect, on_message
client.connect(args.host, args.port, keepalive=15)
client.loop_forever(retry_first_connection=True)
