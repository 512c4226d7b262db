"""The model in a web page: an ONNX folder, run by onnxruntime-web in the browser's WebAssembly.

The page (`notebooks/assets/browser`) is static: any web server can offer it, with the model in `model/` and three npm
packages (`browser_modules`) in `modules/`. The server here listens on this machine only and sends two headers (COOP, COEP)
without which a browser gives a page no threads, and a third (CSP) that forbids the page to ask any other server for
anything.

    python -m course_lib.browser [--lang ko]    export, fetch, serve; Ctrl-C ends it

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

from .browser_modules import PACKAGES, fetch_modules, missing_files
from .gguf_run import HOST, check_port
from .runtime import LANGUAGES, PROFILES, cache_dir, language, set_language, text

PAGE = Path(__file__).resolve().parent.parent / "notebooks" / "assets" / "browser"
_MODEL = ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json",
          "chat_template.jinja")
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".json": "application/json",
          ".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8", ".wasm": "application/wasm"}
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp",  # threads
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:",
    "Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
}


# ---- the model -------------------------------------------------------------------------------------------------------

def export_model() -> Path:
    """The ONNX folder (4 bits) of the "cpu" profile's model in the cache, exported first if need be.

    It is that profile's on every machine: a page runs on the CPU, and WebAssembly addresses 4 GB.

    Raises:
        What `loading.load` and `deploy.to_onnx` raise.
    """
    from . import deploy, loading

    name = PROFILES["cpu"].model
    folder = cache_dir() / "browser" / f"{name}-int4"
    if any(not (folder / file).is_file() for file in _MODEL):
        deploy.to_onnx(loading.resolve(name), folder)
    return folder


# ---- the server ------------------------------------------------------------------------------------------------------

@contextmanager
def serve_page(onnx_folder: str | Path, *, modules: str | Path | None = None, port: int = 0) -> Iterator[str]:
    """Serve the page with this model while the block runs; gives its address, such as "http://127.0.0.1:40123/".

    Only the page's files, the model's and the packages' can be fetched, and only from this machine (or through a tunnel
    that ends here, such as `ssh -L`).

    Args:
        onnx_folder: what `deploy.to_onnx` wrote; "int4" is the smaller download, "fp32" decodes faster in WebAssembly.
        modules: a folder with the npm packages, laid out as `node_modules` is; by default what `fetch_modules` gives.
        port: 0 takes a free one.

    Raises:
        FileNotFoundError: a file of the model, the page or the packages is missing. ValueError: no such port.
        OSError: the port is in use; and what `fetch_modules` raises.
    """
    check_port(port)
    onnx_folder = Path(onnx_folder)
    missing = [name for name in _MODEL if not (onnx_folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{str(onnx_folder)!r} is no ONNX model of to_onnx: {', '.join(missing)} is missing")
    if not (PAGE / "index.html").is_file():
        raise FileNotFoundError(f"the page is not in {str(PAGE)!r}: start this from a copy of the course's repository")
    modules = fetch_modules() if modules is None else Path(modules)
    if missing_files(modules):
        raise FileNotFoundError(f"the npm packages in {str(modules)!r} lack {', '.join(missing_files(modules))}")
    routes = {f"/{path.name}": path for path in PAGE.iterdir()} | {"/": PAGE / "index.html"}
    routes |= {f"/model/{name}": onnx_folder / name for name in _MODEL}
    routes |= {f"/modules/{name}/{file}": modules / name / file for name, package in PACKAGES.items() for file in package.files}
    with _Server((HOST, port), type("Handler", (_Handler,), {"routes": routes})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingTCPServer):  # an HTTPServer would look its own name up in the network
    allow_reuse_address = sys.platform != "win32"  # there it would share the port with another program
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Silent: a page that is closed while it loads breaks the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # of a connection that says nothing
    routes: dict[str, Path] = {}

    def do_GET(self) -> None:
        """A file of `routes`; nothing else exists, so that no path leads out."""
        # by any other name for this machine, a foreign page could have its own requests answered (DNS rebinding)
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
        """Every answer has the headers: a worker's rights are those of its own file's."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


# ---- the command -----------------------------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.browser", description="Chat with a model in a web page.")
    parser.add_argument("--model", metavar="DIR", help="an ONNX folder that to_onnx wrote, instead of the default model's")
    parser.add_argument("--modules", metavar="DIR", help="a folder with the npm packages, instead of fetching them")
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
                time.sleep(1)  # under Windows Ctrl-C does not end a wait without a limit
    except KeyboardInterrupt:
        print()
        return 0
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        print(error.args[0] if isinstance(error, LookupError) else error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
