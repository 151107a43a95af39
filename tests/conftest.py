"""An object store on this machine, for all tests: an emulator of Google Cloud Storage.

`pip install gcsfs gcp-storage-emulator`; tests that ask for `bucket` are skipped without them.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from etils import epath


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket, gs://bucket. Skips where the packages are not installed."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=bucket", "-q"]
    server = subprocess.Popen([sys.executable, "-m", "gcp_storage_emulator", "start", *options])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", address)  # for gcsfs
        environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which would look for credentials
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", address)  # for Orbax
        environment.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        environment.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)  # for ArrayRecord's reader
        deadline = time.monotonic() + 60
        while not _answers(address) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield epath.Path("gs://bucket")
    server.terminate()
    server.wait()


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address).status == 200
    except OSError:
        return False
