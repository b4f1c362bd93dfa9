"""A hostile web: rows of metadata, a loopback server for their URLs, and the expected outcome of each row.

    python -m tests.support.hostile_web 10000  # runs the stage ingest on 10,000 rows and prints the outcomes

Each kind of row has a name, the expected reason ("" for a picture that must be kept), and a behaviour.
"""

from __future__ import annotations

import gzip
import io
import ssl
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

METADATA = pa.schema([("URL", pa.string()), ("TEXT", pa.string()), ("punsafe", pa.float64())])

#: Short, because each slow row takes this long, but long enough for good rows on a busy machine.
LIMITS: dict[str, Any] = {
    "timeout_seconds": 3,
    "total_seconds": 5,
    "max_bytes": 200_000,
    "retries": 1,
    "max_pixels": 1_000_000,
}

CAPTIONS = (
    "a red cup on a table",
    "une tasse rouge sur une table à café",
    "чашка на столе",
    "テーブルの上の赤いカップ",
    "桌上的红杯子",
    "كوب أحمر على الطاولة",
    "कप मेज पर है",
    "ถ้วยบนโต๊ะ",
    "כוס על השולחן",
    "👩\u200d👩\u200d👧 ☕️ zero\u200bwidth",
    "tabs\tand\nlines\r\n",
    "bell \x07 escape \x1b[31m",
    "<script>alert(1)</script>",
    "'; DROP TABLE samples; --",
    "\ufeffmark",
    "a" * 5000,
)


def noise(size: tuple[int, int] = (120, 90), channels: int = 3) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 10, size[0] // 10, channels), dtype=np.uint8)
    return np.kron(pixels, np.ones((10, 10, 1), np.uint8))


def encode(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG whose header and pixels may disagree."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bits(channels: int) -> bytes:
    """A mid-grey PNG, 100 x 100, of 16 bits a channel."""
    return png(100, 100, 16, {1: 0, 3: 2}[channels], (b"\0" + b"\x80\x00" * 100 * channels) * 100)


def bodies() -> dict[str, tuple[str, bytes]]:
    """Kinds of rows that differ only in the body of the response: reason and body."""
    colour = Image.fromarray(noise())
    jpeg, turned = encode(colour), Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (100, 80), name) for name in ("red", "blue")]
    webp, gif = encode(colour, "WEBP"), encode(colour, "GIF")
    bomb = webp[:12] + b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff\x3f\0" * 2 + webp[12:]
    return {
        "jpeg": ("", jpeg),
        "png": ("", encode(colour, "PNG")),
        "webp": ("", webp),
        "gif": ("", gif),
        "moving_gif": ("", encode(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        "moving_webp": ("", encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])),
        "grey": ("", encode(colour.convert("L"))),
        "grey_alpha": ("", encode(colour.convert("LA"), "PNG")),
        "palette": ("", encode(colour.convert("P"), "PNG", transparency=0)),
        "one_bit": ("", encode(colour.convert("1"), "PNG")),
        "rgba": ("", encode(colour.convert("RGBA"), "PNG")),
        "cmyk": ("", encode(colour.convert("CMYK"))),
        "grey_16": ("", sixteen_bits(1)),
        "rgb_16": ("", sixteen_bits(3)),
        "turned": ("", encode(colour, exif=turned)),
        "broken_exif": ("", jpeg[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0\x2a\xff\xff\xff\xff" + jpeg[2:]),
        "tiny": ("too_small", encode(Image.new("RGB", (10, 10)))),
        "wide": ("aspect_ratio", encode(Image.new("RGB", (400, 90)))),
        "cut_jpeg": ("decode", jpeg[: len(jpeg) // 2]),
        "cut_png": ("decode", encode(colour, "PNG")[:200]),
        "cut_webp": ("decode", webp[: len(webp) // 2]),
        "only_a_signature": ("decode", jpeg[:20]),
        "noise_after_a_signature": ("decode", b"\xff\xd8\xff" + bytes(noise().tobytes()[:3000])),
        "bomb_png": ("too_many_pixels", png(50_000, 50_000, 1, 0, b"\0" * 100_000)),
        "bomb_gif": ("too_many_pixels", gif[:6] + b"\xff" * 4 + gif[10:]),
        "bomb_webp": ("too_many_pixels", bomb),
        "bmp": ("wrong_type", encode(colour, "BMP")),
        "tiff": ("wrong_type", encode(colour, "TIFF")),
        "svg": ("wrong_type", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        "html": ("wrong_type", b"<html>Moved.</html>"),
        "pickle": ("wrong_type", b"\x80\x04\x95cos\nsystem\n(S'false'\ntR." + b" " * 30),
        "empty": ("wrong_type", b""),
    }


class _Handler(BaseHTTPRequestHandler):
    """Serves /<kind>/<number>."""

    protocol_version = "HTTP/1.1"
    server: HostileServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        kind = self.path.split("/")[1].partition("?")[0]
        self.close_connection = True
        try:
            if kind == "moved_to":  # the address behind the question mark
                self.answer(b"", 302, Location=self.path.partition("?")[2])
            elif kind in self.server.bodies:
                self.answer(self.server.bodies[kind][1])
            else:
                BEHAVIOURS[kind][1](self)
        except OSError:
            pass  # the client has gone

    def answer(self, body: bytes, status: int = 200, **headers: Any) -> None:
        """Send a complete response; `headers` with underscores for dashes."""
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    @property
    def jpeg(self) -> bytes:
        return self.server.bodies["jpeg"][1]

    def say(self, data: bytes) -> None:
        self.wfile.write(data)

    def drip(self, start: bytes, drop: bytes = b"\0", seconds: float = 0.1) -> None:
        self.wfile.write(start)
        while not self.server.ended.wait(seconds):
            self.wfile.write(drop)
            self.wfile.flush()

    def pour(self, start: bytes, pieces: int = 10_000) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + start)
        for _ in range(pieces):
            self.wfile.write(b"\0" * 10_000)

    def chunks(self, body: bytes, headers: bytes) -> None:
        self.say(_OK + headers + b"Transfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 500):
            piece = body[start : start + 500]
            self.say(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.say(b"0\r\n\r\n")

    def busy_once(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
            is_first = self.server.asked[self.path] == 1
        self.answer(b"", status=503) if is_first else self.answer(self.jpeg)


def gzip_bomb(picture: bytes) -> bytes:
    """A picture and zeros, more than the limit, in a few kilobytes."""
    return gzip.compress(picture + bytes(100 * LIMITS["max_bytes"]))


Behaviour = Callable[[_Handler], None]
_OK = b"HTTP/1.1 200 OK\r\n"
BEHAVIOURS: dict[str, tuple[str, Behaviour]] = {
    "moved": ("", lambda web: web.answer(b"", 302, Location="/jpeg/1")),
    "agent": ("", lambda web: web.answer(web.jpeg, X_Asked_By=web.headers["User-Agent"])),
    "moved_far": ("redirects", lambda web: web.answer(b"", 301, Location=web.path + "x")),
    "loop": ("redirects", lambda web: web.answer(b"", 307, Location=web.path)),
    "moved_to_a_file": ("bad_url", lambda web: web.answer(b"", 302, Location="file:///etc/passwd")),
    "moved_nowhere": ("http_error", lambda web: web.answer(b"", 302)),
    "not_found": ("not_found", lambda web: web.answer(b"no", 404)),
    "forbidden": ("forbidden", lambda web: web.answer(b"no", 403)),
    "teapot": ("http_error", lambda web: web.answer(b"no", 418)),
    "busy": ("busy", lambda web: web.answer(b"", 503)),
    "busy_once": ("", lambda web: web.busy_once()),
    "no_robots": ("opted_out", lambda web: web.answer(web.jpeg, X_Robots_Tag="noarchive, NoAI")),
    "not_this_robot": ("opted_out", lambda web: web.answer(web.jpeg, X_Robots_Tag="realword: noindex")),
    "another_robot": ("", lambda web: web.answer(web.jpeg, X_Robots_Tag="otherbot: noindex, noai")),
    "short": ("incomplete", lambda web: web.answer(web.jpeg[:500], Content_Length=len(web.jpeg))),
    "silent": ("timeout", lambda web: web.drip(b"", drop=b"", seconds=1)),
    "drip": ("timeout", lambda web: web.drip(_OK + b"\r\n" + web.jpeg[:50])),
    "drip_headers": ("timeout", lambda web: web.drip(_OK + b"X-Slow: ", drop=b"a")),
    "endless": ("too_many_bytes", lambda web: web.pour(web.jpeg)),
    "huge": ("too_many_bytes", lambda web: web.answer(web.jpeg, Content_Length=10**12)),
    "endless_text": ("wrong_type", lambda web: web.pour(b"once upon a time there was")),
    "endless_headers": ("protocol", lambda web: web.say(_OK + b"X-Header: value\r\n" * 200)),
    "long_header": ("protocol", lambda web: web.say(_OK + b"X-Header: " + b"a" * 100_000)),
    "no_http": ("protocol", lambda web: web.say(b"220 ftp.example ready\r\n")),
    "bad_chunks": (
        "incomplete",
        lambda web: web.say(_OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ),
    "hang_up": ("reset", lambda web: None),
    "gzip": ("", lambda web: web.answer(gzip.compress(web.jpeg), Content_Encoding="gzip")),
    "deflate": ("", lambda web: web.answer(zlib.compress(web.jpeg), Content_Encoding="Deflate")),
    "brotli": ("", lambda web: web.answer(pa.compress(web.jpeg, "brotli", asbytes=True), Content_Encoding="br")),
    "wrong_encoding": ("", lambda web: web.answer(web.jpeg, Content_Encoding="gzip")),
    "unknown_encoding": ("", lambda web: web.answer(web.jpeg, Content_Encoding="aws-chunked")),
    "gzip_in_chunks": ("", lambda web: web.chunks(gzip.compress(web.jpeg), b"Content-Encoding: gzip\r\n")),
    "unmarked_gzip": ("wrong_type", lambda web: web.answer(gzip.compress(web.jpeg))),
    "gzip_of_text": ("wrong_type", lambda web: web.answer(gzip.compress(b"<html>Sign in."), Content_Encoding="gzip")),
    "text_for_gzip": ("protocol", lambda web: web.answer(b"<html>Sign in.</html>", Content_Encoding="gzip")),
    "cut_gzip": ("incomplete", lambda web: web.answer(gzip.compress(web.jpeg)[:-99], Content_Encoding="gzip")),
    "bomb_gzip": ("too_many_bytes", lambda web: web.answer(gzip_bomb(web.jpeg), Content_Encoding="gzip")),
    "empty_members": (
        "too_many_bytes",
        lambda web: web.answer(gzip.compress(web.jpeg) + gzip.compress(b"") * 20_000, Content_Encoding="gzip"),
    ),
}

#: Kinds of rows whose outcome depends on the row itself: the reason, and the URL for a base URL of the server.
ROWS: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "refused": ("connection", lambda base: "http://127.0.0.1:1/{number}.jpg"),
    "no_such_host": ("dns", lambda base: "http://host-{number}.invalid/a.jpg"),
    "null_url": ("no_url", lambda base: None),
    "empty_url": ("no_url", lambda base: " \t "),
    "file_url": ("bad_url", lambda base: "file:///etc/passwd?{number}"),
    "ftp_url": ("bad_url", lambda base: "ftp://127.0.0.1/{number}.jpg"),
    "data_url": ("bad_url", lambda base: "data:image/png;base64,{number}"),
    "three_slashes": ("", lambda base: base.replace("://", ":///") + "/jpeg/{number}"),
    "backslashes": ("", lambda base: base.replace("/", "\\") + "\\jpeg\\{number}"),
    "odd_host": ("", lambda base: base.replace("127.0.0.1", "%6Co\uff43alhost") + "/jpeg/{number}"),
    "no_scheme": ("bad_url", lambda base: base.removeprefix("http:") + "/jpeg/{number}"),
    "damaged_url": ("bad_url", lambda base: base + "/jpeg/{number}\ufffd"),
    "no_host": ("bad_url", lambda base: "http://?{number}"),
    "half_an_address": ("bad_url", lambda base: "http://[::1/{number}.jpg"),
    "long_label": ("bad_url", lambda base: "http://" + "a" * 70 + ".example/{number}.jpg"),
    "wild_port": ("bad_url", lambda base: "http://127.0.0.1:99999999/{number}.jpg"),
    "spaces_and_signs": ("", lambda base: base + "/jpeg/{number} with späces\x07 & \u6f22.jpg"),
    "line_break": ("", lambda base: base + "/jpeg/{number}\r\nX-Injected: yes"),
    "null_caption": ("no_caption", lambda base: base + "/jpeg/{number}-null"),
    "blank_caption": ("no_caption", lambda base: base + "/jpeg/{number}-blank"),
    "damaged_caption": ("caption_encoding", lambda base: base + "/jpeg/{number}-damaged"),
    "long_caption": ("long_caption", lambda base: base + "/jpeg/{number}-long"),
    "same_url": ("duplicate_url", lambda base: base + "/jpeg/the-same"),
}
_CAPTIONS = {
    "null_caption": None,
    "blank_caption": " \n\t",
    "damaged_caption": "caf\ufffd",
    "long_caption": "long " * 200_000,
}
_MOST_LONG_CAPTIONS = 20  # they are a megabyte each


class HostileServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.bodies = bodies()
        self.ended, self.lock = threading.Event(), threading.Lock()
        self.asked: Counter[str] = Counter()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are expected


@contextmanager
def hostile_server(tls: ssl.SSLContext | None = None) -> Iterator[HostileServer]:
    server = HostileServer(tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def expected_reasons() -> dict[str, str]:
    """The expected reason of each kind of row; "" for rows that must be kept."""
    found = {kind: reason for kind, (reason, _) in bodies().items()}
    found |= {kind: reason for kind, (reason, _) in BEHAVIOURS.items()}
    return found | {kind: reason for kind, (reason, _) in ROWS.items()}


def hostile_rows(count: int, base: str) -> tuple[pa.Table, Counter[str]]:
    """Rows of metadata (schema METADATA), each kind in turn, and the expected number of each reason."""
    reasons, rows, outcomes = expected_reasons(), [], Counter[str]()
    kinds, long_captions, same = list(reasons), 0, 0
    for number in range(count):
        kind = kinds[number % len(kinds)]
        if kind == "long_caption":
            long_captions += 1
            kind = kind if long_captions <= _MOST_LONG_CAPTIONS else "jpeg"
        url: str | None = f"{base}/{kind}/{number}"
        if kind in ROWS:
            template = ROWS[kind][1](base)
            url = template and template.replace("{number}", str(number))
        rows.append({"URL": url, "TEXT": _CAPTIONS.get(kind, CAPTIONS[number % len(CAPTIONS)]), "punsafe": None})
        same += kind == "same_url"
        outcomes["" if kind == "same_url" and same == 1 else reasons[kind]] += 1
    return pa.Table.from_pylist(rows, schema=METADATA), outcomes


def main() -> None:
    """Ingest the number of hostile rows given on the command line."""
    import resource
    import tempfile
    from pathlib import Path

    import pyarrow.parquet as pq

    from pipelines.execution.environment import set_environment, temporary_folder
    from stages.ingest import stage as ingest
    from stages.ray_tools.cluster import local_cluster
    from tests.support.contexts import make_context

    set_environment("micro")
    with tempfile.TemporaryDirectory() as name, hostile_server() as server:
        folder = Path(name)
        table, outcomes = hostile_rows(int(sys.argv[1]), server.base)
        pq.write_table(table, folder / "hostile.parquet")
        changes = {"metadata": str(folder / "hostile.parquet"), "allow_private_addresses": True, **LIMITS}
        context = make_context(folder, ingest=changes | {"threads": 32, "min_image_size": 32})
        with temporary_folder(folder), local_cluster():
            began = time.monotonic()
            result = ingest.run(context)
            seconds = time.monotonic() - began
    for key, value in result.metrics.items():
        print(f"{key:<28} {value:7.0f}")
    kept, own, children = (
        result.rows["samples"],
        *(resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
    )
    print(f"kept {kept} (expected {outcomes['']}); {seconds:.0f} s; peak MB {own} here, {children} in a child")


if __name__ == "__main__":
    main()
