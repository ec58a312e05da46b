"""Draw an image through `diffusette host`, with Python's standard library alone.

    python client.py FOLDER "red apple, flat style, blue background"

The path of the image goes to stdout, progress to stderr. Ctrl-C cancels the request, within the running step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


class Host:
    """A running `diffusette host`."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.ready = self.receive()

    def send(self, **message: Any) -> None:
        """Send one message."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next message."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the host ended with code {self.process.wait()}; its error output says why")
        return json.loads(line)

    def close(self) -> None:
        """End the process: closing its input is enough."""
        self.process.communicate()


def draw(host: Host, request: dict[str, Any]) -> dict[str, Any]:
    """The last answer to `request`, `done` or `error`."""
    host.send(id=1, type="generate", request=request, previews=1)
    while True:
        try:
            message = host.receive()
        except KeyboardInterrupt:
            host.send(id=2, type="cancel", target=1)
            continue
        match message["type"]:
            case "progress":
                print(f"{message['phase']} {message['done']:.0%}", file=sys.stderr)
            case "preview":
                print(f"preview of {message['width']} × {message['height']} pixels", file=sys.stderr)
            case "image":
                print(message["path"])
            case "done" | "error" if message["id"] == 1:
                return message
            case _:
                pass  # newer hosts may say more


def main(folder: str, prompt: str) -> int:
    """Draw `prompt` into `folder`; the exit code."""
    host = Host(["diffusette", "host", "--data", folder])
    if host.ready["protocol"] != 1:
        raise SystemExit(f"protocol {host.ready['protocol']}, expected 1: update this program")
    memory = host.ready["models"][0]["memory"]
    print(f"needs {memory['plans'][memory['auto']] >> 20} MiB of memory", file=sys.stderr)
    answer = draw(host, {"prompt": prompt, "seed": 7})
    host.close()
    if answer["type"] == "error":
        print(f"{answer['code']}: {answer['message']}", file=sys.stderr)
    return int(answer["type"] == "error")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(f'usage: python {sys.argv[0]} FOLDER "PROMPT"', file=sys.stderr)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
