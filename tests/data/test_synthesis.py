"""Synthesis: exact counts, resumed runs, what is rejected and why; a server played on loopback."""
import http.server
import json
import threading
from collections import Counter

import pytest
import torch

from course_lib.data import filters, synthesis
from course_lib.data.synthesis import (
    LocalTeacher,
    ServerTeacher,
    explanation_prompt,
    synthesize,
    valid_explanation,
)

TOPICS = ["caching", "rounding", "hashing"]
KEY = "sk-very-secret-0123456789"


class Writer:
    """A teacher that never repeats itself; `bad` answers come first, `stop` answers later it is killed."""

    def __init__(self, bad=(), stop=None):
        self.asked = []
        self.bad = list(bad)
        self.stop = stop

    def generate(self, messages):
        if self.stop is not None and len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(messages[0]["content"])
        return self.bad.pop(0) if self.bad else f"  Answer {len(self.asked)} to: {messages[0]['content']}\n"


def anything(text, lang):
    return "bad" if text == "bad" else None


def run(teacher, path, topics=TOPICS, samples=3, **options):
    return synthesize(teacher, topics, samples_per_topic=samples, path=path, lang="en",
                      **{"validate": anything, **options})


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- synthesize --------------------------------------------------------------------------------------------

def test_every_topic_gets_its_samples(tmp_path):
    path = tmp_path / "new folder" / "made.jsonl"
    teacher = Writer()
    dataset = run(teacher, path)
    assert dataset["topic"] == ["caching"] * 3 + ["rounding"] * 3 + ["hashing"] * 3
    assert len(set(dataset["text"])) == 9 and set(dataset["attempts"]) == {1}
    assert dataset["text"][0] == f"Answer 1 to: {teacher.asked[0]}"
    assert [{key: line[key] for key in ("topic", "text", "attempts")}
            for line in lines(path)] == dataset.to_list()
    assert path.read_bytes().endswith(b"}\n") and b"\r" not in path.read_bytes()


def test_a_complete_file_asks_nothing(tmp_path):
    first = run(Writer(), tmp_path / "made.jsonl")
    teacher = Writer()
    assert run(teacher, tmp_path / "made.jsonl").to_list() == first.to_list()
    assert teacher.asked == []


def test_each_sample_is_on_disk_before_the_next_is_asked_for(tmp_path):
    path = tmp_path / "made.jsonl"
    counts = []

    class Watching(Writer):
        def generate(self, messages):
            counts.append(len(lines(path)))
            return super().generate(messages)

    run(Watching(), path)
    assert counts == list(range(9))


@pytest.mark.parametrize("stop", [0, 1, 4, 8])
@pytest.mark.parametrize("damage", ["clean", "half a line", "half a character", "no line break"])
def test_an_interrupted_run_goes_on(tmp_path, stop, damage):
    """Killed between two samples, or while the next line was being written."""
    path = tmp_path / "made.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Writer(stop=stop), path)
    before = lines(path)
    assert len(before) == stop
    tail = {"half a line": b'{"lang": "en", "topic": "cach',
            "half a character": '{"topic": "캐'.encode()[:-1]}.get(damage, b"")
    content = path.read_bytes()
    path.write_bytes(content.rstrip(b"\n") if damage == "no line break" else content + tail)
    teacher = Writer()
    teacher.asked = [None] * 100  # other answers than the first run's
    dataset = run(teacher, path)
    assert len(teacher.asked) == 100 + 9 - stop
    assert Counter(dataset["topic"]) == dict.fromkeys(TOPICS, 3)
    assert lines(path)[:stop] == before and len(lines(path)) == 9


def test_a_file_from_windows_is_read(tmp_path):
    path = tmp_path / "made.jsonl"
    first = run(Writer(), path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert run(Writer(stop=0), path).to_list() == first.to_list()


def test_a_file_damaged_in_the_middle_is_not_touched(tmp_path):
    path = tmp_path / "made.jsonl"
    run(Writer(), path)
    content = path.read_bytes().replace(b'"topic": "rounding"', b'"topic": ', 1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="made.jsonl, line 4, column .*: no valid JSON"):
        run(Writer(), path)
    assert path.read_bytes() == content


def test_more_samples_topics_and_languages_in_one_file(tmp_path):
    path = tmp_path / "made.jsonl"
    run(Writer(), path, TOPICS[:2], 2)
    teacher = Writer()
    teacher.asked = [None] * 10
    assert Counter(run(teacher, path, TOPICS, 3)["topic"]) == dict.fromkeys(TOPICS, 3)
    assert len(teacher.asked) == 10 + 1 + 1 + 3
    assert len(run(Writer(stop=0), path, ["hashing"], 2)) == 2
    korean = synthesize(Writer(), ["hashing"], samples_per_topic=1, path=path, lang="ko", validate=anything)
    assert "hashing: 이 주제를" in korean["text"][0] and len(lines(path)) == 10


def test_what_the_file_holds_is_not_accepted_again(tmp_path):
    run(Writer(bad=["first"]), tmp_path / "made.jsonl", ["one"], 1)
    assert run(Writer(bad=["First", "second"]), tmp_path / "made.jsonl", ["one"], 2)["text"] == ["first",
                                                                                                 "second"]


def test_rejected_answers_are_replaced(tmp_path):
    teacher = Writer(bad=["bad", "bad", "good", "GOOD ", "bad"])
    dataset = run(teacher, tmp_path / "made.jsonl", ["one"], 2, max_attempts=3)
    assert dataset["attempts"] == [3, 3] and dataset["text"][0] == "good"
    # the next sample is another question
    assert len(set(teacher.asked[:3])) == 1 and teacher.asked[3] != teacher.asked[0]


def test_too_many_rejections_are_reported_and_can_be_continued(tmp_path):
    path = tmp_path / "made.jsonl"
    with pytest.raises(RuntimeError) as raised:
        run(Writer(bad=["fine", "bad", "fine"]), path, ["one", "two"], 2, max_attempts=2)
    reasons = "one (1 of 2); rejected for bad (1), duplicate (1)"
    assert f"too few samples after 2 attempts each: {reasons}" in str(raised.value)
    assert [line["topic"] for line in lines(path)] == ["one", "two", "two"]
    teacher = Writer()
    assert run(teacher, path, ["one", "two"], 2)["topic"] == ["one", "one", "two", "two"]
    assert len(teacher.asked) == 1


@pytest.mark.parametrize("options, words", [
    ({"topics": []}, r"topics is \[\]; it must be a list of at least one topic"),
    ({"topics": "caching"}, "topics is 'caching'"), ({"topics": ["a", "a"]}, "each once"),
    ({"samples": 0}, "samples_per_topic is 0"),
    ({"max_attempts": 0}, "max_attempts 0; both must be at least 1")])
def test_what_is_wrong_is_named_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run(Writer(), tmp_path / "made.jsonl", **options)
    with pytest.raises(ValueError, match="lang is 'fr'"):
        synthesize(Writer(), TOPICS, samples_per_topic=1, path=tmp_path / "made.jsonl", lang="fr")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_printed(tmp_path, capfd):
    run(Writer(), tmp_path / "made.jsonl")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- prompts and validation --------------------------------------------------------------------------------

@pytest.mark.parametrize("lang", ["en", "ko"])
def test_prompts_name_the_topic_and_take_turns(lang):
    asked = [explanation_prompt("hash {tables}", index, lang)[0]["content"] for index in range(8)]
    assert all("hash {tables}" in text for text in asked)
    assert len(set(asked[:4])) == 4 and asked[4:] == asked[:4]
    assert all(filters.language_share(text.replace("hash {tables}", ""), lang) > 0.9 for text in asked)


GOOD = {
    "en": "A hash table stores each entry at a position that is computed from its key, so that it finds 1 of "
          "1,000,000 entries without a search. Two keys may share a position, e.g. when the table is small. "
          "Then both are kept there, in a list.",
    "ko": "해시 테이블은 키로 계산한 위치에 값을 저장하므로 "
          "값이 백만 개 있어도 처음부터 찾아볼 필요가 없습니다. "
          "표가 작으면 두 키가 같은 위치를 가질 수 있습니다. 이때는 한 위치에 두 값을 목록으로 보관합니다. "
          "표를 3.5배로 키우면 이런 일이 줄어듭니다.",
}


@pytest.mark.parametrize("lang", GOOD)
def test_a_good_explanation_passes(lang):
    assert valid_explanation(GOOD[lang], lang) is None
    assert valid_explanation(f"\n{GOOD[lang]}  ", lang) is None


@pytest.mark.parametrize("text, lang, reason", [
    ("Too short.", "en", "length"), ("너무 짧습니다.", "ko", "length"), ("", "en", "length"),
    (" ".join([GOOD["en"]] * 2), "en", "repetition"), (" ".join([GOOD["ko"]] * 2), "ko", "repetition"),
    (GOOD["ko"] + GOOD["en"], "ko", "language"), (GOOD["ko"] * 2 + GOOD["en"], "en", "repetition"),
    (GOOD["en"] + GOOD["ko"], "en", "language"),
    ("As an AI language model, I have no hands. " + GOOD["en"], "en", "meta"),
    ("I'm sorry, but that is unclear. " + GOOD["en"], "en", "meta"), ("Sure! " + GOOD["en"], "en", "meta"),
    ("Here is a paragraph. " + GOOD["en"], "en", "meta"),
    ("죄송합니다. " + GOOD["ko"], "ko", "meta"), ("물론입니다! " + GOOD["ko"], "ko", "meta"),
    ("저는 AI 언어 모델로서 말씀드립니다. " + GOOD["ko"], "ko", "meta"),
    (GOOD["en"] + " And then the", "en", "unfinished"), (GOOD["ko"] + " 그리고 그", "ko", "unfinished"),
])
def test_why_an_explanation_is_rejected(text, lang, reason):
    assert valid_explanation(text, lang) == reason


def test_topics_that_only_sound_like_refusals_pass():
    for start in ("Surely this matters. ", "Hereditary units matter. ", "Of course-books there are many. "):
        assert valid_explanation(start + GOOD["en"], "en") is None
    for start in ("네트워크가 있습니다. ", "네 가지가 있습니다. ", "물론 예외도 있습니다. "):
        assert valid_explanation(start + GOOD["ko"], "ko") is None


# --- a local teacher ---------------------------------------------------------------------------------------

def test_a_local_teacher_samples_by_its_seed(tiny):
    asked = [{"role": "user", "content": "hello"}]

    def answers(seed):
        teacher = LocalTeacher(*tiny, max_new_tokens=8, temperature=1.5, seed=seed)
        return [teacher.generate(asked) for _ in range(3)]

    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert answers(1) == answers(1) and answers(1) != answers(10) and len(set(answers(1))) == 3
    assert torch.equal(torch.rand(3), expected)


# --- a server ----------------------------------------------------------------------------------------------

class Server(http.server.BaseHTTPRequestHandler):
    """Gives the planned (status, headers, body) answers one after the other, and keeps what it was asked."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization"), json.loads(body)))
        plan = self.server.plan
        status, headers, answer = plan.pop(0) if len(plan) > 1 else plan[0]
        if status is None:  # hangs up
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization"), None))
        self.send_error(500)

    def log_message(self, *args):
        pass


def completion(text):
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch):
    """A function that plans the answers; returns the address and the list of what was asked."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(synthesis.KEY_VARIABLE, raising=False)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def plan(*answers):
        running.plan = list(answers)
        running.asked = []
        return f"http://127.0.0.1:{running.server_port}/v1", running.asked

    yield plan
    running.shutdown()
    thread.join()
    running.server_close()


ASK = [{"role": "user", "content": "질문"}]


def test_a_server_is_asked_in_openais_form(server):
    address, asked = server(completion("답"))
    assert ServerTeacher(address + "/", "tiny-model", KEY, temperature=0.3,
                         max_tokens=9).generate(ASK) == "답"
    assert asked == [("/v1/chat/completions", f"Bearer {KEY}",
                      {"model": "tiny-model", "temperature": 0.3, "max_tokens": 9, "messages": ASK})]


def test_the_key_comes_from_the_environment_or_not_at_all(server, monkeypatch):
    address, asked = server(completion("a"))
    ServerTeacher(address, "m").generate(ASK)
    monkeypatch.setenv("OPENAI_API_KEY", "another server's key")
    ServerTeacher(address, "m").generate(ASK)
    monkeypatch.setenv(synthesis.KEY_VARIABLE, KEY + "\n")
    ServerTeacher(address, "m").generate(ASK)
    ServerTeacher(address, "m", "").generate(ASK)  # an empty key is none, whatever the environment says
    assert [key for _, key, _ in asked] == [None, None, f"Bearer {KEY}", None]


def test_a_busy_server_is_asked_again(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(synthesis.time, "sleep", pauses.append)
    busy = [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "999"}, b""), (500, {}, b"")]
    address, asked = server(*busy, completion("ok"))
    assert ServerTeacher(address, "m", wait=0.5).generate(ASK) == "ok"
    assert len(asked) == 4 and pauses == [7, 60, 2]


@pytest.mark.parametrize("answer, error, words, tries", [
    ((429, {}, b"slow down"), ConnectionError, r"answers 429: slow down \(after 3 tries\)", 3),
    ((500, {}, b""), ConnectionError, r"answers 500:  ?\(after 3 tries\)", 3),
    ((None, {}, b""), ConnectionError, r"does not answer: .*\(after 3 tries\)", 3),
    ((200, {"Content-Length": "99"}, b"{}"), ConnectionError, "does not answer: IncompleteRead", 3),
    ((401, {}, f"Incorrect API key: {KEY}".encode()), PermissionError,
     r"answers 401: Incorrect API key: \*\*\*", 1),
    ((403, {}, b""), PermissionError, "answers 403", 1),
    ((404, {}, b"no such model"), LookupError, "answers 404: no such model", 1),
    ((400, {}, b"\xff"), RuntimeError, "answers 400", 1),
    ((200, {}, b"<html>"), RuntimeError, "answers no chat completion: <html>", 1),
    ((200, {}, b'{"choices": []}'), RuntimeError, "answers no chat completion", 1),
    ((200, {}, f'"{KEY}"'.encode()), RuntimeError, r"answers no chat completion: .\*\*\*", 1),
    ((302, {"Location": "/stolen"}, b""), RuntimeError, "answers 302", 1),
])
def test_what_a_server_does_wrong_is_named_without_the_key(server, answer, error, words, tries):
    address, asked = server(answer)
    teacher = ServerTeacher(address, "m", KEY, retries=2, wait=0)
    with pytest.raises(error, match=words) as raised:
        teacher.generate(ASK)
    assert len(asked) == tries and asked[-1][0] == "/v1/chat/completions"
    chain = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert not any(KEY in f"{one!r} {one}" for one in chain) and KEY not in repr(teacher)


def test_a_server_that_is_not_there(server):
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9/chat/completions does not answer"):
        ServerTeacher("http://127.0.0.1:9", "m", retries=0).generate(ASK)


def test_a_slow_server_times_out(server):
    address, _ = server((200, {"Content-Length": "9"}, b""))
    with pytest.raises(ConnectionError, match="does not answer"):
        ServerTeacher(address, "m", retries=0, timeout=0.2).generate(ASK)


@pytest.mark.parametrize("arguments, words", [
    (("localhost:8000", "m"), "base_url must look like 'https://host/v1'"),
    (("file:///etc", "m"), "base_url must look like"),
    ((f"https://user:{KEY}@host/v1", "m"), "without a password"),
    (("https://host", "m", KEY + "\nX-More: 1"), "api_key holds characters that no key has"),
    (("https://host", "m", KEY + "열쇠"), "api_key holds characters that no key has")])
def test_wrong_arguments_are_named_without_the_key(arguments, words):
    with pytest.raises(ValueError, match=words) as raised:
        ServerTeacher(*arguments)
    assert KEY not in str(raised.value)


def test_synthesis_with_a_server(server, tmp_path):
    address, asked = server((503, {}, b""), completion("Sure! Here you go."), completion(GOOD["ko"]))
    teacher = ServerTeacher(address, "m", wait=0)
    dataset = synthesize(teacher, ["해시"], samples_per_topic=1, path=tmp_path / "made.jsonl", lang="ko")
    assert dataset.to_list() == [{"topic": "해시", "text": GOOD["ko"], "attempts": 2}] and len(asked) == 3
