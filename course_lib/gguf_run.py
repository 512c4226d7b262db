"""Run a GGUF file with llama.cpp in this process, through the prebuilt package xllamacpp, or serve it.

llama.cpp takes the tokenizer and the chat template out of the file. Its interface is a server that listens on this machine
only (127.0.0.1), also for one's own calls; other machines cannot reach it, and neither can pages in a browser, which its
default would let in. The file's head is checked first, because llama.cpp says of a damaged file only that it failed.

Note on threads: they wait for each other by spinning, so on a machine that does something else as well, one thread for
each core can be many times slower than fewer.

Source: https://github.com/xorbitsai/xllamacpp; https://github.com/ggml-org/llama.cpp/tree/master/tools/server.
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

from .exporting import need_package
from .gguf_header import read_gguf_header
from .runners import Answer, Prompt, Runner, check_room, read_prompt

HOST = "127.0.0.1"


class GgufModel(Runner):
    """A GGUF file in memory, run by llama.cpp.

    Args:
        path: what `to_gguf` wrote, or any GGUF file.
        context: tokens of prompt and answer together; the cache is allocated for so many.
        threads: of the processor; llama.cpp's choice by default.
        mmap: map the file, so that pages are read when they are needed and shared; False copies it into memory.
        port: where its server listens; 0 takes a free one.

    Raises:
        FileNotFoundError: no such file. OSError: damaged, cut off, an architecture that llama.cpp does not know, or a port
            that is in use. ModuleNotFoundError: xllamacpp is not installed. ValueError: a number out of range.
    """

    def __init__(
        self, path: str | Path, *, context: int = 1024, threads: int | None = None, mmap: bool = True, port: int = 0,
    ) -> None:
        need_package("xllamacpp", "2026.6")
        if context < 1 or (threads is not None and threads < 1):
            raise ValueError(f"context is {context} and threads {threads}; both must be at least 1")
        read_gguf_header(path)
        check_port(port)
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(path), context, 1
        settings.hostnames, settings.port = [HOST], port
        settings.cors_origins, settings.cors_origins_explicit = f"http://{HOST}", True  # by default any page may ask
        settings.ui = settings.endpoint_slots = False
        settings.verbosity, settings.warmup, settings.fit_params = -1, False, False
        settings.cache_prompt, settings.cache_ram_mib = False, 0  # the same prompt gives the same timing again
        settings.load_mode = getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{'MMAP' if mmap else 'NONE'}")
        if threads is not None:
            settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        try:
            self._server = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise OSError(f"llama.cpp cannot load {str(path)!r}: its head is in order, so the architecture or the "
                          "tokenizer is unknown to this version, or the memory does not suffice") from error
        self._started = False
        self._context, self.address = context, f"{self._server.listening_address}/v1"

    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        """See `Runner.generate`; the times are llama.cpp's own."""
        messages, ids = read_prompt(prompt, max_new_tokens)
        if ids is None:
            text = self._post("/apply-template", messages=messages)["prompt"]
            ids = self._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        check_room(len(ids), max_new_tokens, self._context)
        made = self._post("/completion", prompt=ids, n_predict=max_new_tokens, temperature=0, return_tokens=True,
                          ignore_eos=not stop)
        self._started = True
        # the token that ended the answer is counted and returned, but it is no text
        tokens = made["tokens"][:-1] if made["stop_type"] == "eos" else made["tokens"]
        times, steps = made["timings"], made["timings"]["predicted_n"] - 1
        rate = 1e3 * steps / times["predicted_ms"] if steps > 0 and times["predicted_ms"] else 0.0
        return Answer(made["content"].strip(), tokens, len(ids), times["prompt_ms"] / 1e3, rate)

    def _post(self, path: str, **body: object) -> dict:
        if self._server is None:
            raise ValueError("the model is closed; load it anew")
        request = urllib.request.Request(self._server.listening_address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"llama.cpp answers {error.code}: {error.read(300).decode(errors='replace')}") from None

    def close(self) -> None:
        """Stop the server and free the model's memory."""
        if self._server is not None and not self._started:
            # llama.cpp's loop starts after its constructor is done; told to stop before that, it would never end
            self._post("/completion", prompt=[0], n_predict=1)
        self._server = None


def run_gguf(
    path: str | Path, prompt_or_messages: Prompt, *, max_new_tokens: int = 64, context: int = 1024,
    threads: int | None = None, mmap: bool = True,
) -> str:
    """The greedy answer of a GGUF file, loaded for this call; `GgufModel` keeps it for several."""
    with GgufModel(path, context=context, threads=threads, mmap=mmap) as model:
        return model.chat(prompt_or_messages, max_new_tokens=max_new_tokens)


@contextmanager
def serve_gguf(
    path: str | Path, *, port: int = 8080, context: int = 4096, threads: int | None = None, mmap: bool = True,
) -> Iterator[str]:
    """Serve a GGUF file with OpenAI's interface while the block runs; gives the address, "http://127.0.0.1:8080/v1".

    Any client of that interface talks to it, such as `synthesis.ServerTeacher(address, "any name")`. No key is asked for,
    since only programs on this machine reach it.

    Raises:
        OSError: the port is in use; and what `GgufModel` raises.
    """
    model = GgufModel(path, context=context, threads=threads, mmap=mmap, port=port)
    try:
        yield model.address
    finally:
        model.close()


def check_port(port: int) -> None:
    """Raise an OSError that names the port, unless it is free on 127.0.0.1; 0 always is.

    llama.cpp itself would wait, or share the port with the program that has it.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port is {port}; it must be from 0 (any free one) to 65535")
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere this flag would take the port from its owner
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"port {port} on {HOST} cannot be used: {error.strerror}") from error
            raise OSError(errno.EADDRINUSE, f"port {port} on {HOST} is in use by another program; choose another, "
                                            "or port=0 for a free one") from error
