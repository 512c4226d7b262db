"""Run or serve a GGUF file with llama.cpp in this process, through the prebuilt package xllamacpp.

llama.cpp reads tokenizer and chat template from the file. Its interface is an HTTP server, used here for our
own calls too; it accepts only programs on this machine (127.0.0.1) and, unlike by default, no web pages. The
file's header is checked first, because llama.cpp's errors on damaged files give no reason. Its threads wait
by spinning: on a busy machine, one thread per core can be many times slower than fewer threads.

Sources: https://github.com/xorbitsai/xllamacpp;
https://github.com/ggml-org/llama.cpp/tree/master/tools/server.
"""
from __future__ import annotations

import errno
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..models.gguf_header import read_gguf_header
from ..runtime import need_package
from .runners import Answer, Prompt, Runner, check_room, read_prompt

HOST = "127.0.0.1"


class GgufModel(Runner):
    """A GGUF file in memory, run by llama.cpp.

    Args:
        context: tokens of prompt and answer together; fixes the size of the cache.
        threads: CPU threads; by default llama.cpp chooses.
        mmap: map the file, so that pages are shared and read when needed; False copies it into memory.
        port: port of the server; 0 takes a free one.

    Raises:
        ModuleNotFoundError: xllamacpp is not installed.
        ValueError: context, threads or port out of range.
        FileNotFoundError, OSError: a missing or damaged file, an architecture that llama.cpp does not know,
            too little memory, or a port in use.
    """

    def __init__(
        self, path: str | Path, *, context: int = 1024, threads: int | None = None, mmap: bool = True,
        port: int = 0,
    ) -> None:
        need_package("xllamacpp", "2026.6")
        if context < 1 or (threads is not None and threads < 1):
            raise ValueError(f"context is {context} and threads {threads}; both must be at least 1")
        read_gguf_header(path)
        check_port(port)
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        load_modes = xllamacpp.llama_load_mode
        for name, value in {
            "n_ctx": context, "n_parallel": 1, "hostnames": [HOST], "port": port, "ui": False,
            "endpoint_slots": False, "cors_origins": f"http://{HOST}",
            "cors_origins_explicit": True,  # by default every web page may send requests
            "cache_prompt": False, "cache_ram_mib": 0,  # a repeated prompt must take its full time
            "verbosity": -1, "warmup": False, "fit_params": False,
            "load_mode": load_modes.LLAMA_LOAD_MODE_MMAP if mmap else load_modes.LLAMA_LOAD_MODE_NONE,
        }.items():
            setattr(settings, name, value)
        for parameters in (settings.cpuparams, settings.cpuparams_batch):
            parameters.n_threads = threads or parameters.n_threads
        try:
            self._server = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise OSError(
                f"llama.cpp cannot load {str(path)!r}: its head is in order, so the architecture or the "
                "tokenizer is unknown to this version, or the memory does not suffice") from error
        self._started = False
        self._context = context
        self.address = f"{self._server.listening_address}/v1"

    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        """See `Runner.generate`; the times are llama.cpp's own."""
        messages, ids = read_prompt(prompt, max_new_tokens)
        if ids is None:
            text = self._post("/apply-template", messages=messages)["prompt"]
            ids = self._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        check_room(len(ids), max_new_tokens, self._context)
        reply = self._post("/completion", prompt=ids, n_predict=max_new_tokens, temperature=0,
                           return_tokens=True, ignore_eos=not stop)
        self._started = True
        # llama.cpp also counts and returns the token that ended the answer
        tokens = reply["tokens"][:-1] if reply["stop_type"] == "eos" else reply["tokens"]
        times = reply["timings"]
        steps = times["predicted_n"] - 1
        rate = 1e3 * steps / times["predicted_ms"] if steps > 0 and times["predicted_ms"] else 0.0
        return Answer(reply["content"].strip(), tokens, len(ids), times["prompt_ms"] / 1e3, rate)

    def _post(self, path: str, **body: object) -> dict:
        if self._server is None:
            raise ValueError("the model is closed; load it anew")
        request = urllib.request.Request(self._server.listening_address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            words = error.read(300).decode(errors="replace")
            raise RuntimeError(f"llama.cpp answers {error.code}: {words}") from None

    def close(self) -> None:
        """Stop the server and free the model's memory."""
        if self._server is not None and not self._started:
            # llama.cpp's loop starts after the constructor has returned; if stopped before, it never ends
            self._post("/completion", prompt=[0], n_predict=1)
        self._server = None


def run_gguf(
    path: str | Path, prompt_or_messages: Prompt, *, max_new_tokens: int = 64, context: int = 1024,
    threads: int | None = None, mmap: bool = True,
) -> str:
    """Load a GGUF file for one greedy answer; for several answers, keep a `GgufModel`."""
    with GgufModel(path, context=context, threads=threads, mmap=mmap) as model:
        return model.chat(prompt_or_messages, max_new_tokens=max_new_tokens)


@contextmanager
def serve_gguf(
    path: str | Path, *, port: int = 8080, context: int = 4096, threads: int | None = None, mmap: bool = True,
) -> Iterator[str]:
    """Serve a GGUF file with OpenAI's API while the block runs; gives the address "http://127.0.0.1:8080/v1".

    Any OpenAI client can use it, such as `cl.data.ServerTeacher(address, "any name")`, without a key. Errors
    are those of `GgufModel`.
    """
    model = GgufModel(path, context=context, threads=threads, mmap=mmap, port=port)
    try:
        yield model.address
    finally:
        model.close()


def check_port(port: int) -> None:
    """Raise an OSError if the port on 127.0.0.1 is in use, since llama.cpp itself would wait or share it."""
    if not 0 <= port < 65536:
        raise ValueError(f"port is {port}; it must be from 0 (any free one) to 65535")
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere this flag would take the port from its owner
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = ("is in use by another program; choose another, or port=0 for a free one"
                      if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}")
            raise OSError(error.errno, f"port {port} on {HOST} {reason}") from error
