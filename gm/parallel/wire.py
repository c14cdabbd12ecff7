"""Messages between processes: one JSON object a line, over a socket."""

import json
import socket
import threading
from typing import Any

Message = dict[str, Any]
LONGEST = 64 * 1024 * 1024  # bytes of one line; whoever sends more does not speak this protocol


class Wire:
    """A connected socket that carries messages. Any thread may send, one receives."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._buffer = b""
        self._sending = threading.Lock()

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message) -> bool:
        """Whether the other side still takes messages."""
        try:
            with self._sending:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """The messages that have come, maybe none yet; None when the other side is gone. Blocks if nothing has come."""
        try:
            data = self.socket.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            return None
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        if not data or len(self._buffer) > LONGEST:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        self.socket.close()
