"""Run by test_telemetry.py where the stub is the driver: watch a call in every state of the stub, print it as JSON."""

import json
import os
import sys
import time

from specdec_lib.machine.nvml import NvmlUnavailableError, open_device
from specdec_lib.machine.telemetry import Telemetry

LONG = ("healthy", "no_energy")  # long enough for utilisation and energy
seen = {}
for case in sys.argv[1:]:
    os.environ["STUB_NVML"] = case
    uuid = "MIG-5555" if case == "mig" else "GPU-1111"
    telemetry = Telemetry("cpu", uuid)
    with telemetry:
        time.sleep(1.05 if case in LONG else 0)
    try:
        facts = open_device(uuid).facts()
    except NvmlUnavailableError as error:
        facts = {"unavailable": str(error)}
    seen[case] = {"columns": telemetry.columns(new_tokens=300), "facts": facts}
print(json.dumps(seen))
