"""The page, served to browsers of this machine alone, with the settings that draw the edit again beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from minedit.config import MineditError, foreign_json, shown
from minedit.report.studio import Studio

HOST = "127.0.0.1"
MOST = 10_000  # bytes of what is asked
TEMPLATE = Path(__file__).parent / "live.html"


def served(studio: Studio, told: Mapping[str, object], port: int = 0) -> ThreadingHTTPServer:
    """A server on HOST. told: what the page needs to know: settings by name, words. Raises MineditError."""
    text = json.dumps(told, allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{TOLD}}", text)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._ours():
                return
            name, _, number = self.path.partition("?")
            if name == "/":
                self._send(page, "text/html")
            elif name == "/state":
                self._send(json.dumps(studio.state()), "application/json")
            elif name == "/page":
                found = next((each for each in studio.drawn if str(each.number) == number), None)
                self._send(found.page.html, "text/html") if found else self._refuse(HTTPStatus.NOT_FOUND)
            else:
                self._refuse(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            if not self._ours():
                return
            length = self.headers.get("Content-Length", "")
            if self.path != "/ask" or self.headers.get("Content-Type") != "application/json":
                return self._refuse(HTTPStatus.NOT_FOUND)
            if not length.isdigit() or int(length) > MOST:
                return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            try:
                asked = foreign_json(self.rfile.read(int(length)))
            except ValueError:
                return self._refuse(HTTPStatus.BAD_REQUEST)
            if not isinstance(asked, dict) or not set(asked) <= set(told["settings"]):
                return self._refuse(HTTPStatus.BAD_REQUEST)
            self._send(json.dumps({"asked": studio.ask(asked)}), "application/json")

        def _ours(self) -> bool:
            """Whether the request names this machine: a page from elsewhere, or a name that leads here, does not."""
            port = self.server.server_address[1]
            names = {f"{HOST}:{port}", f"localhost:{port}"}
            origin = self.headers.get("Origin")
            if self.headers.get("Host") in names and (origin is None or origin.partition("://")[2] in names):
                return True
            self._refuse(HTTPStatus.FORBIDDEN)
            return False

        def _refuse(self, status: HTTPStatus) -> None:
            self.send_error(status)

        def _send(self, text: str, kind: str) -> None:
            data = text.encode()
            self.send_response(HTTPStatus.OK)
            for name, value in (
                ("Content-Type", f"{kind}; charset=utf-8"),
                ("Content-Length", str(len(data))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "SAMEORIGIN"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing is said of each request."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        what = f"port {port} of {HOST} cannot be used ({shown(error.strerror or error)})"
        raise MineditError(f"{what}; choose another: --port N, 0 for any that is free") from error
