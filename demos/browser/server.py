"""The model in a web page: onnxruntime-web runs an ONNX folder as WebAssembly in the browser.

Any web server can serve the static `page/` with the model in `model/` and the npm packages in `modules/`.
This server listens on this machine only. Its COOP and COEP headers allow the page to use threads; its CSP
header forbids requests to other servers.

    python -m demos.browser [--lang ko]    export, fetch, serve; Ctrl-C ends it

Sources:
    https://onnxruntime.ai/docs/tutorials/web/, …/web/env-flags-and-session-options.html (threads)
    https://web.dev/articles/coop-coep, https://developer.mozilla.org/docs/Web/HTTP/Guides/CSP (the headers)
"""
from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from urllib.parse import unquote, urlsplit

from course_lib.export.gguf_run import HOST, check_port
from course_lib.runtime import LANGUAGES, PROFILES, cache_dir, language, set_language, text
from demos.browser.modules import FILES, fetch_modules, missing_files

PAGE = Path(__file__).resolve().parent / "page"
_MODEL = ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json",
          "chat_template.jinja")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",  # this header and the next one allow threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy":
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


# ---- the model -----------------------------------------------------------------------------------

def export_model() -> Path:
    """Return the cached 4-bit ONNX folder of the "cpu" profile's model; export it first if needed.

    Raises what `course_lib.loading.resolve` and `cl.export.to_onnx` raise.
    """
    from course_lib import loading
    from course_lib.export import onnx

    # on every machine: the page runs on the CPU, and WebAssembly addresses at most 4 GB
    name = PROFILES["cpu"].model
    folder = cache_dir() / "browser" / f"{name}-int4"
    if any(not (folder / file).is_file() for file in _MODEL):
        onnx.to_onnx(loading.resolve(name), folder)
    return folder


# ---- the server ----------------------------------------------------------------------------------

@contextmanager
def serve_page(onnx_folder: str | Path, *, modules: str | Path | None = None, port: int = 0) -> Iterator[str]:
    """Serve the page and the model while the block runs; yield the URL, such as "http://127.0.0.1:40123/".

    Only files of the page, the model and the packages are served, and only to this machine (or through a
    tunnel that ends on it, such as `ssh -L`).

    Args:
        onnx_folder: written by `cl.export.to_onnx`; "int4" is the smaller download, "fp32" decodes faster.
        modules: folder with the npm packages, laid out like node_modules; by default `fetch_modules()`.
        port: 0 takes a free one.

    Raises:
        FileNotFoundError: a file of the model, the page or the packages is missing.
        ValueError, OSError: the port is out of range, or in use.
        ConnectionError, ValueError, OSError: as `fetch_modules`.
    """
    check_port(port)
    onnx_folder = Path(onnx_folder)
    missing = ", ".join(name for name in _MODEL if not (onnx_folder / name).is_file())
    if missing:
        raise FileNotFoundError(f"{str(onnx_folder)!r} is no ONNX model of to_onnx: {missing} is missing")
    if not (PAGE / "index.html").is_file():
        raise FileNotFoundError(f"the page is not in {str(PAGE)!r}: start from a copy of the repository")
    modules = fetch_modules() if modules is None else Path(modules)
    missing = ", ".join(missing_files(modules))
    if missing:
        raise FileNotFoundError(f"the npm packages in {str(modules)!r} lack {missing}")
    routes = {f"/{path.name}": path for path in PAGE.iterdir()} | {"/": PAGE / "index.html"}
    routes |= {f"/model/{name}": onnx_folder / name for name in _MODEL}
    routes |= {f"/modules/{file}": modules / file for file in FILES}
    with _Server((HOST, port), type("Handler", (_Handler,), {"routes": routes})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingTCPServer):  # HTTPServer would look up its host name by DNS
    allow_reuse_address = sys.platform != "win32"  # on Windows two programs would share the port
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Ignore errors: closing a page while it loads breaks the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds until an idle connection is closed
    routes: dict[str, Path] = {}

    def do_GET(self) -> None:
        """Send a file of `routes`; any other path is answered with 404."""
        # refuse other host names: with DNS rebinding a foreign page could read the answers
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        path = self.routes.get(unquote(urlsplit(self.path).path)) if host in (HOST, "localhost") else None
        try:
            file = open(path, "rb") if path else None
        except OSError:
            file = None
        if file is None:
            self.send_error(404)
            return
        with file:
            self.send_response(200)
            self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.end_headers()
            if self.command == "GET":
                shutil.copyfileobj(file, self.wfile, 1 << 20)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        """Add `_HEADERS` to every response; a web worker needs them on its own file."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


# ---- the command ---------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demos.browser", description="A model in a web page.")
    parser.add_argument("--model", metavar="DIR", help="an ONNX folder of to_onnx, not the default model's")
    parser.add_argument("--modules", metavar="DIR", help="a folder with the npm packages, not fetched ones")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--lang", choices=LANGUAGES, default="en")
    args = parser.parse_args(argv)
    set_language(args.lang)
    try:
        print(text("browser.preparing"), flush=True)
        folder = Path(args.model) if args.model else export_model()
        with serve_page(folder, modules=args.modules, port=args.port) as address:
            print(text("browser.serving", address=f"{address}?lang={language()}"), flush=True)
            while True:
                time.sleep(1)  # on Windows Ctrl-C does not end a wait without a timeout
    except KeyboardInterrupt:
        print()
        return 0
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        print(error.args[0] if isinstance(error, LookupError) else error, file=sys.stderr)
        return 1
