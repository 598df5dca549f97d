"""The whole suite runs on 8 fake CPU devices, with shapes checked and implicit promotion forbidden."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Before jax is imported, and inherited by every process a test starts: tiny programs, of which each test
# compiles some, spend most of their time in the compiler. What the fusion emitters write takes it four times
# as long as what the older ones do.
CHEAP = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *CHEAP]).strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

ROOT = Path(__file__).parent.parent

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
    Path(tempfile.gettempdir()) / "lookupjax-test-cache"
)
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

hook = install_import_hook("lookupjax", "beartype.beartype")
hook.__enter__()  # stays for the whole session: every lookupjax module imported from now on is checked

# Files that take a minute or more, which would leave one worker alone at the end.
LONG = (
    "training/test_processes.py",
    "models/test_every_model.py",
    "test_parity.py",
    "test_run.py",
    "training/test_step.py",
    "analysis/test_attention_maps.py",
    "test_caption_run.py",
    "analysis/test_report_page.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first (scripts/test tells pytest-xdist to keep the order)."""
    places = {ROOT / "tests" / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def train(root):
    """train(*arguments) runs lookupjax.train in a process of its own, which must end well."""

    def run(*arguments: str) -> None:
        own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, "-m", "lookupjax.train", *arguments]
        done = subprocess.run(command, cwd=root, env=os.environ | own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run
