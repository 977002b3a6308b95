"""A mirror of Wikimedia's dumps on the loopback, which misbehaves as it is told.

    python -m tests.mirror FOLDER [SECONDS]

serves the files of FOLDER slowly, SECONDS for every 4 kB, and prints its address.
"""

import bz2
import contextlib
import hashlib
import html
import http.server
import json
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

SLICE = 4096


class Mirror(http.server.ThreadingHTTPServer):
    """Serves a folder; `faults` maps the name of a file to what happens to its next requests, in order.

    A fault is a function of the handler and the content; one that returns True has answered.
    """

    daemon_threads = True

    def __init__(self, folder: pathlib.Path, seconds: float = 0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.seconds = folder, seconds
        self.faults: dict[str, list[Callable[[Handler, bytes], bool]]] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.agents: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, name: str) -> list[str | None]:
        """The ranges in which a file was asked for."""
        return [range_ for path, range_ in self.requests if path.endswith(name)]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        path = re.sub(r"^https?://[^/]*", "", self.path)  # a proxy is asked for whole addresses
        self.server.requests.append((path, self.headers["Range"]))
        self.server.agents.add(self.headers["User-Agent"])
        file = self.server.folder / path.strip("/")
        if file.is_dir():
            links = "".join(f'<a href="{entry.name}/">{entry.name}/</a>' for entry in file.iterdir())
            self.send(200, links.encode())
        elif not file.exists():
            self.send_error(404)
        else:
            content, faults = file.read_bytes(), self.server.faults.get(file.name, [])
            if not (faults and faults.pop(0)(self, content)):
                self.send_from(content)

    def send_from(self, content: bytes) -> None:
        """Answers a request as it should be."""
        if not (match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")):
            self.send(200, content)
        elif (start := int(match[1])) >= len(content):
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            of = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], {"Content-Range": of})

    def send(self, status: int, content: bytes, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(content), SLICE):
                self.wfile.write(content[start : start + SLICE])
                time.sleep(self.server.seconds)

    def log_message(self, *_) -> None:
        pass


def breaks_off(after: int) -> Callable[[Handler, bytes], bool]:
    """Promises all that was asked for, and closes the connection after some of it."""

    def fault(handler: Handler, content: bytes) -> bool:
        start = int((re.findall(r"\d+", handler.headers["Range"] or "") or [0])[0])
        status, rest = (206, content[start:]) if start else (200, content)
        of = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        handler.send(status, rest[:after], {"Content-Length": str(len(rest))} | of)
        return True

    return fault


def answers(status: int, **headers: str) -> Callable[[Handler, bytes], bool]:
    """Answers with an error."""

    def fault(handler: Handler, _: bytes) -> bool:
        handler.send(status, b"busy", {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def claims_length(length: int) -> Callable[[Handler, bytes], bool]:
    """Claims that the file is shorter than it is, and sends no more."""

    def fault(handler: Handler, content: bytes) -> bool:
        handler.send(200, content[:length])
        return True

    return fault


def sends(other: bytes) -> Callable[[Handler, bytes], bool]:
    """Sends another content, all of it."""

    def fault(handler: Handler, _: bytes) -> bool:
        handler.send(200, other)
        return True

    return fault


def ignores_range(handler: Handler, content: bytes) -> bool:
    handler.send(200, content)
    return True


def publish(folder: pathlib.Path, wiki: str, date: str, parts: list[bytes], status: str = "done") -> None:
    """Writes a dump of these parts, and its dumpstatus.json, into the folder of a mirror."""
    directory = folder / wiki / date
    directory.mkdir(parents=True)
    stem, files = f"{wiki}-{date}-pages-articles-multistream", {}
    for number, part in enumerate(parts, 1):
        name = f"{stem}{number}.xml-p{number * 100}p{number * 100 + 99}.bz2"
        if len(parts) == 1:
            name = f"{stem}.xml.bz2"
        (directory / name).write_bytes(part)
        files[name] = {
            "size": len(part),
            "url": f"/{wiki}/{date}/{name}",
            "md5": hashlib.md5(part).hexdigest(),
            "sha1": hashlib.sha1(part).hexdigest(),
        }
        index = name.replace(".xml", "-index.txt")
        files[index] = files[name] | {"url": f"/{wiki}/{date}/{index}"}
    jobs = {"articlesmultistreamdump": {"status": status, "updated": "2026-11-02 10:00:00", "files": files}}
    (directory / "dumpstatus.json").write_text(json.dumps({"version": "0.8", "jobs": jobs}))


def article(number: int, title: str, text: str) -> str:
    """A page of the main namespace, as XML."""
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>0</ns>\n    <id>{number}</id>\n    <revision>\n"
        f"      <model>wikitext</model>\n      <text>{html.escape(text)}</text>\n    </revision>\n  </page>\n"
    )


def dump(pages: Sequence[str], per_stream: int = 2) -> bytes:
    """A multistream dump of these pages: its head, runs of pages and its foot each are a bzip2 stream."""
    runs = ["".join(pages[start : start + per_stream]) for start in range(0, len(pages), per_stream)]
    head = '<mediawiki xml:lang="aa">\n  <siteinfo>\n  </siteinfo>\n'
    return b"".join(bz2.compress(part.encode()) for part in (head, *runs, "</mediawiki>\n"))


@contextlib.contextmanager
def serving(folder: pathlib.Path, seconds: float = 0.0) -> Iterator[Mirror]:
    """A mirror of a folder, while the block runs."""
    with Mirror(folder, seconds) as mirror:
        threading.Thread(target=mirror.serve_forever, args=(0.01,), daemon=True).start()
        yield mirror
        mirror.shutdown()


if __name__ == "__main__":
    with Mirror(pathlib.Path(sys.argv[1]), float((sys.argv[2:] or [0])[0])) as mirror:
        print(mirror.address, flush=True)
        mirror.serve_forever()
