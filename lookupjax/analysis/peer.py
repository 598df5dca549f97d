"""timm's models as contenders: in a process and an environment of their own, told in turn what to run."""

import json
import subprocess
from pathlib import Path
from typing import Any

from lookupjax.errors import UserError

WORKER = Path(__file__).with_name("torch_worker.py")
FORMS = ("eager", "compiled")
MODELS = {"vit_base_patch16_224": "vit_b16"}  # timm's name: ours of the same arithmetic


class Peer:
    """A worker process with the interpreter `python`; it waits, idle, between requests.

    Raises:
      UserError: when that environment has no PyTorch or timm.
    """

    def __init__(self, python: str):
        self.python = python
        try:
            self.process = subprocess.Popen(
                [python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise UserError(f"--peer_python={python} cannot be started: {error}") from None

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(
                f"the worker of --peer_python={self.python} has ended (its messages are above); "
                "that environment needs PyTorch and timm"
            )
        return json.loads(answer)

    def timed(self, key: str, seconds: float) -> tuple[int, float]:
        """(calls, seconds) of one round."""
        answer = self.ask(run=key, seconds=seconds)
        return answer["calls"], answer["seconds"]

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
