"""For all tests: programs are compiled cheaply and once, and an object store on this machine.

`pip install gcsfs gcp-storage-emulator`; tests that ask for `bucket` are skipped without them.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence

import pytest
from etils import epath

# LLVM's optimiser and the emitters of fused loops take most of a compilation for CPUs, and tests run a program but a few times.
# Without them the program is the same and its arithmetic is still IEEE float32. libtpu ends at the last flag, which it does not
# know: a subprocess that loads it takes XLA_FLAGS out of its environment.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)
# The selections in which no test takes longer than a minute.
QUICK_SELECTIONS = ("not slow and not long", "long and not slow", "not slow")

compiled = pytest.StashKey[str]()


def pytest_configure(config):
    """Before any test module imports jax; subprocesses inherit it all.

    One compilation cache serves every test and process of a session. The slow tests run their programs for minutes and compile
    them as users do: `-m "slow or not slow"` is every test that way.
    """
    if config.option.markexpr in QUICK_SELECTIONS:
        os.environ["XLA_FLAGS"] = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), *_known(QUICK_TO_COMPILE))))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.stash[compiled] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or torch's threads wait for each other at full speed


def _known(flags: Sequence[str]) -> Sequence[str]:
    """Those that this version of XLA has: it ends the process at the first one that it does not know."""
    command = [sys.executable, "-c", "from jaxlib import xla_client; xla_client.make_cpu_client()"]

    def runs(*tried: str) -> bool:
        return subprocess.run(command, env=os.environ | {"XLA_FLAGS": " ".join(tried)}, capture_output=True).returncode == 0

    return flags if runs(*flags) else [flag for flag in flags if runs(flag)]


def pytest_unconfigure(config):
    if compiled in config.stash:
        shutil.rmtree(config.stash[compiled], ignore_errors=True)


def pytest_collection_finish():
    """Tracing makes millions of small objects; looking at all of them for cycles takes more time than they take memory."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


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
