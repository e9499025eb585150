"""Starts SGLang's server with the key and the devices that came by the environment, as SGLang takes them.

Arguments: those of `python -m sglang.launch_server`. SGLang takes its key in argv only: it is put there when
others can no longer see it, and what SGLang starts gets its settings through pipes. It takes several devices
by number only (0.5.23, custom_all_reduce_utils.py), so UUIDs become numbers, in the order that NVML counts in.

Rules of this file: see the folder's. SGLang starts processes that import this file, so nothing happens then.
"""

from __future__ import annotations

import os
import runpy
import sys

KEY_ENV = "RAYSCHEDULER_API_KEY"
DEVICES_ENV = "CUDA_VISIBLE_DEVICES"


def main() -> None:
    key = os.environ[KEY_ENV]
    sys.argv[1:] = [*sys.argv[1:], "--api-key", key]
    sys.path.pop(0)  # this folder
    devices = os.environ.get(DEVICES_ENV, "")
    if "GPU-" in devices:
        os.environ[DEVICES_ENV] = ",".join(map(str, numbers_of(devices.split(","))))
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


def numbers_of(uuids: list[str]) -> list[int]:
    """The number of each device among those of this machine or container, in the order of their PCI addresses."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return [int(pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid))) for uuid in uuids]
    finally:
        pynvml.nvmlShutdown()


if __name__ == "__main__":
    main()
