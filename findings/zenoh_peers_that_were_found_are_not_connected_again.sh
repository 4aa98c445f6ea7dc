#!/usr/bin/env bash
# A zenoh peer that was found by multicast and restarts is connected again only when the other side asks for peers again,
# by then 8 s apart: 4 to 7 s after it is back. Settings of connect/retry, here 200 ms, do not hold for it: with the
# peer's address configured they bring it back in 0.1 s. Scouting goes on all the time, and the peer answers at once, so
# that a guess would be the same delay for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check eclipse-zenoh==1.10.2
cd "$folder"
cat > peers.py <<'PY'
import json
import subprocess
import sys
import time

import zenoh

ADDRESS = "tcp/127.0.0.1:17475"


def session(listen, connect, scout):
    settings = {
        "mode": "peer",
        "listen/endpoints": listen,
        "connect/endpoints": connect,
        "connect/exit_on_failure": False,
        "connect/timeout_ms": -1,
        "connect/retry": {"period_init_ms": 200, "period_max_ms": 200, "period_increase_factor": 1},
        "transport/shared_memory/enabled": False,
        "scouting/gossip/enabled": False,
        "scouting/multicast/enabled": scout,
    }
    if scout:
        settings["scouting/multicast/address"] = "224.0.0.225:17446"
        settings["scouting/multicast/interface"] = "127.0.0.1"
        settings["scouting/multicast/autoconnect"] = ["peer"]
    config = zenoh.Config()
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


def other(scout):
    process = subprocess.Popen(
        [sys.executable, __file__, str(int(scout))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def returns(scout, count=4):
    process = other(scout)
    own = session([], [] if scout else [ADDRESS], scout)

    def wait():
        start = time.monotonic()
        while not own.info.peers_zid():
            assert time.monotonic() - start < 30, "changed: it is not found at all"
            time.sleep(0.01)
        return time.monotonic() - start

    wait()
    time.sleep(15)  # so that scouting has come to its usual pace
    seconds = []
    for _ in range(count):
        process.kill()
        process.wait()
        while own.info.peers_zid():
            time.sleep(0.01)
        time.sleep(0.5)
        process = other(scout)
        seconds.append(wait())
        time.sleep(3.3)
    process.kill()
    own.close()
    return seconds


if len(sys.argv) > 1:
    kept = session([ADDRESS], [], sys.argv[1] == "1")
    print("up", flush=True)
    sys.stdin.read()
    sys.exit()
by_address, found = returns(False), returns(True)
for how, seconds in (("by its address", by_address), ("by multicast", found)):
    print(f"back after a restart, {how}: {', '.join(f'{one:.2f}' for one in seconds)} s")
assert max(by_address) < 1.0, "changed: an address that is configured takes longer"
assert max(found) > 2.0, "changed: a peer that was found is connected again sooner"
PY
"$folder/venv/bin/python" peers.py
